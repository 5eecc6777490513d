"""Spectra of arrays: known spectra, scipy's SVD, and intruders made by hand."""

import math

import numpy as np
import pytest
import scipy.linalg
from numpy.testing import assert_allclose

from wdecomp.decomposition.singular import product_values, sampled, singular, singular_values
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
from wdecomp.dtypes import Array, Floats

SHAPES = [(40, 70), (70, 40), (50, 50)]
EXACT = Settings()
SAMPLED = Settings(exact_side=0, sampled=24)
GRAM = 1e-7  # of the largest singular value: half the digits of float64 are left in squares


def _random(shape: tuple[int, int], seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape)


def _with_spectrum(shape: tuple[int, int], values: Floats, seed: int = 0) -> Array:
    """A float32 matrix of these singular values."""
    size = min(shape)
    u = np.linalg.qr(_random((shape[0], size), seed))[0]
    v = np.linalg.qr(_random((shape[1], size), seed + 1))[0]
    return ((u[:, : len(values)] * values) @ v[:, : len(values)].T).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("strip_bytes", [1, 3000, 1 << 20])
def test_values_and_vectors_are_scipys(
    shape: tuple[int, int], strip_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wdecomp.decomposition.singular.STRIP_BYTES", strip_bytes)
    w0, delta = _random(shape).astype(np.float32), _random(shape, 1).astype(np.float32)
    whole = w0.astype(np.float64) + delta
    u, s, vt = scipy.linalg.svd(whole, full_matrices=False)
    for count in (None, 7):
        found = singular((w0, delta), count)
        k = len(found.values)
        assert k == (count or min(shape))
        assert found.complete == (count is None)
        assert_allclose(found.values, s[:k], rtol=1e-9)
        assert_allclose(np.abs((found.left * u[:, :k]).sum(axis=0)), 1, rtol=1e-9)
        assert_allclose(np.abs((found.right * vt[:k].T).sum(axis=0)), 1, rtol=1e-9)
        assert_allclose(found.left_cosines(u), np.abs(found.left.T @ u), atol=1e-9)
        assert found.residual() < 1e-12
    assert not singular((w0, delta)).first(3).complete
    assert_allclose(singular_values((w0, delta)), s, rtol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_random_samples_find_the_leading_ones_and_say_what_they_leave(
    shape: tuple[int, int],
) -> None:
    values = 0.8 ** np.arange(min(shape))
    matrix = _with_spectrum(shape, values)
    found = sampled((matrix,), 20)
    assert_allclose(found.values[:20], values[:20], rtol=1e-5)
    assert not found.complete
    u, _, vt = scipy.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    leading = found.first(5)
    assert_allclose(np.abs((leading.left * u[:, :5]).sum(axis=0)), 1, atol=1e-5)
    assert_allclose(np.abs((leading.right * vt[:5].T).sum(axis=0)), 1, atol=1e-5)
    assert leading.residual() < 1e-6
    of_sample = spectrum(matrix, Settings(exact_side=0, sampled=20))
    rest = math.sqrt(float((values[20:] ** 2).sum() / (values**2).sum()))
    assert_allclose(of_sample.remainder, rest, rtol=1e-3)


def test_an_unconverged_sample_shows_in_its_residual(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wdecomp.decomposition.singular.POWER", 0)
    flat = _random((300, 200)).astype(np.float32)
    assert sampled((flat,), 20).first(5).residual() > 0.05


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_factors_give_the_spectrum_of_their_product(rank: int) -> None:
    left, right = _random((60, rank)), _random((rank, 45), 1)
    s = scipy.linalg.svdvals(left @ right)
    found = product_spectrum(left, right)
    assert_allclose(product_values(left, right), s[:rank], rtol=1e-10)
    assert_allclose(found.norm, np.linalg.norm(left @ right), rtol=1e-12)
    assert found.size == 45
    dense = spectrum((left @ right).astype(np.float32), EXACT)
    assert_allclose(found.stable_rank, dense.stable_rank, rtol=1e-5)
    assert_allclose(found.effective_rank, dense.effective_rank, rtol=1e-4)
    assert found.energy_rank(0.9) == dense.energy_rank(0.9)


def test_figures_of_known_spectra() -> None:
    flat = Spectrum(np.ones(5), math.sqrt(5), 9, complete=True)
    assert_allclose([*flat.effective_rank, flat.stable_rank], 5, rtol=1e-12)
    assert (flat.energy_rank(0.8), flat.energy_rank(0.9), flat.energy_rank(1.0)) == (4, 5, 5)
    one = Spectrum(np.array([3.0, 0.0]), 3.0, 2, complete=True)
    assert one.effective_rank == (1.0, 1.0)
    assert (one.stable_rank, one.energy_rank(0.99), one.remainder) == (1.0, 1, 0.0)
    two = Spectrum(np.array([3.0, 1.0]), math.sqrt(10), 2, complete=True)
    assert_allclose(two.stable_rank, 10 / 9)
    assert_allclose(two.effective_rank, math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))
    assert (two.energy_rank(0.9), two.energy_rank(0.91)) == (1, 2)


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.97, 1.0])
def test_bounds_of_a_partly_known_spectrum_hold_the_effective_rank(decay: float) -> None:
    values = decay ** np.arange(200)
    norm = float(np.linalg.norm(values))
    low, high = Spectrum(values[:30], norm, 200, complete=False).effective_rank
    shares = values / values.sum()
    truth = math.exp(-float((shares * np.log(shares)).sum()))
    assert low <= truth * (1 + 1e-9)
    assert truth <= high * (1 + 1e-9)
    assert 0.4 * truth < low
    assert high < 2 * truth
    part = Spectrum(values[:30], norm, 200, complete=False)
    whole = Spectrum(values, norm, 200, complete=True)
    assert part.energy_rank(0.9) in (None, whole.energy_rank(0.9))
    assert (part.energy_rank(0.9) is None) == (decay > 0.96)


