"""Updates that rotate the inputs: W' = s·W·Tᵀ with an orthogonal T, so ΔW = W·(T − I)ᵀ.

    Cayley        R = (I + Q)⁻¹(I − Q), Q skew          R − I = −2(I + Q)⁻¹Q
    Neumann       R = I + 2Q + 2Q² + … + Qⁿ⁻¹           PEFT's series of n terms, its default
    OFT           T = diag(R₁, R₂, …)                   arXiv:2306.07280, as in PEFT
    BOFT          T = Π PᵢDᵢPᵢᵀ, Dᵢ block diagonal       arXiv:2311.06243, Eq. (3)
    HRA           Tᵀ = Π (I − 2ûᵢûᵢᵀ)                    Householder, arXiv:2405.17484

T − I is formed as written on the right, not by subtraction, for rotations are small.
"""

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np

from wdecomp.adapter.change import Change, Index, fit, numbers
from wdecomp.checkpoint import Matrix, PlainTensor
from wdecomp.dtypes import Array, Floats, widen


@dataclass(frozen=True)
class Oft:
    """weight: (blocks, b(b − 1)/2) upper triangles of Q, or (1, …) where all blocks share one.

    neumann_terms: length of the series; None for the exact Cayley transform.
    constraint: largest ‖Q‖ of a block (COFT), before division by √blocks; None for any.
    """

    weight: PlainTensor
    block: int
    neumann_terms: int | None
    constraint: float | None = None
    rank: ClassVar[None] = None
    scaling: ClassVar[None] = None
    formula: ClassVar[str] = "W0·Rᵀ, R block diagonal"

    @property
    def tensors(self) -> tuple[PlainTensor, ...]:
        """The one tensor."""
        return (self.weight,)

    @property
    def shape(self) -> tuple[int | None, int | None]:
        """(outputs, inputs)."""
        return None, (None if self.weight.shape[0] == 1 else self.weight.shape[0] * self.block)

    def fits(self, shape: tuple[int, int]) -> bool:
        """Whether its blocks cover the inputs."""
        return fit(self.shape, shape) and shape[1] % self.block == 0

    def load(self, weight: Matrix) -> "BlockRotation":
        """R − I of every block."""
        triangles = numbers(self.weight).astype(np.float64)
        q = np.zeros((len(triangles), self.block, self.block))
        rows, columns = np.triu_indices(self.block, 1)
        q[:, rows, columns] = triangles
        q -= q.swapaxes(1, 2)
        if self.constraint is not None:
            q = _bounded(q, self.constraint / np.sqrt(len(q)))
        moved = cayley(q) if self.neumann_terms is None else neumann(q, self.neumann_terms)
        return BlockRotation(moved)


@dataclass(frozen=True)
class BlockRotation:
    """ΔW[:, k] = W[:, k]·(R_k − I)ᵀ for every block k of the inputs."""

    moved: Floats  # (blocks or 1, b, b): R − I
    needs_inputs: ClassVar[bool] = True
    needs_outputs: ClassVar[bool] = False

    def delta(self, w0: Array, outputs: Index, inputs: slice) -> Array:
        """As large as `w0`, twice in passing."""
        return _by_blocks(w0, self.moved)


@dataclass(frozen=True)
class Boft:
    """blocks: (m, inputs/b, b, b), scale: (out, 1)."""

    blocks: PlainTensor
    scale: PlainTensor
    rank: ClassVar[None] = None
    scaling: ClassVar[None] = None
    formula: ClassVar[str] = "s·W0·Rᵀ, R butterfly"

    @property
    def tensors(self) -> tuple[PlainTensor, ...]:
        """The two."""
        return self.blocks, self.scale

    @property
    def shape(self) -> tuple[int | None, int | None]:
        """(outputs, inputs)."""
        return prod(self.scale.shape), self.blocks.shape[1] * self.blocks.shape[2]

    def fits(self, shape: tuple[int, int]) -> bool:
        """Whether its blocks cover the inputs."""
        return fit(self.shape, shape)

    def load(self, weight: Matrix) -> "Butterfly":
        """R − I of every block of every factor."""
        x = numbers(self.blocks).astype(np.float64)
        return Butterfly(
            cayley((x - x.swapaxes(2, 3)) / 2), numbers(self.scale).reshape(-1).astype(np.float64)
        )


