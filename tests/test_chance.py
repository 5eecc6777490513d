"""Noise and rounding: the null line and the floors beside exact integrals and real weights."""

from itertools import pairwise
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
from builders import write_full
from numpy.testing import assert_allclose
from scipy import integrate, stats

import wdecomp
from wdecomp.decomposition import (
    UNROUNDED,
    ColumnDelta,
    by_chance,
    rounding_floor,
    summarise,
)
from wdecomp.decomposition.chance import isotropic
from wdecomp.dtypes import Floats

NOISES = [1e-6, 0.01, 0.1, 0.3, 1.0, 3.0]  # ‖noise‖ of a column, in units of m0


def exact_turn(noise: float, length: int) -> float:
    """E[1 − cos] of a column of length k: the mean of a projected normal, in closed form."""
    with mpmath.workdps(60):
        mu = mpmath.sqrt(length) / noise
        gammas = mpmath.gamma(mpmath.mpf(length + 1) / 2) / mpmath.gamma(mpmath.mpf(length + 2) / 2)
        series = mpmath.hyp1f1(mpmath.mpf(1) / 2, mpmath.mpf(length + 2) / 2, -(mu**2) / 2)
        return float(1 - mu / mpmath.sqrt(2) * gammas * series)


def exact_growth(noise: float, length: int) -> float:
    """E|m − m0|/m0: (m/σ)² has a noncentral χ² distribution with k degrees of freedom."""
    mu = np.sqrt(length) / noise
    squared = stats.ncx2(length, mu**2)
    ends = [max(mu - 12, 0), mu, np.sqrt(mu**2 + length) + 12]

    def density(m: float) -> float:
        return abs(m - mu) * squared.pdf(m * m) * 2 * m

    return sum(integrate.quad(density, *e, limit=200)[0] for e in pairwise(ends)) / mu


@pytest.mark.parametrize(
    ("length", "noises", "error"),
    [(4, NOISES[:5], 0.03), (8, NOISES, 0.012), (16, NOISES, 0.005), (384, NOISES, 0.001)],
)
def test_isotropic_noise_is_as_its_exact_integrals(
    length: int, noises: list[float], error: float
) -> None:
    for noise in noises:
        magnitude, direction = isotropic(noise / np.sqrt(length), length)
        assert_allclose(direction, exact_turn(noise, length), rtol=error)
        if noise >= 0.01:  # the integral's density is beyond scipy further out
            assert_allclose(magnitude, exact_growth(noise, length), rtol=error)


def test_small_noise_lengthens_by_a_folded_normal_and_no_power_overflows() -> None:
    noises = [1e-9, 1e-30, 1e80, 0.0]
    magnitude, direction = np.array([isotropic(noise, 100) for noise in noises]).T
    assert_allclose(magnitude[:2], np.sqrt(2 / np.pi) * np.array([1e-9, 1e-30]), rtol=1e-6)
    assert_allclose(direction[:3], [99 / 2 * 1e-18, 99 / 2 * 1e-60, 1], rtol=1e-6)
    assert (magnitude[3], direction[3]) == (0, 0)


def uneven_base(outputs: int = 60, inputs: int = 384, uneven: float = 0.5) -> Floats:
    """Rows, and columns, of unlike norms."""
    random = np.random.default_rng(0)
    spread = random.lognormal(0, uneven, (outputs, 1)) * random.lognormal(0, 0.3, (1, inputs))
    return np.asarray(0.05 * spread * random.normal(size=(outputs, inputs)))


@pytest.mark.parametrize("size", [1e-4, 1e-2, 0.3, 2.0])
@pytest.mark.parametrize("axis", ["output", "input"])
def test_the_null_is_what_noise_of_the_same_norm_does_to_this_base(size: float, axis: str) -> None:
    base = uneven_base()
    length = base.shape[1] if axis == "output" else base.shape[0]
    scale, found = size * np.linalg.norm(base) / np.sqrt(base.size), []
    for seed in range(20):
        noise = np.random.default_rng(seed).normal(0, scale, base.shape)
        found.append(summarise(wdecomp.column_delta(base, base + noise, axis)))
    # What is given is the sizes of an update that is nothing like noise: one matrix turned as far.
    other = scale * np.sqrt(base.size) * (np.arange(base.size) == 7).reshape(base.shape)
    chance = by_chance(wdecomp.column_delta(base, base + other, axis), length, UNROUNDED)
    for name in ("delta_magnitude", "delta_direction"):
        measured = np.mean([getattr(each, name) for each in found])
        # 20 matrices of 60 columns or more: to 0.02·1.2 where columns scatter most.
        assert_allclose(getattr(chance, f"null_{name}"), measured, rtol=0.05)
    assert (chance.floor_delta_magnitude, chance.floor_delta_direction) == (0, 0)


