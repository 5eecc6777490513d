"""What every merge formula ends in: ΔW of any part of one matrix."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from wdecomp.checkpoint import Matrix, PlainTensor, Ranges, count, read_whole
from wdecomp.dtypes import Array, widen

Index = slice | npt.NDArray[np.int64]


class Change(Protocol):
    """ΔW of one module's weight, its factors in memory.

    needs_inputs, needs_outputs: whether a block must hold all inputs of its outputs (a rotation
    of the input mixes them), or all outputs of its inputs.
    """

    needs_inputs: ClassVar[bool]
    needs_outputs: ClassVar[bool]

    def delta(self, w0: Array, outputs: Index, inputs: slice) -> Array:
        """ΔW, (outputs, inputs), of a rectangle; the next call may write over it.

        Args:
            w0: the base's block, as stored; `widen` gives its numbers.
            outputs: where the rectangle lies in the module's weight.
            inputs: likewise.
        """
        ...


class Update(Protocol):
    """What an adapter says of one module: tensors on disk and numbers, nothing read yet."""

    @property
    def formula(self) -> str:
        """W' without a magnitude, for humans."""
        ...

    @property
    def shape(self) -> tuple[int | None, int | None]:
        """(outputs, inputs) of the weight that it changes; None where it leaves one open."""
        ...

    @property
    def rank(self) -> int | None:
        """The r of its factors, if it has one."""
        ...

    @property
    def scaling(self) -> float | None:
        """What its product is multiplied with, if it is."""
        ...

    @property
    def tensors(self) -> tuple[PlainTensor, ...]:
        """All that is to be read of the adapter."""
        ...

    def fits(self, shape: tuple[int, int]) -> bool:
        """Whether a weight of (outputs, inputs) is one that it can change."""
        ...

    def load(self, weight: Matrix) -> Change:
        """Its formula, with the factors read.

        Args:
            weight: of the module, for the formulas that start from the base's own numbers.
        """
        ...


@dataclass(frozen=True)
class Nothing:
    """ΔW = 0: a magnitude alone (NVlabs' Wdecompose_target_modules)."""

    needs_inputs: ClassVar[bool] = False
    needs_outputs: ClassVar[bool] = False
    shape: ClassVar[tuple[None, None]] = (None, None)
    rank: ClassVar[None] = None
    scaling: ClassVar[None] = None
    tensors: ClassVar[tuple[PlainTensor, ...]] = ()
    formula: ClassVar[str] = "W0"

    def fits(self, shape: tuple[int, int]) -> bool:
        """Always."""
        return True

    def load(self, weight: Matrix) -> Change:
        """Itself: there is nothing to read."""
        return self

    def delta(self, w0: Array, outputs: Index, inputs: slice) -> Array:
        """Zeros."""
        return np.zeros(w0.shape, np.float32)


class Memory:
    """Room for one block: memory that is new to a process costs more than what is formed in it."""

    def __init__(self) -> None:
        self._block: Array = np.empty(0)

    def of(self, shape: tuple[int, int], dtype: npt.DTypeLike) -> Array:
        """An array with any content, in the same place as the last one."""
        size = shape[0] * shape[1]
        if self._block.size < size or self._block.dtype != dtype:
            self._block = np.empty(size, dtype)
        return self._block[:size].reshape(shape)


def fit(found: tuple[int | None, int | None], shape: tuple[int, int]) -> bool:
    """Whether two shapes agree where the first says something."""
    return all(mine in (None, theirs) for mine, theirs in zip(found, shape, strict=True))


def numbers(tensor: PlainTensor) -> Array:
    """A factor in its own shape, in float32 (float64 if it is stored so)."""
    return widen(read_whole(tensor))


def index(pieces: Ranges) -> Index:
    """Pieces of an axis as something to index an array with."""
    if len(pieces) == 1:
        return slice(pieces[0].start, pieces[0].stop, pieces[0].step)
    return np.concatenate([np.arange(p.start, p.stop, p.step) for p in pieces])


def positions(at: Index, size: int) -> npt.NDArray[np.int64]:
    """The indices themselves."""
    return np.arange(size)[at]


def length(pieces: Ranges | None, size: int) -> int:
    """How many indices there are, of `size` if no pieces are named."""
    return size if pieces is None else count(pieces)
