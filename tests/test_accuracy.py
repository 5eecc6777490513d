"""ΔM and ΔD against exact arithmetic on the stored numbers, column by column."""

import math
from itertools import cycle
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from builders import write_adapter, write_full
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import wdecomp
from wdecomp.decomposition import rounding_floor, summarise
from wdecomp.decomposition.kernel import STRIP

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
FLOAT32_SUMS = 1e-6  # of ‖w − w0‖: the claim for m − m0
ROUNDING = {"rtol": 1e-13, "atol": 1e-15}  # a few float64 roundings of a short sum


def _exact(base: torch.Tensor, tuned: torch.Tensor) -> tuple[np.ndarray, ...]:
    """(m − m0, 1 − cos, a, c) of each row, from 400 decimal digits."""
    found = []
    with mpmath.workdps(400):
        for w0, w in zip(base.double().tolist(), tuned.double().tolist(), strict=True):
            u, v = [mpmath.mpf(x) for x in w0], [mpmath.mpf(x) for x in w]
            a, ww = mpmath.fdot(u, u), mpmath.fdot(v, v)
            c = mpmath.fsum((y - x) ** 2 for x, y in zip(u, v, strict=True))
            m0, m = mpmath.sqrt(a), mpmath.sqrt(ww)
            found.append((m - m0, 1 - mpmath.fdot(u, v) / (m0 * m), mpmath.sqrt(c), c / a))
        return tuple(np.array([float(x) for x in column]) for column in zip(*found, strict=True))


def _check(base: torch.Tensor, tuned: torch.Tensor, delta: wdecomp.ColumnDelta) -> None:
    """The requirement, in every column."""
    _check_against(_exact(base, tuned), delta)


def _check_against(exact: tuple[np.ndarray, ...], delta: wdecomp.ColumnDelta) -> None:
    moved, turned, root_c, c_over_a = exact
    assert_array_equal(delta.column, np.arange(len(moved)))
    assert np.all((delta.delta_direction >= 0) & (delta.delta_direction <= 2))
    assert np.all(np.abs(delta.delta_magnitude - moved) <= 1e-6 * root_c)
    allowed = np.where(c_over_a <= 1, 1e-5 * turned + 1e-7 * c_over_a, 1e-6)
    assert np.all(np.abs(delta.delta_direction - turned) <= allowed)


UPDATES = (1e-12, 1e-6, 1e-4, 1e-2, 1, 100, 1e12)
SIZES = (1e25, 1e-25, 1e-4, 1e-38)  # the last two are subnormal in float16 and in float32, bfloat16


