"""Singular values and vectors of one large matrix: exactly, or from random samples of its range.

A matrix is given as terms, arrays of one shape of which it is the sum: W = W0 + ΔW need not be
formed. Everything is computed in float64, a strip of rows at a time.

exact         eigenvalues of the Gram matrix of the smaller side, W Wᵀ or WᵀW, by LAPACK; singular
              values below about 1e-8 of the largest are lost in its rounding
randomised    Q, an orthonormal basis of (WᵀW)^q Ω, Ω Gaussian; then the SVD of WQ
              Halko, Martinsson and Tropp, arXiv:0909.4061, algorithms 4.4 and 5.1
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from wdecomp.dtypes import Array, Floats

Terms = tuple[Array, ...]

STRIP_BYTES = 32 << 20  # of float64 rows at a time
OVERSAMPLED = 10  # directions more than are asked for
POWER = 4  # q
SEED = 2402_09353
NEGLIGIBLE = 1e-6  # of the largest singular value: what counts as zero, and has no direction


@dataclass(frozen=True)
class Singular:
    """Singular values and vectors of a matrix, the largest first; what counts as zero is left out.

    terms: the matrix, (m, n).
    values: σ, (k,).
    small: the vectors on the smaller side, (min(m, n), k): v if m > n, else u.
    complete: whether these are all.
    """

    terms: Terms
    values: Floats
    small: Floats
    complete: bool

    @property
    def is_tall(self) -> bool:
        """Whether the smaller side is that of the inputs."""
        outputs, inputs = self.terms[0].shape
        return bool(outputs > inputs)

    def first(self, count: int) -> "Singular":
        """The leading ones alone."""
        complete = self.complete and count >= len(self.values)
        return Singular(self.terms, self.values[:count], self.small[:, :count], complete)

    @property
    def left(self) -> Floats:
        """The u, (m, k): W v/σ where the v are known."""
        return times(self.terms, self.small) / self.values if self.is_tall else self.small

    @property
    def right(self) -> Floats:
        """The v, (n, k): Wᵀu/σ where the u are known."""
        if self.is_tall:
            return self.small
        return transposed_times(self.terms, self.small) / self.values

    def left_cosines(self, vectors: Floats) -> Floats:
        """|uᵀx|, (k, x's), of unit vectors (m, x's); no u is formed that is not there."""
        if not self.is_tall:
            return np.abs(self.small.T @ vectors)
        along = self.small.T @ transposed_times(self.terms, vectors)
        return np.asarray(np.abs(along) / self.values[:, None])

    def residual(self) -> float:
        """The largest ‖Wᵀ(W v) − σ²v‖/σ₁² (or with u): 0 for true singular vectors."""
        if not self.values.size:
            return 0.0
        terms = self.terms if self.is_tall else _transposed(self.terms)
        left_over = transposed_times(terms, times(terms, self.small)) - self.values**2 * self.small
        return float(np.linalg.norm(left_over, axis=0).max() / self.values[0] ** 2)


def singular(terms: Terms, count: int | None = None) -> Singular:
    """The `count` largest, or all, by LAPACK."""
    import scipy.linalg  # a quarter of a second that only spectra need

    squares = gram(terms)
    size = len(squares)
    if count is None or count >= size:
        found, vectors = np.linalg.eigh(squares)
    else:
        found, vectors = scipy.linalg.eigh(squares, subset_by_index=(size - count, size - 1))
    return _kept(terms, _roots(found), vectors[:, ::-1], count is None or count >= size)


def sampled(terms: Terms, count: int) -> Singular:
    """About the `count` largest, from random samples with a fixed seed."""
    tall = terms if terms[0].shape[0] > terms[0].shape[1] else _transposed(terms)
    size = tall[0].shape[1]
    wide = min(count + OVERSAMPLED, size)
    basis = np.random.default_rng(SEED).standard_normal((size, wide))
    for _ in range(POWER):
        basis = np.linalg.qr(transposed_times(tall, times(tall, basis)))[0]
    _, values, turned = np.linalg.svd(np.linalg.qr(times(tall, basis)).R)
    found = _kept(terms, values, basis @ turned.T, complete=wide == size)
    return found if found.complete else found.first(count)


def singular_values(terms: Terms) -> Floats:
    """All singular values, by LAPACK."""
    return _roots(np.asarray(np.linalg.eigvalsh(gram(terms)), np.float64))


def product_values(left: Array, right: Array) -> Floats:
    """All singular values of L·R that are not 0 by its shape: those of R_L·R_Rᵀ, r×r.

    L = Q_L R_L and Rᵀ = Q_R R_R; nothing as large as the product is formed.

    Args:
        left: L, (m, r).
        right: R, (r, n).
    """
    of_left = np.linalg.qr(left.astype(np.float64)).R
    of_right = np.linalg.qr(right.T.astype(np.float64)).R
    return np.asarray(np.linalg.svd(of_left @ of_right.T, compute_uv=False))


def gram(terms: Terms) -> Floats:
    """W Wᵀ or WᵀW, the smaller of them."""
    outputs, inputs = terms[0].shape
    if outputs <= inputs:
        terms = _transposed(terms)
    total = np.zeros((min(outputs, inputs),) * 2)
    for _, strip in _strips(terms):
        total += strip.T @ strip
    return total


def times(terms: Terms, right: Floats) -> Floats:
    """W·X."""
    found = np.empty((terms[0].shape[0], right.shape[1]))
    for rows, strip in _strips(terms):
        found[rows] = strip @ right
    return found


def transposed_times(terms: Terms, left: Floats) -> Floats:
    """Wᵀ·X."""
    found = np.zeros((terms[0].shape[1], left.shape[1]))
    for rows, strip in _strips(terms):
        found += strip.T @ left[rows]
    return found


def _strips(terms: Terms) -> Iterator[tuple[slice, Floats]]:
    """Some rows of the sum at a time, in float64."""
    rows, columns = terms[0].shape
    height = max(STRIP_BYTES // (8 * columns), 1)
    for top in range(0, rows, height):
        here = slice(top, min(top + height, rows))
        strip = terms[0][here].astype(np.float64)
        for term in terms[1:]:
            strip += term[here]
        yield here, strip


def _transposed(terms: Terms) -> Terms:
    return tuple(term.T for term in terms)


def _roots(squares: Floats) -> Floats:
    """Descending singular values from ascending eigenvalues."""
    return np.sqrt(np.maximum(squares[::-1], 0))


def _kept(terms: Terms, values: Floats, small: Floats, complete: bool) -> Singular:
    count = int((values > NEGLIGIBLE * values[0]).sum())
    return Singular(terms, values[:count], small[:, :count], complete)
