"""A stored tensor, or a part of one, seen as a matrix, (output, input), and read by rectangles.

This is the one place where the orientation on disk is known. `nn.Linear` and convolutions store
(output, input…); transformers' Conv1D and every embedding store (input, output). Above, all
matrices are (output, input), and what is stored the other way comes out as a transposed view.

A matrix may be a plane of a stack (one expert of many), and some of the outputs of what is stored
(the queries of a fused projection).
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from typing import ClassVar, Self

import numpy as np

from wdecomp.checkpoint.header import StoredTensor
from wdecomp.checkpoint.pieces import Ranges, count, cut
from wdecomp.checkpoint.quantized import QuantizedTensor
from wdecomp.checkpoint.rows import Weight, open_rows
from wdecomp.dtypes import BITS, STORED_AS, Array

BLOCK_BYTES = 768 << 10  # of the base: what stays in a core's second-level cache
DECODED_BITS = 32  # of one element of a decoded weight
ROWS_TOGETHER = 8  # a height that is a multiple of it leaves no odd rows to the kernel


@dataclass(frozen=True)
class Rectangle:
    """Some outputs and some inputs of a matrix."""

    outputs: slice
    inputs: slice

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)."""
        return (
            self.outputs.stop - self.outputs.start,
            self.inputs.stop - self.inputs.start,
        )

    def within(self, shape: tuple[int, int]) -> "Rectangle | None":
        """The part of it that lies inside the upper left `shape` of the matrix."""
        outputs = slice(self.outputs.start, min(self.outputs.stop, shape[0]))
        inputs = slice(self.inputs.start, min(self.inputs.stop, shape[1]))
        inside = Rectangle(outputs, inputs)
        return inside if min(inside.shape) > 0 else None


def whole(shape: tuple[int, int]) -> Rectangle:
    """All of a matrix."""
    return Rectangle(slice(0, shape[0]), slice(0, shape[1]))


