"""Singular values of changes, and where they lie beside the base: one whole pair at a time.

The only part of a comparison that holds whole matrices. All workers share one turn, so that memory
is that of one pair, and whoever has it uses every core.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import isfinite, prod
from threading import Lock
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from wdecomp.adapter import Adapted
from wdecomp.adapter.change import index
from wdecomp.adapter.low_rank import Product
from wdecomp.checkpoint import BLOCK_BYTES, Matrix, MatrixReader
from wdecomp.decomposition.singular import Singular
from wdecomp.decomposition.spectral import (
    Settings,
    Spectrum,
    alignment,
    base_vectors,
    chance_alignment,
    frobenius,
    intruders,
    product_spectrum,
    spectrum,
    tuned_vectors,
)
from wdecomp.dtypes import Array, widen
from wdecomp.pairing import Pair
from wdecomp.scan.measure import tuned_reader

LARGEST = 1 << 29  # weights of a matrix: 2 GiB in float32, twice that for a pair
_TURN = Lock()


@dataclass(frozen=True)
class Spectral:
    """How spectra are found.

    settings: what decides the figures.
    threads: of linear algebra.
    """

    settings: Settings
    threads: int = 1


@dataclass(frozen=True)
class _Base:
    """A whole base matrix in float32, its norm, and its singular vectors where it has any."""

    numbers: Array
    norm: float
    vectors: Singular | None


def spectra(
    pairs: list[Pair], spectral: Spectral, on_bytes: Callable[[int], None]
) -> list[dict[str, Any]]:
    """The row of each pair, without where it is.

    Args:
        pairs: of one parameter, all changed; those of one base share its singular vectors.
        spectral: how they are found.
        on_bytes: told how many bytes more have been gone through.
    """
    found: dict[int, dict[str, Any]] = {}
    by_base: dict[tuple[Matrix, tuple[int, int]], list[int]] = {}
    for i, pair in enumerate(pairs):
        by_base.setdefault((pair.base, pair.shape), []).append(i)
    for (matrix, shape), of in by_base.items():
        if prod(shape) > LARGEST:
            found |= {i: _about(shape, "too large") for i in of}
            continue
        with _TURN, _controller().limit(limits=spectral.threads):
            on_bytes(0)
            base = _base(matrix, shape, spectral.settings)
            on_bytes(matrix.nbytes)
            for i in of:
                found[i] = _row(pairs[i], base, spectral.settings)
                on_bytes(pairs[i].nbytes)
    return [found[i] for i in range(len(pairs))]


@cache
def _controller() -> ThreadpoolController:
    import scipy.linalg  # noqa: F401  it brings a BLAS of its own, which is to be among those found

    return ThreadpoolController()


def _row(pair: Pair, base: _Base, settings: Settings) -> dict[str, Any]:
    delta = _change(pair)
    norm = frobenius(delta)
    if base.vectors is None or not isfinite(norm):
        return _about(pair.shape, "nonfinite")
    if norm == 0:  # a change below what float32 can hold
        return _about(pair.shape, "exact") | {"norm_delta": 0.0}
    product = _product(pair)
    of_delta = spectrum(delta, settings) if product is None else product_spectrum(*product)
    all_found = "exact" if settings.exact(pair.shape) else "randomised"
    return (
        _about(pair.shape, all_found if product is None else "factors")
        | _of_change(of_delta, base.norm)
        | {"vectors_by": all_found}
        | _beside(base, base.vectors, delta, norm, settings)
    )


def _about(shape: tuple[int, int], found_by: str) -> dict[str, Any]:
    return {"outputs": shape[0], "inputs": shape[1], "found_by": found_by}


def _of_change(found: Spectrum, norm_base: float) -> dict[str, Any]:
    low, high = found.effective_rank
    return {
        "norm_delta": found.norm,
        "relative_change": found.norm / norm_base if norm_base else None,
        "spectral_norm": float(found.values[0]),
        "stable_rank": found.stable_rank,
        "effective_rank": low if found.complete else None,
        "effective_rank_low": low,
        "effective_rank_high": high,
        "rank_90": found.energy_rank(0.90),
        "rank_99": found.energy_rank(0.99),
        "remainder": found.remainder,
    }


def _beside(
    base: _Base, vectors: Singular, delta: Array, norm: float, settings: Settings
) -> dict[str, Any]:
    """Where ΔW lies beside W0; nothing beside a base of zeros."""
    if not vectors.values.size:
        return {}
    count = min(settings.leading, len(vectors.values))
    tuned = tuned_vectors(base.numbers, delta, settings)
    figures = {
        "spectral_norm_base": float(vectors.values[0]),
        "leading": count,
        "residual": max(vectors.first(count).residual(), tuned.residual()),
        "alignment": alignment(vectors, delta, norm, count),
        "alignment_chance": chance_alignment((delta.shape[0], delta.shape[1]), count),
    }
    if not tuned.values.size:
        return figures
    like = intruders(vectors, tuned, settings.epsilon)
    return figures | {
        "intruders": like.fewest,
        "intruders_most": like.most,
        "least_cosine": like.least_cosine,
    }


def _base(matrix: Matrix, shape: tuple[int, int], settings: Settings) -> _Base:
    numbers = np.empty(shape, np.float32)
    with MatrixReader(matrix) as reader:
        for at in matrix.rectangles(shape, BLOCK_BYTES):
            numbers[at.outputs, at.inputs] = widen(reader.read(at))
    norm = frobenius(numbers)
    return _Base(numbers, norm, base_vectors(numbers, settings) if isfinite(norm) else None)


def _change(pair: Pair) -> Array:
    """ΔW, whole, in float32."""
    delta = np.empty(pair.shape, np.float32)
    with (
        MatrixReader(pair.base) as reader,
        tuned_reader(pair) as tuned,
        np.errstate(all="ignore"),  # infinity less infinity is counted further on
    ):
        for at in pair.base.rectangles(pair.shape, BLOCK_BYTES):
            w0 = reader.read(at)
            beside = widen(tuned.beside(w0, at))
            change = beside - widen(w0) if tuned.share else beside
            delta[at.outputs, at.inputs] = change
    return delta


def _product(pair: Pair) -> tuple[Array, Array] | None:
    """L and R of a change that is their product, of fewer columns than either side has."""
    tuned = pair.tuned
    if not isinstance(tuned, Adapted) or tuned.magnitude is not None:
        return None
    change = tuned.update.load(tuned.module)
    if not isinstance(change, Product):
        return None
    outputs, inputs = pair.shape
    left = change.left if tuned.outputs is None else change.left[index(tuned.outputs)]
    left, right = left[:outputs], change.right[:, :inputs]
    return (left, right) if left.shape[1] < min(pair.shape) else None
