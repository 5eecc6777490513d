"""What an adapter adds to its base, block by block, whatever its formula.

    DoRA    W' = m·V/‖V‖ with V = W0 + D                      DoRA paper, Eq. (5)
            ΔW = (g − 1)·W0 + g·D with g = m/‖V‖

where D is the change of any other kind (s·BA for DoRA proper), and ‖V‖ is taken per output feature
or per input feature (a channel, in a convolution). D is formed in float32 or wider and ‖V‖ in
float64. ΔW is never added to W0 or rounded to the dtype of the base, which would lose most of it.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Self

import numpy as np

from wdecomp.adapter.change import Index, Update, index, numbers
from wdecomp.checkpoint import (
    BLOCK_BYTES,
    Matrix,
    MatrixReader,
    PlainTensor,
    Ranges,
    Rectangle,
    cut,
    read_matrix,
)
from wdecomp.decomposition import Axis
from wdecomp.dtypes import Array, Floats, widen


@dataclass(frozen=True)
class Magnitude:
    """DoRA's m: one for every feature along an axis, in any shape."""

    values: PlainTensor
    axis: Axis = "output"


@dataclass(frozen=True)
class Adapted:
    """One matrix of the base as an adapter changes it.

    update: of the module that the matrix is, or is a part of.
    magnitude: what V is brought to, if it is.
    module: the module's whole weight in the base, where its change depends on it.
    outputs: which of the module's outputs the matrix has; None for all.
    """

    update: Update
    magnitude: Magnitude | None
    module: Matrix
    outputs: Ranges | None = None

    @property
    def tensors(self) -> tuple[PlainTensor, ...]:
        """All that is to be read of the adapter."""
        return (*self.update.tensors, *([self.magnitude.values] if self.magnitude else []))

    @property
    def dtype(self) -> str:
        """As its factors are stored."""
        return self.tensors[0].dtype

    @property
    def nbytes(self) -> int:
        """Bytes to read of the adapter."""
        return sum(tensor.nbytes for tensor in self.tensors)


