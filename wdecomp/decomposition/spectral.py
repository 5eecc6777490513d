"""What the singular values σ₁ ≥ σ₂ ≥ … of a change ΔW say, and where it lies beside W0.

effective rank    exp(−Σ p ln p), p = σ/Σσ            Roy and Vetterli, EUSIPCO 2007
stable rank       ‖ΔW‖F²/σ₁²
energy rank       the least k with Σ_{i≤k} σᵢ² ≥ share·‖ΔW‖F²
alignment         ‖U_kᵀ ΔW V_k‖F/‖ΔW‖F                U_k, V_k: leading vectors of W0
                  (the LoRA paper's section 7.3, arXiv:2106.09685, the other way round)
intruders         leading u of W0 + ΔW with |cos(u, u0)| < ε for every left singular
                  vector u0 of W0                      arXiv:2410.21228, algorithm 1
"""

import math
from dataclasses import dataclass

import numpy as np

from wdecomp.decomposition.singular import (
    Singular,
    product_values,
    sampled,
    singular,
    singular_values,
    times,
)
from wdecomp.dtypes import Array, Floats

ROUNDED = 1e-12  # of ‖X‖²: what sums of squares may be off by


@dataclass(frozen=True)
class Settings:
    """How spectra are found; the defaults for intruders are those of the paper's own code.

    leading: k, of alignment and intruders.
    epsilon: ε, of intruders.
    exact_side: the longest smaller side for which everything is found exactly.
    sampled: how many singular values and vectors are found of larger matrices.
    """

    leading: int = 10
    epsilon: float = 0.5
    exact_side: int = 4096
    sampled: int = 128

    def exact(self, shape: tuple[int, ...]) -> bool:
        """Whether a matrix of this shape is decomposed exactly."""
        return min(shape) <= self.exact_side


@dataclass(frozen=True)
class Spectrum:
    """Singular values of a matrix, the largest first: all, or the leading ones.

    values: the ones found.
    norm: ‖·‖F of the matrix, not of what was found.
    size: how many there are at most.
    complete: whether the others are 0.
    """

    values: Floats
    norm: float
    size: int
    complete: bool

    @property
    def remainder(self) -> float:
        """‖X − X_k‖F/‖X‖F, X_k what the values found make up of X; 0 if they are all."""
        if self.complete:
            return 0.0
        return math.sqrt(self._unfound) / self.norm

    @property
    def stable_rank(self) -> float:
        """‖X‖F²/σ₁²."""
        return (self.norm / float(self.values[0])) ** 2

    @property
    def effective_rank(self) -> tuple[float, float]:
        """The least and the most that exp(−Σ p ln p) can be; equal where all values are known.

        Of the n values not found, Σσ² = ρ² is known, and that none is above the last one found, s:
        their sum is between ρ²/s and √n·ρ. At the most they are equal. For the least, exp(H) is at
        least (Σσ)²/Σσ², as Rényi's entropy falls with its order.
        """
        if self.complete:
            known = _effective_rank(self.values, 0, 0.0)
            return known, known
        count, rest = self.size - len(self.values), self._unfound
        inexact = ROUNDED * self.norm**2
        last = float(self.values[-1])
        least = float(self.values.sum()) + max(rest - inexact, 0.0) / last
        each = min(math.sqrt((rest + inexact) / count), last)
        return (least / self.norm) ** 2, _effective_rank(self.values, count, each)

    def energy_rank(self, share: float) -> int | None:
        """How many values hold this share of ‖X‖F²; None if the ones found do not."""
        held = np.cumsum(self.values**2)
        total = float(held[-1]) if self.complete else self.norm**2
        reached = held >= (share - ROUNDED) * total
        return int(reached.argmax()) + 1 if reached[-1] else None

    @property
    def _unfound(self) -> float:
        return max(self.norm**2 - float((self.values**2).sum()), 0.0)


