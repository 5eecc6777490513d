"""A stored tensor seen as a matrix, (output, input), and read by rectangles.

This is the one place where the orientation on disk is known. `nn.Linear` and convolutions store
(output, input…); transformers' Conv1D and every embedding store (input, output). Above, all
matrices are (output, input), and what is stored the other way comes out as a transposed view.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from typing import ClassVar, Self

import numpy as np

from wdecomp.checkpoint.header import StoredTensor
from wdecomp.dtypes import BITS, STORED_AS, Array
from wdecomp.errors import CheckpointError

BLOCK_BYTES = 1 << 20  # of the base: what stays in a core's second-level cache


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


@dataclass(frozen=True)
class Matrix:
    """One weight on disk as a matrix: (outputs, inputs)."""

    tensor: StoredTensor
    input_first: bool  # stored (input, output)

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)."""
        rows, columns = self.stored_shape
        return (columns, rows) if self.input_first else (rows, columns)

    @property
    def is_vector(self) -> bool:
        """Whether it is 1-D: no weight with columns."""
        return len(self.tensor.core_shape) == 1

    @property
    def dtype(self) -> str:
        """As safetensors writes it: BF16, F16, F32, F64."""
        return self.tensor.dtype

    @property
    def stored_shape(self) -> tuple[int, int]:
        """Rows and columns as they lie on disk; a vector is one row."""
        shape = self.tensor.core_shape
        return (1, shape[0]) if len(shape) == 1 else (shape[0], prod(shape[1:]))

    def rectangles(self, shape: tuple[int, int], block_bytes: int) -> Iterator[Rectangle]:
        """The upper left `shape` of the matrix in pieces that lie together on disk."""
        rows, columns = reversed(shape) if self.input_first else shape
        fit = max(block_bytes * 8 // BITS[self.dtype], 1)
        width = min(columns, fit)
        height = max(fit // max(columns, 1), 1)
        for top in range(0, rows, height):
            for left in range(0, columns, width):
                stored_rows = slice(top, min(top + height, rows))
                stored_columns = slice(left, min(left + width, columns))
                yield self._oriented(stored_rows, stored_columns)

    def _oriented(self, rows: slice, columns: slice) -> Rectangle:
        return Rectangle(columns, rows) if self.input_first else Rectangle(rows, columns)


class MatrixReader:
    """Reads rectangles of one matrix into one buffer that it uses again and again.

    An array that `read` returned is overwritten by the next call.
    """

    share: ClassVar[float] = 1.0  # of the base in what `beside` returns

    def __init__(self, matrix: Matrix) -> None:
        self.matrix = matrix
        self._dtype = np.dtype(STORED_AS[matrix.dtype])
        self._buffer = np.empty(0, self._dtype)
        self._files = ExitStack()

    def __enter__(self) -> Self:
        file = self.matrix.tensor.file
        try:
            self._stream = self._files.enter_context(file.open("rb", buffering=0))
        except OSError as error:
            raise CheckpointError(f"{file}: cannot be read ({error.strerror}).") from None
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def read(self, at: Rectangle) -> Array:
        """The stored numbers of a rectangle, (outputs, inputs), as `STORED_AS` types them."""
        if self.matrix.input_first:
            return self._read_stored(at.inputs, at.outputs).T
        return self._read_stored(at.outputs, at.inputs)

    def beside(self, base: Array, at: Rectangle) -> Array:
        """The tuned weights of a rectangle; what the base holds there does not matter."""
        return self.read(at)

    def _read_stored(self, rows: slice, columns: slice) -> Array:
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if self._buffer.size < height * width:
            self._buffer = np.empty(height * width, self._dtype)
        block = self._buffer[: height * width].reshape(height, width)
        stored_width = self.matrix.stored_shape[1]
        if width == stored_width:
            self._fill(block.reshape(-1), rows.start * width)
        else:
            for i, row in enumerate(block):
                self._fill(row, (rows.start + i) * stored_width + columns.start)
        return block

    def _fill(self, numbers: Array, first: int) -> None:
        tensor = self.matrix.tensor
        into = numbers.view(np.uint8).data
        try:
            self._stream.seek(tensor.offset + first * numbers.itemsize)
            while into:
                got = self._stream.readinto(into)
                if not got:
                    raise CheckpointError(
                        f"{tensor.file}: ended while {tensor.name!r} was read. "
                        "The file was changed: run again when it is complete."
                    )
                into = into[got:]
        except OSError as error:
            raise CheckpointError(
                f"{tensor.file}: tensor {tensor.name!r} cannot be read ({error.strerror})."
            ) from None


def read_whole(tensor: StoredTensor) -> Array:
    """A small tensor (a factor of an adapter, a vector) in its own shape, as stored."""
    matrix = Matrix(tensor, input_first=False)
    rows, columns = matrix.shape
    with MatrixReader(matrix) as reader:
        return reader.read(Rectangle(slice(0, rows), slice(0, columns))).reshape(tensor.shape)