@pytest.mark.parametrize(("dtype", "name"), [(torch.bfloat16, "BF16"), (torch.float16, "F16")])
@pytest.mark.parametrize("axis", ["output", "input"])
def test_the_floor_of_magnitudes_is_what_rounding_really_does(
    dtype: torch.dtype, name: str, axis: str
) -> None:
    weight = uneven_base(768, 1024).astype(np.float32)
    weight[np.random.default_rng(1).random(weight.shape) < 0.3] = 0  # zero is not rounded
    rounded = torch.from_numpy(weight).to(dtype).float().numpy()
    delta = wdecomp.column_delta(weight, rounded, axis)
    length = weight.shape[1] if axis == "output" else weight.shape[0]
    chance = by_chance(delta, length, rounding_floor(weight.astype(np.float64), name))
    assert_allclose(chance.floor_delta_magnitude, summarise(delta).delta_magnitude, rtol=0.1)
    assert_allclose(chance.floor_delta_direction, summarise(delta).delta_direction, rtol=0.03)


def test_relative_floors_of_normal_bfloat16_weights_are_the_known_ones() -> None:
    weights = np.random.default_rng(0).normal(size=2**18)
    rounding = rounding_floor(weights, "BF16")
    relative = np.sqrt(2 / np.pi * rounding.along / np.array([4096, 768]))
    assert_allclose(rounding.delta_direction, 1.4e-6, rtol=0.03)
    assert_allclose(relative, [3.6e-5, 8.2e-5], rtol=0.04)


def test_what_only_scales_or_only_rounds_has_no_growth_ratio() -> None:
    base = uneven_base().astype(np.float32)
    turned = base + np.float32(1e-4) * np.random.default_rng(1).normal(size=base.shape)
    rounded = torch.from_numpy(base).bfloat16().float().numpy()
    floor = rounding_floor(base.astype(np.float64), "BF16").delta_direction
    scaled = np.float32(1.003) * base
    assert np.isnan(summarise(wdecomp.column_delta(base, scaled)).growth_ratio)
    assert np.isnan(summarise(wdecomp.column_delta(base, rounded), floor).growth_ratio)
    assert np.isfinite(summarise(wdecomp.column_delta(base, rounded)).growth_ratio)
    assert np.isfinite(summarise(wdecomp.column_delta(base, turned)).growth_ratio)
    moved = scaled + 3e-2 * (turned - base)  # a turn, a hundredth of the whole change
    assert np.isfinite(summarise(wdecomp.column_delta(base, moved)).growth_ratio)


def test_a_matrix_without_columns_has_no_null() -> None:
    none = ColumnDelta(np.arange(0), *(np.empty(0) for _ in range(3)), 3, 3, 0)
    chance = by_chance(none, 5, UNROUNDED)
    assert np.isnan([chance.null_delta_magnitude, chance.null_delta_direction]).all()


def test_the_table_has_them_along_both_axes(tmp_path: Path) -> None:
    base = torch.from_numpy(uneven_base(uneven=0.1)).to(torch.bfloat16)
    tuned = (base.double() * 1.02).to(torch.bfloat16)
    sides = ({"layers.0.q_proj.weight": w} for w in (base, tuned))
    modules = wdecomp.compare(
        *(write_full(tmp_path / n, s) for n, s in zip("ab", sides, strict=True))
    ).modules.set_index("axis")
    for axis, length in (("output", 384), ("input", 60)):
        delta = wdecomp.column_delta(base, tuned, axis)
        rounding = rounding_floor(base.double().numpy(), "BF16")
        chance = by_chance(delta, length, rounding)
        row = modules.loc[axis]
        for name in ("null_delta_magnitude", "null_delta_direction"):
            assert_allclose(row[name], getattr(chance, name), rtol=1e-6)
        for name in ("floor_delta_magnitude", "floor_delta_direction"):
            assert_allclose(row[name], getattr(chance, name), rtol=0.1)  # of sampled rows