@dataclass(frozen=True)
class Intruders:
    """Leading left singular vectors of the tuned W that no singular vector of W0 is like.

    fewest, most: how many there are; they differ where not all vectors of W0 were found.
    least_cosine: the smallest, over W's leading vectors, of the largest |cos| with one found of W0.
    """

    fewest: int
    most: int
    least_cosine: float


def spectrum(delta: Array, settings: Settings) -> Spectrum:
    """Of a dense matrix."""
    norm, size = frobenius(delta), min(delta.shape)
    if settings.exact(delta.shape):
        return Spectrum(singular_values((delta,)), norm, size, complete=True)
    found = sampled((delta,), settings.sampled)
    return Spectrum(found.values, norm, size, found.complete)


def product_spectrum(left: Array, right: Array) -> Spectrum:
    """Of L·R, (m, r)·(r, n), from r×r factors."""
    values = product_values(left, right)
    size = min(left.shape[0], right.shape[1])
    return Spectrum(values, float(np.linalg.norm(values)), size, complete=True)


def base_vectors(w0: Array, settings: Settings) -> Singular:
    """The singular vectors of W0: all, or the leading ones of a large one."""
    return singular((w0,)) if settings.exact(w0.shape) else sampled((w0,), settings.sampled)


def tuned_vectors(w0: Array, delta: Array, settings: Settings) -> Singular:
    """The k leading singular vectors of W0 + ΔW."""
    terms = w0, delta
    if settings.exact(w0.shape):
        return singular(terms, settings.leading)
    return sampled(terms, settings.sampled).first(settings.leading)


def alignment(base: Singular, delta: Array, norm: float, count: int) -> float:
    """‖U_kᵀ ΔW V_k‖F/‖ΔW‖F, in [0, 1]: how much of ΔW leads from V_k, of W0, to U_k.

    Args:
        base: singular vectors of W0.
        delta: ΔW.
        norm: ‖ΔW‖F.
        count: k.
    """
    leading = base.first(count)
    return float(np.linalg.norm(leading.left.T @ times((delta,), leading.right))) / norm


def chance_alignment(shape: tuple[int, int], count: int) -> float:
    """k/√(mn): the root of what alignment² is on average for a ΔW of independent entries.

    >>> chance_alignment((400, 100), 10)
    0.05
    """
    return count / math.sqrt(shape[0] * shape[1])


def intruders(base: Singular, tuned: Singular, epsilon: float) -> Intruders:
    """Which of the tuned W's leading left vectors are intruders.

    >>> w0, delta = np.diag([3.0, 2.0, 0.0]), np.diag([0.0, 0.0, 5.0])
    >>> two = Settings(leading=2)
    >>> intruders(base_vectors(w0, two), tuned_vectors(w0, delta, two), 0.5)
    Intruders(fewest=1, most=1, least_cosine=0.0)

    Where not all u0 are known, one that is not cannot be closer to u than √(1 − Σcos²), what those
    known leave of it.

    Args:
        base: singular vectors of W0.
        tuned: the k leading ones of W0 + ΔW.
        epsilon: ε.
    """
    cosines = base.left_cosines(tuned.left)
    closest = cosines.max(axis=0)
    at_most = closest
    if not base.complete:
        outside = np.sqrt(np.maximum(1 - (cosines**2).sum(axis=0), 0))
        at_most = np.maximum(closest, outside)
    return Intruders(
        fewest=int((at_most < epsilon).sum()),
        most=int((closest < epsilon).sum()),
        least_cosine=float(closest.min()),
    )


def frobenius(matrix: Array) -> float:
    """‖·‖F, summed in float64."""
    return math.sqrt(float(np.einsum("ij,ij->", matrix, matrix, dtype=np.float64)))


def _effective_rank(values: Floats, more: int, each: float) -> float:
    """exp(−Σ p ln p) of these values and so many more that are equal."""
    total = float(values.sum()) + more * each
    shares = values[values > 0] / total
    entropy = -float((shares * np.log(shares)).sum())
    if more and each:
        entropy -= more * each / total * math.log(each / total)
    return math.exp(entropy)