class ChangeReader:
    """ΔW of one adapted matrix, rectangle by rectangle, beside the base's block."""

    share: ClassVar[float] = 0.0

    def __init__(self, adapted: Adapted, base: Matrix) -> None:
        self._base, self._adapted = base, adapted
        with np.errstate(all="ignore"):  # of a damaged adapter; NaN is counted further on
            self._change = adapted.update.load(adapted.module)
        self._magnitude: Floats = np.empty(0)
        if adapted.magnitude is not None:
            values = numbers(adapted.magnitude.values)
            self._magnitude = values.reshape(-1).astype(np.float64)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    @property
    def wants_whole_rows(self) -> bool:
        """Whether it must go over the base once more if blocks do not hold whole rows."""
        return self._adapted.magnitude is not None or (
            self._change.needs_inputs or self._change.needs_outputs
        )

    def beside(self, base: Array, at: Rectangle) -> Array:
        """ΔW of a rectangle, (outputs, inputs), laid out in memory as `base` is where it can be."""
        with np.errstate(all="ignore"):  # columns of NaN and infinity are counted further on
            w0 = widen(base)
            change = self._inner(w0, at)
            magnitude = self._adapted.magnitude
            if magnitude is None:
                return change
            g = self._growth(w0, change, at, magnitude.axis)
            return (g - 1).astype(np.float32) * w0 + g.astype(np.float32) * change

    def _inner(self, w0: Array, at: Rectangle) -> Array:
        """D of a rectangle."""
        outputs = self._in_module(at.outputs)
        inputs = self._adapted.module.shape[1]
        partial_inputs = at.inputs != slice(0, inputs)
        partial_outputs = self._adapted.outputs is not None or at.outputs != slice(
            0, self._base.shape[0]
        )
        needs = self._change
        if (needs.needs_inputs and partial_inputs) or (needs.needs_outputs and partial_outputs):
            part: Array = self._whole[outputs][:, at.inputs]
            return part
        return self._change.delta(w0, outputs, at.inputs)

    def _in_module(self, outputs: slice) -> Index:
        pieces = self._adapted.outputs
        return outputs if pieces is None else index(cut(pieces, outputs))

    @cached_property
    def _whole(self) -> Array:
        """D of all of the module: where a block does not hold what its formula needs."""
        module = self._adapted.module
        outputs, inputs = module.shape
        w0 = widen(read_matrix(module))
        return self._change.delta(w0, slice(0, outputs), slice(0, inputs)).astype(np.float32)

    def _growth(self, w0: Array, change: Array, at: Rectangle, axis: Axis) -> Floats:
        """The g = m/‖V‖ of a rectangle, to be multiplied with it."""
        if axis == "input":
            g = np.repeat(_ratio(self._magnitude, self._input_norms), self._kernel)
            return g[at.inputs][None, :]
        complete = at.inputs == slice(0, self._base.shape[1])
        norms = np.sqrt(_squares(w0, change, 1)) if complete else self._output_norms[at.outputs]
        return _ratio(self._magnitude[self._in_module(at.outputs)], norms)[:, None]

    @cached_property
    def _output_norms(self) -> Floats:
        """‖V‖ of every output, in a pass of its own: one block does not hold a whole output."""
        squares = np.zeros(self._base.shape[0])
        with MatrixReader(self._base) as reader:
            for at in self._base.rectangles(self._base.shape, BLOCK_BYTES):
                w0 = widen(reader.read(at))
                squares[at.outputs] += _squares(w0, self._inner(w0, at), 1)
        return np.sqrt(squares)

    @property
    def _kernel(self) -> int:
        """How many columns an input channel has."""
        return self._adapted.module.shape[1] // self._magnitude.size

    @cached_property
    def _input_norms(self) -> Floats:
        """‖V‖ of every input channel over all outputs of the module."""
        module = self._adapted.module
        reader_of_module = ChangeReader(Adapted(self._adapted.update, None, module), module)
        squares = np.zeros(module.shape[1])
        with MatrixReader(module) as reader:
            for at in module.rectangles(module.shape, BLOCK_BYTES):
                w0 = widen(reader.read(at))
                squares[at.inputs] += _squares(w0, reader_of_module._inner(w0, at), 0)
        by_channel: Floats = squares.reshape(-1, self._kernel).sum(axis=1)
        return np.sqrt(by_channel)


@dataclass(frozen=True)
class OnOtherBase:
    """Adapted weights on a base of their own, as a QLoRA's are on the dequantised one: Wq + ΔW(Wq).

    base: what the adapter was trained on, (outputs, inputs).
    """

    adapted: Adapted
    base: Matrix

    @property
    def dtype(self) -> str:
        """As the factors are stored."""
        return self.adapted.dtype

    @property
    def nbytes(self) -> int:
        """Bytes to read of the adapter and of its base."""
        return self.adapted.nbytes + self.base.nbytes


class OtherBaseReader:
    """The weights of an `OnOtherBase`, in float32, rectangle by rectangle."""

    share: ClassVar[float] = 1.0

    def __init__(self, tuned: OnOtherBase) -> None:
        self._base = MatrixReader(tuned.base)
        self._change = ChangeReader(tuned.adapted, tuned.base)

    def __enter__(self) -> Self:
        self._base.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._base.__exit__()

    @property
    def wants_whole_rows(self) -> bool:
        """Whether its base or its change does."""
        return self._base.wants_whole_rows or self._change.wants_whole_rows

    def beside(self, base: Array, at: Rectangle) -> Array:
        """The tuned weights of a rectangle; what the compared base holds there does not matter."""
        w0 = self._base.read(at)
        tuned: Array = widen(w0) + self._change.beside(w0, at)
        return tuned


def _squares(w0: Array, change: Array, axis: int) -> Floats:
    """Σv² along an axis: V in float64, or its rounding would outweigh the change of a short run."""
    v: Floats = np.add(w0, change, dtype=np.float64)
    squares: Floats = np.einsum("ij,ij->i" if axis else "ij,ij->j", v, v)
    return squares


def _ratio(magnitude: Floats, norm: Floats) -> Floats:
    """m/‖V‖; a zero column of V has no direction: W' is zero there, as a limit (PEFT gives NaN)."""
    return np.divide(magnitude, norm, out=np.zeros_like(norm), where=norm > 0)