def _pairs() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Base and tuned rows in float64, before they are stored."""
    random = torch.Generator().manual_seed(0)
    w0 = torch.randn(7, 45, generator=random, dtype=torch.float64) * 0.02
    noise = torch.randn(7, 45, generator=random, dtype=torch.float64) * 0.02
    across = noise - (noise * w0).sum(1, True) / (w0 * w0).sum(1, True) * w0
    pairs = {f"update {size:g}": (w0, w0 + size * noise) for size in UPDATES}
    pairs |= {
        f"turned {angle:g}": (w0, math.cos(angle) * w0 + math.sin(angle) * across)
        for angle in (4e-7, 1e-4, 0.1, 1.5, 3.0)
    }
    pairs |= {f"scaled {scale:g}": (w0, scale * w0) for scale in (1.01, 2, 1e-3, 1e-12, -1, -0.5)}
    pairs |= {f"shrunk {size:g}": (w0, size * noise) for size in (1e-3, 1e-6, 1e-12)}
    pairs |= {f"norms near {size:g}": (size * w0, size * (w0 + 1e-2 * noise)) for size in SIZES}
    return pairs


def _storable(weight: torch.Tensor, dtype: torch.dtype) -> bool:
    stored = weight.to(dtype)
    return bool(stored.isfinite().all() and (stored.double().norm(dim=1) > 0).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", _pairs())
def test_every_column_is_right_to_the_stated_bound(name: str, dtype: torch.dtype) -> None:
    base, tuned = _pairs()[name]
    if not (_storable(base, dtype) and _storable(tuned, dtype)):
        pytest.skip(f"{dtype} cannot hold such numbers")
    base, tuned = base.to(dtype), tuned.to(dtype)
    _check(base, tuned, wdecomp.column_delta(base, tuned))
    _check(base, tuned, wdecomp.column_delta(base.T, tuned.T, axis="input"))


def test_matrices_wider_than_a_strip_of_the_kernel_are_right() -> None:
    base = torch.randn(3, STRIP + 37, generator=torch.Generator().manual_seed(0))
    tuned = base + 1e-3 * base.roll(1, dims=1)
    _check(base, tuned, wdecomp.column_delta(base, tuned))
    _check(base.T, tuned.T, wdecomp.column_delta(base, tuned, axis="input"))


def test_float32_cosine_similarity_breaks_the_bound_tenfold() -> None:
    base, tuned = (w.float() for w in _pairs()["update 0.0001"])
    _, turned, _, c_over_a = _exact(base, tuned)
    naive = (1 - F.cosine_similarity(base, tuned, dim=1)).double().numpy()
    allowed = 1e-5 * turned + 1e-7 * c_over_a
    assert np.median(np.abs(naive - turned) / allowed) > 10


def test_nothing_underflows_on_its_way_through_the_tables(tmp_path: Path) -> None:
    chosen = {n: p for n, p in _pairs().items() if "near" in n or "turned" in n or "e-12" in n}
    stored = [
        [w.to(dtype if all(_storable(w, dtype) for w in pair) else torch.float32) for w in pair]
        for pair, dtype in zip(chosen.values(), cycle(DTYPES))
    ]
    sides = [
        {f"layers.{i}.q_proj.weight": pair[side].clone() for i, pair in enumerate(stored)}
        for side in (0, 1)
    ]
    base, tuned = (write_full(tmp_path / n, s) for n, s in zip(("a", "b"), sides, strict=True))
    results = wdecomp.compare(base, tuned, columns="both")
    for parameter in sides[0]:
        w0, w = sides[0][parameter], sides[1][parameter]
        if torch.equal(w0, w):
            continue
        _check(w0, w, _kept(results, parameter, "output"))
        _check(w0.T, w.T, _kept(results, parameter, "input"))


def _kept(results: wdecomp.Results, parameter: str, axis: str) -> wdecomp.ColumnDelta:
    """Columns as they are on disk."""
    kept = results.columns("b", parameters=[parameter], axis=axis)
    figures = ("column", "magnitude_base", "delta_magnitude", "delta_direction")
    return wdecomp.ColumnDelta(*(kept[name].to_numpy() for name in figures), 0, 0, 0)


@pytest.mark.parametrize("size", [1e-4, 1e-2])
def test_a_dora_change_is_right_to_the_same_bound(size: float, tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    w0 = torch.randn(9, 40, generator=random).to(torch.bfloat16)
    a, b = torch.randn(2, 40, generator=random), size * torch.randn(9, 2, generator=random)
    w0_, low_rank = (
        w.double().numpy().astype(np.longdouble) for w in (w0, b.double() @ a.double())
    )
    norm = np.sqrt(((w0_ + low_rank) ** 2).sum(1))
    m = (norm * np.linspace(1 - size, 1 + 2 * size, 9)).astype(np.float32)
    tuned = (m / norm)[:, None] * (w0_ + low_rank)
    base = write_full(tmp_path / "base", {"layers.0.q_proj.weight": w0})
    factors, magnitudes = {"layers.0.q_proj": (a, b)}, {"layers.0.q_proj": torch.tensor(m)}
    dora = write_adapter(tmp_path / "b", factors, magnitudes, lora_alpha=2)
    results = wdecomp.compare(base, dora, columns="both")
    parameter = "layers.0.q_proj.weight"
    _check_against(_extended(w0_, tuned), _kept(results, parameter, "output"))
    _check_against(_extended(w0_.T, tuned.T), _kept(results, parameter, "input"))


def _extended(w0: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, ...]:
    """As `_exact`, by subtraction: the 64 bits of longdouble leave 1e-19 where ΔD is 1e-9."""
    a, ww, c = (w0 * w0).sum(1), (w * w).sum(1), ((w - w0) ** 2).sum(1)
    turned = 1 - (w0 * w).sum(1) / np.sqrt(a * ww)
    return np.sqrt(ww) - np.sqrt(a), turned, np.sqrt(c), c / a


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_broken_and_zero_columns_are_counted_and_have_no_entry(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    base = torch.ones(6, 4, dtype=dtype)
    tuned = torch.full((6, 4), 2.0, dtype=dtype)
    base[1], tuned[2] = 0, 0
    base[3, 0], tuned[4, 1] = math.nan, math.inf
    delta = wdecomp.column_delta(base, tuned)
    assert (delta.n_columns, delta.n_zero, delta.n_nonfinite) == (6, 2, 2)
    assert_array_equal(delta.column, [0, 5])
    assert_array_equal(delta.delta_magnitude, [2.0, 2.0])
    across = wdecomp.column_delta(base, tuned, axis="input")
    assert (across.n_columns, across.n_zero, across.n_nonfinite) == (4, 0, 2)
    assert_array_equal(across.column, [2, 3])
    name = "layers.0.q_proj.weight"
    sides = [write_full(tmp_path / n, {name: w}) for n, w in (("a", base), ("b", tuned))]
    results = wdecomp.compare(*sides, columns="both")
    counts = results.modules[["n_columns", "n_zero", "n_nonfinite"]].to_numpy()
    assert_array_equal(counts, [[6, 2, 2], [4, 0, 2]])
    assert_array_equal(_kept(results, name, "output").column, [0, 5])
    assert_array_equal(_kept(results, name, "input").column, [2, 3])
    assert results.modules[["delta_magnitude", "delta_direction"]].notna().all(axis=None)


def test_three_four_five_doubled_moves_the_magnitude_by_five() -> None:
    base = np.array([[3.0, 4.0, 0.0]])
    delta = wdecomp.column_delta(base, 2 * base)
    assert delta.magnitude_base.tolist() == [5.0]
    assert delta.delta_magnitude.tolist() == [5.0]
    assert delta.delta_direction.tolist() == [0.0]


def test_quarter_turn_is_one_and_reversal_is_two_and_identity_is_zero() -> None:
    base = np.array([[1.0, 0.0, 0.0]] * 3)
    delta = wdecomp.column_delta(base, np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [1.0, 0, 0]]))
    assert delta.delta_direction.tolist() == [1.0, 2.0, 0.0]
    assert delta.delta_magnitude.tolist() == [0.0, 0.0, 0.0]


@given(st.integers(0, 2**32), st.floats(0.1, 10))
@settings(max_examples=25, deadline=None)
def test_scaling_moves_only_the_magnitude_and_rotation_only_the_direction(
    seed: int, scale: float
) -> None:
    random = np.random.default_rng(seed)
    base = random.standard_normal((3, 8))
    scaled = wdecomp.column_delta(base, scale * base)
    assert_allclose(scaled.delta_direction, 0, atol=1e-13)
    assert_allclose(scaled.delta_magnitude, (scale - 1) * scaled.magnitude_base, **ROUNDING)
    rotation, _ = np.linalg.qr(random.standard_normal((8, 8)))
    rotated = base @ rotation
    turned = wdecomp.column_delta(base, rotated)
    assert_allclose(turned.delta_magnitude, 0, atol=1e-13)
    cosine = (base * rotated).sum(1) / (base * base).sum(1)
    assert_allclose(turned.delta_direction, 1 - cosine, rtol=1e-11, atol=1e-13)


@given(st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_permuting_the_columns_permutes_the_results(seed: int) -> None:
    random = np.random.default_rng(seed)
    base, noise = random.standard_normal((2, 5, 13))
    order = random.permutation(5)
    plain = wdecomp.column_delta(base, base + noise)
    permuted = wdecomp.column_delta(base[order], (base + noise)[order])
    across = wdecomp.column_delta(base[order].T, (base + noise)[order].T, axis="input")
    for figures in ("magnitude_base", "delta_magnitude", "delta_direction"):
        want = getattr(plain, figures)[order]
        assert_allclose(getattr(permuted, figures), want, **ROUNDING)
        assert_allclose(getattr(across, figures), want, **ROUNDING)


def test_magnitude_times_direction_is_the_weight() -> None:
    weight = torch.randn(5, 9)
    for axis, by in (("output", (5, 1)), ("input", (1, 9))):
        found = wdecomp.decompose(weight, axis=axis)
        assert_allclose(found.magnitude.reshape(by) * found.direction, weight.numpy(), rtol=1e-13)
        assert_allclose((found.direction**2).sum(1 if axis == "output" else 0), 1, rtol=1e-13)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_and_arrays_of_any_layout_give_the_same(dtype: torch.dtype) -> None:
    base = torch.randn(6, 10).to(dtype)
    tuned = (base + 0.01 * torch.randn(6, 10).to(dtype)).requires_grad_()
    want = wdecomp.column_delta(base.double().numpy(), tuned.detach().double().numpy())
    strided = torch.stack([tuned, tuned], dim=2)[:, :, 0]
    reach = FLOAT32_SUMS * (tuned - base).norm(dim=1).double().max().item()
    for got in (wdecomp.column_delta(base, tuned), wdecomp.column_delta(base, strided)):
        assert_allclose(got.delta_magnitude, want.delta_magnitude, rtol=0, atol=reach)
        assert_allclose(got.delta_direction, want.delta_direction, rtol=1e-5)


def test_what_is_no_pair_of_weights_is_a_value_error() -> None:
    with pytest.raises(ValueError, match=r"base is \(2, 3\), tuned is \(3, 2\)"):
        wdecomp.column_delta(torch.ones(2, 3), torch.ones(3, 2))
    with pytest.raises(ValueError, match="expected floating-point numbers"):
        wdecomp.column_delta(np.ones((2, 3), int), np.ones((2, 3), int))
    with pytest.raises(ValueError, match=r"expected \(outputs, inputs\)"):
        wdecomp.decompose(torch.ones(3))
    with pytest.raises(ValueError, match="axis is 'rows'"):
        wdecomp.decompose(torch.ones(3, 2), axis="rows")


def test_an_update_across_the_columns_has_growth_ratio_one() -> None:
    base = np.zeros((4, 6))
    base[:, 0] = [1, 2, 3, 4]
    tuned = base.copy()
    tuned[:, 1] = [0.1, 0.5, 1.0, 3.0]
    assert_allclose(summarise(wdecomp.column_delta(base, tuned)).growth_ratio, 1, rtol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "name", "size"),
    [
        (torch.bfloat16, "BF16", 0.05),
        (torch.float16, "F16", 0.05),
        (torch.float16, "F16", 2e-5),  # mostly subnormal
    ],
)
def test_the_floor_is_what_rounding_really_does(dtype: torch.dtype, name: str, size: float) -> None:
    weight = torch.randn(64, 1024, generator=torch.Generator().manual_seed(0)) * size
    rounded = summarise(wdecomp.column_delta(weight, weight.to(dtype).float()))
    floor = rounding_floor(weight.double().numpy(), name).delta_direction
    assert_allclose(floor, rounded.delta_direction, rtol=0.03)
    pruned = np.where(np.arange(1024) % 2, weight.double().numpy(), 0)
    assert_allclose(rounding_floor(pruned, name).delta_direction, floor, rtol=0.03)