@pytest.mark.parametrize("shape", SHAPES)
def test_alignment_is_one_along_the_base_and_as_by_chance_for_noise(
    shape: tuple[int, int],
) -> None:
    w0 = _with_spectrum(shape, np.linspace(2, 1, min(shape)))
    base = base_vectors(w0, EXACT)
    u, _, vt = scipy.linalg.svd(w0.astype(np.float64))
    along = (u[:, :4] @ _random((4, 4)) @ vt[:4]).astype(np.float32)
    across = (u[:, 4:8] @ vt[4:8]).astype(np.float32)
    assert_allclose(alignment(base, along, frobenius(along), 4), 1, rtol=1e-5)
    assert alignment(base, across, frobenius(across), 4) < 1e-5
    assert_allclose(alignment(base, along + across, frobenius(along + across), 8), 1, rtol=1e-5)
    squares = []
    for seed in range(200):
        noise = _random(shape, seed + 9).astype(np.float32)
        squares.append(alignment(base, noise, frobenius(noise), 4) ** 2)
    assert_allclose(np.mean(squares), chance_alignment(shape, 4) ** 2, rtol=0.1)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_large_foreign_direction_is_an_intruder_and_a_small_one_is_not(
    shape: tuple[int, int],
) -> None:
    size = min(shape)
    w0 = _with_spectrum(shape, 0.9 ** np.arange(size - 4))
    u, _, vt = scipy.linalg.svd(w0.astype(np.float64))
    foreign = np.outer(u[:, size - 2], vt[size - 2])  # no singular vector of W0 is along it
    for settings in (EXACT, SAMPLED):
        base = base_vectors(w0, settings)
        for strength, expected in ((2.0, 1), (1e-3, 0)):
            delta = (strength * foreign).astype(np.float32)
            found = intruders(base, tuned_vectors(w0, delta, settings), settings.epsilon)
            # A sample cannot know what lies outside of it.
            assert found.fewest == (expected if settings is EXACT else 0)
            assert found.most == expected
            assert (found.least_cosine < 1e-3) == bool(expected)


def test_a_foreign_direction_of_a_base_of_full_rank_is_one_too() -> None:
    w0 = _with_spectrum((60, 80), np.linspace(1, 0.5, 60))
    u, v = _random((60, 1), 5), _random((80, 1), 6)
    delta = (3 * u @ v.T / np.linalg.norm(u) / np.linalg.norm(v)).astype(np.float32)
    found = intruders(base_vectors(w0, EXACT), tuned_vectors(w0, delta, EXACT), 0.5)
    theirs = _by_algorithm_1(w0, delta)
    assert (found.fewest, found.most) == (theirs[0], theirs[0])
    assert found.fewest >= 1
    assert_allclose(found.least_cosine, theirs[1], atol=1e-6)


def _by_algorithm_1(w0: Array, delta: Array) -> tuple[int, float]:
    u0 = scipy.linalg.svd(w0.astype(np.float64), full_matrices=False)[0]
    u = scipy.linalg.svd(w0.astype(np.float64) + delta, full_matrices=False)[0]
    closest = np.abs(u.T @ u0).max(axis=1)[:10]
    return int((closest < 0.5).sum()), float(closest.min())


def test_a_mixture_of_the_found_directions_is_an_intruder_for_sure() -> None:
    w0 = _with_spectrum((60, 80), 0.9 ** np.arange(60))
    u, _, vt = scipy.linalg.svd(w0.astype(np.float64))
    delta = (20 * np.outer(u[:, :9].sum(axis=1), vt[:9].sum(axis=0)) / 9).astype(np.float32)
    found = intruders(base_vectors(w0, SAMPLED), tuned_vectors(w0, delta, SAMPLED), 0.5)
    theirs = _by_algorithm_1(w0, delta)
    assert found.fewest == found.most == theirs[0] > 0
    assert_allclose(found.least_cosine, theirs[1], atol=1e-4)


def test_what_a_sample_cannot_tell_is_counted_as_possible() -> None:
    w0 = _with_spectrum((60, 80), np.linspace(1, 0.5, 60))
    u, _, vt = scipy.linalg.svd(w0.astype(np.float64))
    delta = (3 * np.outer(u[:, 55], vt[55])).astype(np.float32)  # a direction of W0 after all
    few = Settings(exact_side=0, sampled=8, leading=1)
    found = intruders(base_vectors(w0, few), tuned_vectors(w0, delta, few), 0.5)
    assert (found.fewest, found.most) == (0, 1)
    whole = intruders(base_vectors(w0, EXACT), tuned_vectors(w0, delta, EXACT), 0.5)
    assert (whole.fewest, whole.most) == (0, 0)


def test_degenerate_matrices_have_no_directions() -> None:
    zero = np.zeros((6, 9), np.float32)
    assert not base_vectors(zero, EXACT).values.size
    assert not base_vectors(zero, SAMPLED).values.size
    assert base_vectors(zero, EXACT).residual() == 0.0
    rank_two = _with_spectrum((12, 9), np.array([2.0, 1.0]))
    assert len(base_vectors(rank_two, EXACT).values) == 2
    row = np.arange(1, 8, dtype=np.float32)[None]
    assert_allclose(spectrum(row, EXACT).values, [np.linalg.norm(row)], rtol=1e-6)
