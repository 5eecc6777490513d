"""Updates that need no product: rows or columns scaled, something added, rows replaced.

IA³                ΔW = (l − 1)·W along one axis       Liu et al. 2022 (arXiv:2205.05638)
a stored change    ΔW = s·D                            LyCORIS "full", `diff`, `w_norm`
                   W' = D0 + s·D                       PEFT: lora_bias beside bias="all"
trainable tokens   W'[i] = D[j]                        PEFT: for the rows i that the config names
"""

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from wdecomp.adapter.change import Index, fit, numbers, positions
from wdecomp.checkpoint import Matrix, PlainTensor
from wdecomp.decomposition import Axis
from wdecomp.dtypes import Array, Floats, widen


@dataclass(frozen=True)
class Scaling:
    """factors: one for each feature of the axis; for each input channel, of a convolution.

    neutral: the factor that changes nothing, 1 in PEFT's IA³ and 0 in LyCORIS'.
    """

    factors: PlainTensor
    axis: Axis
    neutral: float = 1.0
    rank: ClassVar[None] = None
    scaling: ClassVar[None] = None
    formula: ClassVar[str] = "l·W0"

    @property
    def tensors(self) -> tuple[PlainTensor, ...]:
        """The one tensor."""
        return (self.factors,)

    @property
    def shape(self) -> tuple[int | None, int | None]:
        """(outputs, inputs)."""
        return (prod(self.factors.shape), None) if self.axis == "output" else (None, None)

    def fits(self, shape: tuple[int, int]) -> bool:
        """Whether it has a factor for each feature, or input channel."""
        return fit(self.shape, shape) and (
            self.axis == "output" or shape[1] % prod(self.factors.shape) == 0
        )

    def load(self, weight: Matrix) -> "Scaled":
        """The l − 1, repeated over the kernel of a convolution."""
        growth = numbers(self.factors).reshape(-1).astype(np.float64) - self.neutral
        if self.axis == "input":
            growth = np.repeat(growth, weight.shape[1] // growth.size)
        return Scaled(growth, self.axis)


@dataclass(frozen=True)
class Scaled:
    """ΔW = growth·W along an axis."""

    growth: Floats
    axis: Axis
    needs_inputs: ClassVar[bool] = False
    needs_outputs: ClassVar[bool] = False

    def delta(self, w0: Array, outputs: Index, inputs: slice) -> Array:
        """As large as `w0`, in float64."""
        return widen(w0) * (
            self.growth[outputs][:, None] if self.axis == "output" else self.growth[inputs]
        )


@dataclass(frozen=True)
class Added:
    """A change that is stored as it is, laid out as the weight or bias that it is added to.

    instead: what takes the place of the base before the change is added, if anything does.
    """

    change: PlainTensor
    scaling: float = 1.0
    instead: PlainTensor | None = None
    rank: ClassVar[None] = None
    formula: ClassVar[str] = "W0 + s·D"

    @property
    def tensors(self) -> tuple[PlainTensor, ...]:
        """The change, and what it is added to if that is not the base."""
        return (self.change, *([self.instead] if self.instead else []))

    @property
    def shape(self) -> tuple[int | None, int | None]:
        """(outputs, inputs)."""
        return None, None

    def fits(self, shape: tuple[int, int]) -> bool:
        """Whether it has as many elements."""
        return prod(self.change.shape) == prod(shape)

    def load(self, weight: Matrix) -> "Stored":
        """All of it, as (outputs, inputs)."""
        stored = numbers(self.change).reshape(weight.stored_shape) * np.float32(self.scaling)
        if self.instead is None:
            return Stored(stored.T if weight.input_first else stored)
        stored = stored + numbers(self.instead).reshape(weight.stored_shape)
        return Stored(stored.T if weight.input_first else stored, replaces=True)


@dataclass(frozen=True)
class Stored:
    """ΔW itself, or W' if it replaces."""

    change: Array
    replaces: bool = False
    needs_inputs: ClassVar[bool] = False
    needs_outputs: ClassVar[bool] = False

    def delta(self, w0: Array, outputs: Index, inputs: slice) -> Array:
        """A part of it."""
        part: Array = self.change[outputs, inputs]
        return part - widen(w0).astype(np.float64) if self.replaces else part


@dataclass(frozen=True)
class Tokens:
    """New rows of an embedding or a head: rows (n, dim), which (n,) of the vocabulary."""

    rows: PlainTensor
    which: tuple[int, ...]
    rank: ClassVar[None] = None
    scaling: ClassVar[None] = None
    formula: ClassVar[str] = "new rows for some tokens"

    @property
    def tensors(self) -> tuple[PlainTensor, ...]:
        """The one tensor."""
        return (self.rows,)

    @property
    def shape(self) -> tuple[int | None, int | None]:
        """(outputs, inputs)."""
        return None, None

    def fits(self, shape: tuple[int, int]) -> bool:
        """Whether the weight has such rows."""
        return (self.rows.shape[1] in shape) and max(self.which, default=0) < max(shape)

    def load(self, weight: Matrix) -> "NewRows":
        """The rows, and which of them belongs to which token."""
        vocabulary = weight.stored_shape[0]
        row_of = np.full(vocabulary, -1)
        row_of[list(self.which)] = np.arange(len(self.which))
        return NewRows(numbers(self.rows).reshape(-1, prod(self.rows.shape[1:])), row_of,
                       weight.input_first)  # fmt: skip


@dataclass(frozen=True)
class NewRows:
    """ΔW of a token is its new row less its old one, and 0 for all others."""

    rows: Array
    row_of: npt.NDArray[np.int64]  # by token; −1 for a token that keeps its row
    tokens_are_inputs: bool
    needs_inputs: ClassVar[bool] = False
    needs_outputs: ClassVar[bool] = False

    def delta(self, w0: Array, outputs: Index, inputs: slice) -> Array:
        """As large as `w0`, mostly zeros."""
        along: Index = inputs if self.tokens_are_inputs else outputs
        across: Index = outputs if self.tokens_are_inputs else inputs
        weights = widen(w0)
        old = weights.T if self.tokens_are_inputs else weights
        change = np.zeros(old.shape)
        row = self.row_of[positions(along, len(self.row_of))]
        new = row >= 0
        change[new] = self.rows[row[new]][:, across].astype(np.float64) - old[new]
        return change.T if self.tokens_are_inputs else change
