"""Updates of low rank: ΔW = L·R with L (outputs, r) and R (r, inputs).

LoRA      ΔW = s·BA                                    arXiv:2106.09685, Eq. (3)
LoCon     R = Σ_q core[p, q, k]·A[q, in]               Tucker form of a convolution (LyCORIS)
AdaLoRA   ΔW = s·B diag(E) A,  s = alpha/(r0 + 1e-5)   arXiv:2303.10512, Eq. (3); s as in PEFT
DeLoRA    ΔW = B diag(λ/(r‖Aᵢ‖‖Bᵢ‖)) A diag(‖W‖)       arXiv:2503.18225, as in PEFT
"""

from dataclasses import dataclass, field
from math import prod
from typing import ClassVar

import numpy as np

from wdecomp.adapter.change import Index, fit, numbers
from wdecomp.adapter.thin import ThinProduct, wants_float64
from wdecomp.checkpoint import Matrix, PlainTensor
from wdecomp.decomposition import LowRankBlock, runs_along_rows
from wdecomp.dtypes import Array


@dataclass(frozen=True)
class Product:
    """ΔW = left·right."""

    left: Array  # (outputs, r)
    right: Array  # (r, inputs)
    needs_inputs: ClassVar[bool] = False
    needs_outputs: ClassVar[bool] = False
    _thin: ThinProduct = field(default_factory=ThinProduct)

    def delta(self, w0: Array, outputs: Index, inputs: slice) -> Array:
        """Laid out in memory as `w0` is, for the kernel."""
        if runs_along_rows(w0):
            return self._thin.of(self.left, outputs, self.right, inputs)
        return self._thin.of(self.right.T, inputs, self.left.T, outputs).T

    @property
    def is_float64(self) -> bool:
        """Whether it is formed so."""
        return wants_float64(self.left, self.right)

    def factors(self, w0: Array, outputs: Index, inputs: slice) -> LowRankBlock:
        """`delta`, not multiplied yet; in float32."""
        if runs_along_rows(w0):
            return self._thin.factors(self.left, outputs, self.right, inputs)
        return self._thin.factors(self.right.T, inputs, self.left.T, outputs).T


@dataclass(frozen=True)
class Expert:
    """Which expert of a stack an update is about; all have their factors in the same two tensors.

    A lists the experts' rows one expert after the other, B's columns run over the experts first.
    transposed: A belongs to the outputs and B to the inputs.
    """

    which: int
    of: int
    transposed: bool