@dataclass(frozen=True)
class Butterfly:
    """W' = s·W·(B_m … B_1)ᵀ with B_i = PᵢDᵢPᵢᵀ."""

    moved: Floats  # (m, inputs/b, b, b): R − I
    scale: Floats  # (outputs,)
    needs_inputs: ClassVar[bool] = True
    needs_outputs: ClassVar[bool] = False

    def delta(self, w0: Array, outputs: Index, inputs: slice) -> Array:
        """A few times as large as `w0`, in float64."""
        start = widen(w0).astype(np.float64)
        change = np.zeros_like(start)
        _, blocks, size, _ = self.moved.shape
        for i, moved in enumerate(self.moved):
            order = _butterfly_order(blocks * size, max(blocks >> i, 1), size // 2, i)
            shuffled = np.empty_like(start)
            shuffled[:, order] = start + change
            change += _by_blocks(shuffled, moved)[:, order]
        scale = self.scale[outputs][:, None]
        return scale * change + (scale - 1) * start


@dataclass(frozen=True)
class Hra:
    """u: (in, r); orthogonal: whether Gram-Schmidt is applied to its columns."""

    u: PlainTensor
    orthogonal: bool
    scaling: ClassVar[None] = None
    formula: ClassVar[str] = "W0·Π(I − 2ûûᵀ)"

    @property
    def rank(self) -> int:
        """How many reflections there are."""
        return self.u.shape[1]

    @property
    def tensors(self) -> tuple[PlainTensor, ...]:
        """The one tensor."""
        return (self.u,)

    @property
    def shape(self) -> tuple[int | None, int | None]:
        """(outputs, inputs)."""
        return None, self.u.shape[0]

    def fits(self, shape: tuple[int, int]) -> bool:
        """Whether its blocks cover the inputs."""
        return fit(self.shape, shape)

    def load(self, weight: Matrix) -> Change:
        """Its unit vectors."""
        u = numbers(self.u).astype(np.float64)
        if self.orthogonal:  # QR gives Gram-Schmidt's vectors up to sign, which ûûᵀ has not
            u = np.linalg.qr(u)[0]
        return Reflections(u / np.linalg.norm(u, axis=0))


@dataclass(frozen=True)
class Reflections:
    """W' = W·(I − 2û₁û₁ᵀ)(I − 2û₂û₂ᵀ)…."""

    unit: Floats  # (in, r)
    needs_inputs: ClassVar[bool] = True
    needs_outputs: ClassVar[bool] = False

    def delta(self, w0: Array, outputs: Index, inputs: slice) -> Array:
        """A few times as large as `w0`, in float64; the reflections cancel in pairs at first."""
        start = widen(w0).astype(np.float64)
        turned = start.copy()
        for u in self.unit.T:
            turned -= np.outer(turned @ (2 * u), u)
        change: Array = turned - start
        return change


def cayley(q: Floats) -> Floats:
    """R − I = −2(I + Q)⁻¹Q of skew-symmetric matrices, (…, b, b)."""
    return np.asarray(np.linalg.solve(np.eye(q.shape[-1]) + q, -2 * q), np.float64)


def neumann(q: Floats, terms: int) -> Floats:
    """R − I = 2Q + 2Q² + … + Qⁿ⁻¹: PEFT's series, whose last term has no factor 2.

    With n = 3 it ends in Q³, as with n = 4.
    """
    if terms < 2:
        return np.zeros_like(q)
    found, power = 2 * q, q
    for i in range(2, max(terms, 4) if terms > 2 else 2):
        power = power @ q
        found = found + (power if i == max(terms, 4) - 1 else 2 * power)
    return found


def _by_blocks(w0: Array, moved: Floats) -> Array:
    height, width = w0.shape
    size = moved.shape[-1]
    by_block = widen(w0).astype(np.float64).reshape(height, width // size, size).swapaxes(0, 1)
    turned: Array = by_block @ moved.swapaxes(1, 2)
    return np.asarray(turned.swapaxes(0, 1).reshape(height, width))


def _bounded(q: Floats, most: float) -> Floats:
    norms = np.linalg.norm(q, axis=(1, 2), keepdims=True)
    bounded: Floats = np.where(norms <= most, q, q * (most / np.maximum(norms, 1e-300)))
    return bounded


def _butterfly_order(n: int, blocks: int, half: int, factor: int) -> Array:
    """Which input stands where before the blocks of one butterfly factor are applied."""
    if factor == 0:
        return np.arange(n)
    within = np.arange(n // blocks).reshape(-1, half)
    order = np.concatenate([within[0::2], within[1::2]]).reshape(-1)
    return np.asarray(np.arange(0, n, n // blocks)[:, None] + order).reshape(-1)