@dataclass(frozen=True)
class Matrix:
    """One weight on disk as a matrix: (outputs, inputs).

    tensor: where its numbers are.
    input_first: stored (input, output).
    plane: which matrix of a stack, (plane, rows, columns); None where the tensor is one matrix.
    picked: which of the stored outputs are this matrix's; None for all.
    view: the stack that the tensor is, where its stored shape does not show it.
    """

    tensor: Weight
    input_first: bool
    plane: int | None = None
    picked: Ranges | None = None
    view: tuple[int, ...] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)."""
        outputs, inputs = self._stored_outputs_inputs
        return (outputs if self.picked is None else count(self.picked)), inputs

    @property
    def is_vector(self) -> bool:
        """Whether it is 1-D: no weight with columns."""
        return len(core_shape(self.tensor.shape)) == 1

    @property
    def dtype(self) -> str:
        """As safetensors writes it (BF16, F16, F32, F64), or the name of a quantisation."""
        return self.tensor.dtype

    @property
    def stored_shape(self) -> tuple[int, int]:
        """Rows and columns as they lie on disk; a vector is one row."""
        if self.plane is not None:
            _, rows, columns = self.view or self.tensor.shape
            return rows, columns
        shape = core_shape(self.tensor.shape)
        return (1, shape[0]) if len(shape) == 1 else (shape[0], prod(shape[1:]))

    @property
    def nbytes(self) -> int:
        """Bytes to read of the file for all of it."""
        return self.tensor.nbytes * prod(self.shape) // max(prod(self.tensor.shape), 1)

    @property
    def rows_stop(self) -> int:
        """The row of those on disk before which all of its numbers are."""
        if self.picked is None or self.input_first:
            return self.stored_shape[0]
        return self.picked[-1][-1] + 1

    @property
    def is_seen(self) -> bool:
        """Whether it is looked at where it lies on disk and not copied."""
        together = self.picked is None or _is_run(self.picked)
        return together and not isinstance(self.tensor, QuantizedTensor)

    @property
    def _stored_outputs_inputs(self) -> tuple[int, int]:
        rows, columns = self.stored_shape
        return (columns, rows) if self.input_first else (rows, columns)

    def rectangles(self, shape: tuple[int, int], block_bytes: int) -> Iterator[Rectangle]:
        """The upper left `shape` of the matrix in pieces.

        Args:
            shape: (outputs, inputs).
            block_bytes: of a piece.
        """
        rows, columns = reversed(shape) if self.input_first else shape
        height, width = self._block_shape(columns, block_bytes)
        for top in range(0, rows, height):
            for left in range(0, columns, width):
                stored_rows = slice(top, min(top + height, rows))
                stored_columns = slice(left, min(left + width, columns))
                yield self._oriented(stored_rows, stored_columns)

    def height(self, block_bytes: int) -> int:
        """How many rows, as they are stored, a piece of so many bytes has that has whole ones."""
        return self._block_shape(self.stored_shape[1], block_bytes)[0]

    def _block_shape(self, columns: int, block_bytes: int) -> tuple[int, int]:
        fit = max(block_bytes * 8 // BITS.get(self.dtype, DECODED_BITS), 1)
        width = min(columns, fit)
        height = max(fit // max(width, 1), 1)
        return height - (height % ROWS_TOGETHER if height > ROWS_TOGETHER else 0), width

    def _oriented(self, rows: slice, columns: slice) -> Rectangle:
        return Rectangle(columns, rows) if self.input_first else Rectangle(rows, columns)


class MatrixReader:
    """Rectangles of one matrix, seen where they are mapped, or read into one buffer.

    An array that `read` returned is good until the next call. With `copied`, nothing is mapped:
    for a few rows from here and there, and for an array that is kept.
    """

    share: ClassVar[float] = 1.0  # of the base in what `beside` returns

    def __init__(self, matrix: Matrix, copied: bool = False) -> None:
        self.matrix = matrix
        self._copied = copied
        self._dtype = np.dtype(STORED_AS.get(matrix.dtype, np.float32))
        self._buffer = np.empty(0, self._dtype)
        self._files = ExitStack()

    def __enter__(self) -> Self:
        matrix = self.matrix
        rows = open_rows(matrix.tensor, matrix.plane or 0, matrix.stored_shape, matrix.rows_stop)
        self._rows = self._files.enter_context(rows)
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def read(self, at: Rectangle) -> Array:
        """The numbers of a rectangle, (outputs, inputs), as `STORED_AS` types them.

        Quantised weights come out decoded, in float32.
        """
        picked = self.matrix.picked
        asked = at.outputs
        outputs = (range(asked.start, asked.stop),) if picked is None else cut(picked, asked)
        if self.matrix.input_first:
            return self._some_columns(at.inputs, outputs).T
        return self._some_rows(outputs, at.inputs)

    def beside(self, base: Array, at: Rectangle) -> Array:
        """The tuned weights of a rectangle; what the base holds there does not matter."""
        return self.read(at)

    @property
    def sight(self) -> int:
        """Bytes of the matrix that are seen where they lie, at a time; 0 where all are copied."""
        return self._rows.sight if self.matrix.is_seen and not self._copied else 0

    def _view(self, rows: slice, columns: slice) -> Array | None:
        return None if self._copied else self._rows.view(rows, columns)

    def _some_rows(self, pieces: Ranges, columns: slice) -> Array:
        if _is_run(pieces):
            found = self._view(slice(pieces[0].start, pieces[0].stop), columns)
            if found is not None:
                return found
        block = self._block(count(pieces), columns.stop - columns.start)
        top = 0
        for piece in pieces:
            for rows in [piece] if piece.step == 1 else [range(row, row + 1) for row in piece]:
                self._rows.fill(block[top : top + len(rows)], rows.start, columns.start)
                top += len(rows)
        return block

    def _some_columns(self, rows: slice, pieces: Ranges) -> Array:
        """A span that holds all the columns is read, and what lies between them dropped."""
        left, right = pieces[0].start, pieces[-1][-1] + 1
        block = self._view(rows, slice(left, right))
        if block is None:
            block = self._block(rows.stop - rows.start, right - left)
            self._rows.fill(block, rows.start, left)
        if count(pieces) == right - left:
            return block
        kept = [block[:, p.start - left : p.stop - left : p.step] for p in pieces]
        return np.concatenate(kept, axis=1)

    def _block(self, height: int, width: int) -> Array:
        if self._buffer.size < height * width:
            self._buffer = np.empty(height * width, self._dtype)
        return self._buffer[: height * width].reshape(height, width)


def spans(matrix: Matrix) -> Iterator[tuple[StoredTensor, int, int]]:
    """The bytes of stored tensors that reading a matrix takes: from where to where in each."""
    weight = matrix.tensor
    if isinstance(weight, QuantizedTensor):
        planes = 1 if matrix.plane is None else (matrix.view or weight.shape)[0]
        for part in weight.parts.values():
            if isinstance(part, StoredTensor):
                start, stop = _plane_of(part, planes, matrix.plane or 0)
                yield part, start, stop
    elif isinstance(weight, StoredTensor):
        rows, columns = matrix.stored_shape
        first = (matrix.plane or 0) * rows
        picked = matrix.picked
        runs = (range(rows),) if picked is None or matrix.input_first else picked
        for run in runs:
            bits = columns * BITS[weight.dtype]
            yield weight, (first + run[0]) * bits // 8, (first + run[-1] + 1) * bits // 8


def _plane_of(part: StoredTensor, planes: int, plane: int) -> tuple[int, int]:
    """A plane's share of a tensor that has planes, one below another or as its first dimension."""
    if part.shape and part.shape[0] % planes == 0:
        size = part.nbytes // planes
        return plane * size, (plane + 1) * size
    return 0, part.nbytes


def _is_run(pieces: Ranges) -> bool:
    return len(pieces) == 1 and pieces[0].step == 1


def read_matrix(matrix: Matrix) -> Array:
    """All of a matrix at once, (outputs, inputs): only where a formula cannot do with less."""
    with MatrixReader(matrix, copied=True) as reader:
        return reader.read(whole(matrix.shape))


def core_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without the batch dimension of one that tables of tokens are saved with.

    ViT's `position_embeddings`, (1, N, D), is N×D; its `cls_token`, (1, 1, D), a vector.
    """
    if len(shape) != 3 or shape[0] != 1:
        return shape
    return shape[2:] if shape[1] == 1 else shape[1:]
