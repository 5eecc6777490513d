"""What an adapter adds to its base, block by block, whatever its formula.

    DoRA    W' = m·V/‖V‖ with V = W0 + D                      DoRA paper, Eq. (5)
            ΔW = (g − 1)·W0 + g·D with g = m/‖V‖

where D is the change of any other kind (s·BA for DoRA proper), and ‖V‖ is taken per output feature
or per input feature (a channel, in a convolution). D is formed in float32 or wider and ‖V‖ in
float64. ΔW is never added to W0 or rounded to the dtype of the base, which would lose most of it.
"""

import sys
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Self

import numpy as np

from wdecomp.adapter.change import Index, Memory, Update, index, numbers
from wdecomp.adapter.directions import rescaled, squares
from wdecomp.adapter.low_rank import Product
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
from wdecomp.decomposition import Axis, LowRankBlock
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

    def in_module(self, outputs: slice) -> Index:
        """Where some outputs of the matrix are in its module."""
        return outputs if self.outputs is None else index(cut(self.outputs, outputs))

    @property
    def dtype(self) -> str:
        """As its factors are stored."""
        return self.tensors[0].dtype

    @property
    def nbytes(self) -> int:
        """Bytes to read of the adapter."""
        return sum(tensor.nbytes for tensor in self.tensors)


class _Reader:
    """What has read its factors, so that nothing is open."""

    share: ClassVar[float] = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class ChangeReader(_Reader):
    """ΔW of one adapted matrix, rectangle by rectangle, beside the base's block.

    change: of its module, without a magnitude.
    """

    def __init__(self, adapted: Adapted, base: Matrix) -> None:
        self._base, self._adapted = base, adapted
        with np.errstate(all="ignore"):  # of a damaged adapter; NaN is counted further on
            self.change = adapted.update.load(adapted.module)
        self._memory, self._magnitude = Memory(), np.empty(0)
        if adapted.magnitude is not None:
            values = numbers(adapted.magnitude.values)
            self._magnitude = values.reshape(-1).astype(np.float64)

    @property
    def sight(self) -> int:
        """None: what is formed should not leave the cache before it is used."""
        return 0

    def beside(self, base: Array, at: Rectangle) -> Array:
        """ΔW of a rectangle, (outputs, inputs), laid out in memory as `base` is where it can be."""
        with np.errstate(all="ignore"):  # columns of NaN and infinity are counted further on
            change = self._inner(base, at)
            magnitude = self._adapted.magnitude
            if magnitude is None:
                return change
            growth = self._growth(base, change, at, magnitude.axis)
            return rescaled(base, change, growth, magnitude.axis, self._memory)

    def _inner(self, base: Array, at: Rectangle) -> Array:
        """D of a rectangle."""
        outputs = self._adapted.in_module(at.outputs)
        inputs = self._adapted.module.shape[1]
        partial_inputs = at.inputs != slice(0, inputs)
        partial_outputs = self._adapted.outputs is not None or at.outputs != slice(
            0, self._base.shape[0]
        )
        needs = self.change
        if (needs.needs_inputs and partial_inputs) or (needs.needs_outputs and partial_outputs):
            part: Array = self._whole[outputs][:, at.inputs]
            return part
        return self.change.delta(base, outputs, at.inputs)

    @cached_property
    def _whole(self) -> Array:
        """D of all of the module: where a block does not hold what its formula needs."""
        module = self._adapted.module
        outputs, inputs = module.shape
        base = read_matrix(module)
        return self.change.delta(base, slice(0, outputs), slice(0, inputs)).astype(np.float32)

    def _growth(self, base: Array, change: Array, at: Rectangle, axis: Axis) -> Floats:
        """The g = m/‖V‖ of every column of a rectangle along an axis."""
        if axis == "input":
            return np.repeat(_ratio(self._magnitude, self._input_norms), self._kernel)[at.inputs]
        if at.inputs == slice(0, self._base.shape[1]):
            norms = np.sqrt(squares(base, change, "output"))
        else:
            norms = self._output_norms[at.outputs]
        return _ratio(self._magnitude[self._adapted.in_module(at.outputs)], norms)

    @cached_property
    def _output_norms(self) -> Floats:
        """‖V‖ of every output, in a pass of its own: one block does not hold a whole output."""
        return np.sqrt(_total_squares(replace(self._adapted, magnitude=None), self._base, "output"))

    @property
    def _kernel(self) -> int:
        """How many columns an input channel has."""
        return self._adapted.module.shape[1] // self._magnitude.size

    @cached_property
    def _input_norms(self) -> Floats:
        """‖V‖ of every input channel over all outputs of the module."""
        module = self._adapted.module
        of_module = Adapted(self._adapted.update, None, module)
        by_column = _total_squares(of_module, module, "input")
        by_channel: Floats = by_column.reshape(-1, self._kernel).sum(axis=1)
        return np.sqrt(by_channel)


class FactorsReader(_Reader):
    """The same as its factors, for sums that form it where they use it; see `summed_reader`."""

    def __init__(self, adapted: Adapted, product: Product) -> None:
        self._adapted, self._product = adapted, product

    @property
    def sight(self) -> int:
        """Any: nothing is formed that a large block of the base would drive out of the cache."""
        return sys.maxsize

    def beside(self, base: Array, at: Rectangle) -> LowRankBlock:
        """ΔW of a rectangle."""
        return self._product.factors(base, self._adapted.in_module(at.outputs), at.inputs)


def summed_reader(adapted: Adapted, base: Matrix) -> ChangeReader | FactorsReader:
    """What the sums read an adapted matrix by: as its factors, where it is their product alone."""
    reader = ChangeReader(adapted, base)
    product = reader.change
    if adapted.magnitude is None and isinstance(product, Product) and not product.is_float64:
        return FactorsReader(adapted, product)
    return reader


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
    def sight(self) -> int:
        """None, likewise."""
        return 0

    def beside(self, base: Array, at: Rectangle) -> Array:
        """The tuned weights of a rectangle; what the compared base holds there does not matter."""
        w0 = self._base.read(at)
        tuned: Array = widen(w0) + self._change.beside(w0, at)
        return tuned


def _total_squares(adapted: Adapted, base: Matrix, axis: Axis) -> Floats:
    """Σv² of every column of a whole matrix: its own reader, for it writes over what it formed."""
    total = np.zeros(base.shape[0 if axis == "output" else 1])
    with MatrixReader(base) as reader, ChangeReader(adapted, base) as change:
        for at in base.rectangles(base.shape, BLOCK_BYTES):
            block = reader.read(at)
            here = at.outputs if axis == "output" else at.inputs
            total[here] += squares(block, change.beside(block, at), axis)
    return total


def _ratio(magnitude: Floats, norm: Floats) -> Floats:
    """m/‖V‖; a zero column of V has no direction: W' is zero there, as a limit (PEFT gives NaN)."""
    return np.divide(magnitude, norm, out=np.zeros_like(norm), where=norm > 0)