@dataclass(frozen=True)
class LowRank:
    """LoRA, of linear layers, embeddings, convolutions (with a core: LoCon) and expert stacks.

    a: (r, in…), b: (out, r…), core: (r, r, k…).
    """

    a: PlainTensor
    b: PlainTensor
    scaling: float
    core: PlainTensor | None = None
    expert: Expert | None = None
    formula: ClassVar[str] = "W0 + s·BA"

    @property
    def rank(self) -> int:
        """The r of A and B, of one expert."""
        return self.a.shape[0] // (self.expert.of if self.expert else 1)

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs·kernel) of the weight that it changes."""
        kernel = self.core.shape[2:] if self.core else ()
        shape = self.b.shape[0], prod(self.a.shape[1:]) * prod(kernel)
        return (shape[1], shape[0]) if self.expert and self.expert.transposed else shape

    @property
    def tensors(self) -> tuple[PlainTensor, ...]:
        """A, B and the core."""
        return (self.a, self.b, *([self.core] if self.core else []))

    def fits(self, shape: tuple[int, int]) -> bool:
        """Whether it is of this shape."""
        return fit(self.shape, shape)

    def load(self, weight: Matrix) -> Product:
        """The product s·B · A."""
        a, b = _flat(numbers(self.a)), _flat(numbers(self.b)) * np.float32(self.scaling)
        if self.core is not None:
            a = tucker(numbers(self.core), a)
        if self.expert is None:
            return Product(b, a)
        which, of = self.expert.which, self.expert.of
        a, b = a.reshape(of, -1, a.shape[1])[which], b.reshape(b.shape[0], -1, of)[:, :, which]
        return Product(a.T, b.T) if self.expert.transposed else Product(b, a)


@dataclass(frozen=True)
class ExpertStack:
    """LoRA of a stack of experts (PEFT's target_parameters): a record for each is made of it.

    a: (experts·r, in), b: (out, r·experts).
    """

    a: PlainTensor
    b: PlainTensor
    scaling: float
    experts: int
    formula: ClassVar[str] = "W0 + s·BA for each expert"

    @property
    def rank(self) -> int:
        """Of one expert."""
        return self.a.shape[0] // self.experts

    @property
    def tensors(self) -> tuple[PlainTensor, ...]:
        """A and B."""
        return self.a, self.b

    @property
    def sides(self) -> tuple[int, int]:
        """Lengths of what A and B belong to: (inputs, outputs), or the other way round."""
        return self.a.shape[1], self.b.shape[0]

    def expert(self, which: int, transposed: bool) -> LowRank:
        """The update of one expert."""
        return LowRank(self.a, self.b, self.scaling, expert=Expert(which, self.experts, transposed))


@dataclass(frozen=True)
class AdaLora:
    """a: (r, in), e: (r, 1), b: (out, r)."""

    a: PlainTensor
    e: PlainTensor
    b: PlainTensor
    scaling: float
    formula: ClassVar[str] = "W0 + s·B diag(E) A"

    @property
    def rank(self) -> int:
        """Of what pruning has left."""
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)."""
        return self.b.shape[0], self.a.shape[1]

    @property
    def tensors(self) -> tuple[PlainTensor, ...]:
        """A, E and B."""
        return self.a, self.e, self.b

    def fits(self, shape: tuple[int, int]) -> bool:
        """Whether it is of this shape."""
        return fit(self.shape, shape)

    def load(self, weight: Matrix) -> Product:
        """The product s·B · diag(E) A."""
        return Product(
            numbers(self.b) * np.float32(self.scaling), numbers(self.a) * numbers(self.e)
        )


@dataclass(frozen=True)
class DeLora:
    """a: (r, in), b: (out, r), strength: (1,), norms: (in,) of the base's inputs."""

    a: PlainTensor
    b: PlainTensor
    strength: PlainTensor
    norms: PlainTensor
    scaling: ClassVar[None] = None
    formula: ClassVar[str] = "W0 + B diag(λ/(r‖Aᵢ‖‖Bᵢ‖)) A diag(‖W0‖)"

    @property
    def rank(self) -> int:
        """The r of A and B."""
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)."""
        return self.b.shape[0], self.a.shape[1]

    @property
    def tensors(self) -> tuple[PlainTensor, ...]:
        """All four."""
        return self.a, self.b, self.strength, self.norms

    def fits(self, shape: tuple[int, int]) -> bool:
        """Whether it is of this shape."""
        return fit(self.shape, shape)

    def load(self, weight: Matrix) -> Product:
        """The product B diag(λ/(r‖Aᵢ‖‖Bᵢ‖)) · A diag(‖W‖)."""
        a, b = numbers(self.a), numbers(self.b)
        size = np.maximum(np.linalg.norm(a, axis=1), 1e-4)  # PEFT's floors
        size = size * np.maximum(np.linalg.norm(b, axis=0), 1e-4)
        strength = numbers(self.strength).reshape(())
        return Product(b * (strength / self.rank / size), a * numbers(self.norms))


def tucker(core: Array, inner: Array) -> Array:
    """Σ_q core[p, q, k]·inner[q, in], as (p, in·k): the kernel runs fastest."""
    ranks = core.shape[:2]
    wide = np.einsum("pqk,qi->pik", core.reshape(*ranks, -1), inner)
    return np.asarray(wide.reshape(ranks[0], -1))


def _flat(factor: Array) -> Array:
    return factor.reshape(factor.shape[0], -1)
