"""Updates that are products of two matrices, element by element or by Kronecker.

LoHa    ΔW = s·(A1·B1) ∘ (A2·B2)        FedPara, arXiv:2108.06098; LyCORIS, arXiv:2309.14859
LoKr    ΔW = s·(C ⊗ D)                  KronA, arXiv:2212.10650; LyCORIS
"""

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np

from wdecomp.adapter.change import Index, fit, numbers, positions
from wdecomp.adapter.low_rank import tucker
from wdecomp.checkpoint import Matrix, PlainTensor
from wdecomp.dtypes import Array


@dataclass(frozen=True)
class Factored:
    """One matrix of a product, whole or as left·right, in Tucker form with a core for kernels.

    whole: (rows, columns…), or
    left: (rows, r) and right: (r, columns…), or
    left: (r, rows), right: (r, columns) and core: (r, r, k…).
    """

    left: PlainTensor | None = None
    right: PlainTensor | None = None
    core: PlainTensor | None = None
    whole: PlainTensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns·kernel)."""
        if self.whole is not None:
            return self.whole.shape[0], prod(self.whole.shape[1:])
        assert self.left is not None
        assert self.right is not None
        if self.core is not None:
            return self.left.shape[1], self.right.shape[1] * prod(self.core.shape[2:])
        return self.left.shape[0], prod(self.right.shape[1:])

    @property
    def rank(self) -> int | None:
        """The r of left and right; None if it is stored whole."""
        if self.right is None:
            return None
        return self.right.shape[0]

    @property
    def tensors(self) -> tuple[PlainTensor, ...]:
        """All that there are."""
        return tuple(t for t in (self.whole, self.left, self.right, self.core) if t is not None)

    def factors(self) -> tuple[Array, Array]:
        """(rows, r) and (r, columns·kernel)."""
        assert self.left is not None
        assert self.right is not None
        left, right = numbers(self.left), numbers(self.right)
        if self.core is not None:
            return left.T, tucker(numbers(self.core), right)
        return left.reshape(left.shape[0], -1), right.reshape(right.shape[0], -1)

    def matrix(self) -> Array:
        """(rows, columns·kernel): small, in a Kronecker product."""
        if self.whole is not None:
            return numbers(self.whole).reshape(self.shape)
        left, right = self.factors()
        return left @ right


@dataclass(frozen=True)
class Hadamard:
    """LoHa."""

    first: Factored
    second: Factored
    scaling: float
    formula: ClassVar[str] = "W0 + s·(A1·B1) ∘ (A2·B2)"

    @property
    def rank(self) -> int | None:
        """Of each of the two; their product's is up to its square."""
        return self.first.rank

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs·kernel)."""
        return self.first.shape

    @property
    def tensors(self) -> tuple[PlainTensor, ...]:
        """Four to six."""
        return self.first.tensors + self.second.tensors

    def fits(self, shape: tuple[int, int]) -> bool:
        """Whether it is of this shape."""
        return fit(self.shape, shape)

    def load(self, weight: Matrix) -> "HadamardProduct":
        """Its four factors, s in the first."""
        (a1, b1), (a2, b2) = self.first.factors(), self.second.factors()
        return HadamardProduct(a1 * np.float32(self.scaling), b1, a2, b2)


@dataclass(frozen=True)
class HadamardProduct:
    """ΔW = (a1·b1) ∘ (a2·b2)."""

    a1: Array
    b1: Array
    a2: Array
    b2: Array
    needs_inputs: ClassVar[bool] = False
    needs_outputs: ClassVar[bool] = False

    def delta(self, w0: Array, outputs: Index, inputs: slice) -> Array:
        """As large as `w0`, four times in passing."""
        product: Array = self.a1[outputs] @ self.b1[:, inputs]
        product *= self.a2[outputs] @ self.b2[:, inputs]
        return product


@dataclass(frozen=True)
class Kronecker:
    """LoKr: first (a, b) ⊗ second (c, d·k) gives (a·c, b·d·k)."""

    first: Factored
    second: Factored
    scaling: float
    formula: ClassVar[str] = "W0 + s·(C ⊗ D)"

    @property
    def rank(self) -> int | None:
        """Of the factor that has one."""
        return self.second.rank or self.first.rank

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs·kernel)."""
        (a, b), (c, d) = self.first.shape, self.second.shape
        return a * c, b * d

    @property
    def tensors(self) -> tuple[PlainTensor, ...]:
        """Two to five."""
        return self.first.tensors + self.second.tensors

    def fits(self, shape: tuple[int, int]) -> bool:
        """Whether it is of this shape."""
        return fit(self.shape, shape)

    def load(self, weight: Matrix) -> "KroneckerProduct":
        """Its two matrices, s in the first."""
        return KroneckerProduct(
            self.first.matrix() * np.float32(self.scaling), self.second.matrix()
        )


@dataclass(frozen=True)
class KroneckerProduct:
    """ΔW[o, i] = first[o // c, i // d] · second[o % c, i % d]."""

    first: Array
    second: Array
    needs_inputs: ClassVar[bool] = False
    needs_outputs: ClassVar[bool] = False

    def delta(self, w0: Array, outputs: Index, inputs: slice) -> Array:
        """As large as `w0`, twice in passing."""
        (a, b), (c, d) = self.first.shape, self.second.shape
        o, i = positions(outputs, a * c), positions(inputs, b * d)
        product: Array = self.first[np.ix_(o // c, i // d)]
        product *= self.second[np.ix_(o % c, i % d)]
        return product
