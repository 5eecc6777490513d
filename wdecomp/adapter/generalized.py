"""GLoRA: a low-rank change of the weight's inputs, and one of the weight itself.

ΔW = s·(W·A1·A2 + B1·B2)      arXiv:2306.07967, as far as LyCORIS has it
"""

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np

from wdecomp.adapter.change import Index, fit, numbers
from wdecomp.adapter.low_rank import tucker
from wdecomp.checkpoint import Matrix, PlainTensor
from wdecomp.dtypes import Array, widen


@dataclass(frozen=True)
class Generalized:
    """a1: (in, r, 1…), a2: (r, in, 1…), b1: (out, r, 1…), b2: (r, in, k…), core: (r, r, k…)."""

    a1: PlainTensor
    a2: PlainTensor
    b1: PlainTensor
    b2: PlainTensor
    scaling: float
    core: PlainTensor | None = None
    formula: ClassVar[str] = "W0 + s·(W0·A1·A2 + B1·B2)"

    @property
    def factors(self) -> tuple[PlainTensor, PlainTensor, PlainTensor, PlainTensor]:
        """The four of every GLoRA."""
        return self.a1, self.a2, self.b1, self.b2

    @property
    def rank(self) -> int:
        """Of both changes."""
        return self.b2.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs·kernel)."""
        kernel = self.core.shape[2:] if self.core else ()
        return self.b1.shape[0], prod(self.b2.shape[1:]) * prod(kernel)

    @property
    def tensors(self) -> tuple[PlainTensor, ...]:
        """Four, and the core."""
        return (*self.factors, *([self.core] if self.core else []))

    def fits(self, shape: tuple[int, int]) -> bool:
        """Whether it is of this shape."""
        return fit(self.shape, shape)

    def load(self, weight: Matrix) -> "ChangedInputs":
        """Its four matrices, s in the left ones."""
        s = np.float32(self.scaling)
        a1, a2, b1, b2 = (_flat(numbers(tensor)) for tensor in self.factors)
        if self.core is not None:
            b2 = tucker(numbers(self.core), b2)
        return ChangedInputs(a1 * s, a2, b1 * s, b2)


@dataclass(frozen=True)
class ChangedInputs:
    """ΔW = W·a1·a2 over the input channels, plus b1·b2."""

    a1: Array
    a2: Array
    b1: Array
    b2: Array
    needs_inputs: ClassVar[bool] = True
    needs_outputs: ClassVar[bool] = False

    def delta(self, w0: Array, outputs: Index, inputs: slice) -> Array:
        """As large as `w0`, three times in passing."""
        by_channel = widen(w0).reshape(w0.shape[0], self.a1.shape[0], -1).swapaxes(1, 2)
        moved = ((by_channel @ self.a1) @ self.a2).swapaxes(1, 2)
        change: Array = self.b1[outputs] @ self.b2 + moved.reshape(w0.shape)
        return change


def _flat(factor: Array) -> Array:
    return factor.reshape(factor.shape[0], -1)
