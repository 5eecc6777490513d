"""ΔM and ΔD against exact arithmetic on the stored numbers, column by column."""

import math
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from builders import write_full
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import wdecomp
from wdecomp.decomposition import rounding_floor, summarise

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
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
    moved, turned, root_c, c_over_a = _exact(base, tuned)
    assert_array_equal(delta.column, np.arange(len(base)))
    assert np.all(delta.delta_direction >= 0)
    assert np.all(np.abs(delta.delta_magnitude - moved) <= 1e-6 * root_c)
    allowed = np.where(c_over_a <= 1, 1e-5 * turned + 1e-7 * c_over_a, 1e-6)
    assert np.all(np.abs(delta.delta_direction - turned) <= allowed)


def _pairs() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Base and tuned rows in float64, before they are stored."""
    random = torch.Generator().manual_seed(0)
    w0 = torch.randn(7, 45, generator=random, dtype=torch.float64) * 0.02
    noise = torch.randn(7, 45, generator=random, dtype=torch.float64) * 0.02
    across = noise - (noise * w0).sum(1, True) / (w0 * w0).sum(1, True) * w0
    pairs = {f"update {size:g}": (w0, w0 + size * noise) for size in (1e-6, 1e-4, 1e-2, 1, 100)}
    pairs |= {
        f"turned {angle:g}": (w0, math.cos(angle) * w0 + math.sin(angle) * across)
        for angle in (4e-7, 1e-4, 0.1, 1.5, 3.0)
    }
    pairs |= {f"scaled {scale:g}": (w0, scale * w0) for scale in (1.01, 2, 1e-3, 1e-12, -1, -0.5)}
    pairs |= {f"shrunk {size:g}": (w0, size * noise) for size in (1e-3, 1e-6, 1e-12)}
    pairs |= {
        f"norms near {size:g}": (size * w0, size * (w0 + 1e-2 * noise)) for size in (1e25, 1e-25)
    }
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


def test_float32_cosine_similarity_breaks_the_bound_tenfold() -> None:
    base, tuned = (w.float() for w in _pairs()["update 0.0001"])
    _, turned, _, c_over_a = _exact(base, tuned)
    naive = (1 - F.cosine_similarity(base, tuned, dim=1)).double().numpy()
    allowed = 1e-5 * turned + 1e-7 * c_over_a
    assert np.median(np.abs(naive - turned) / allowed) > 10


def test_nothing_underflows_on_its_way_through_the_tables(tmp_path: Path) -> None:
    chosen = {n: p for n, p in _pairs().items() if "near" in n or "turned" in n or "e-12" in n}
    sides = [
        {f"layers.{i}.q_proj.weight": pair[side].to(torch.float32 if i % 2 else torch.bfloat16)
         for i, pair in enumerate(chosen.values())}
        for side in (0, 1)
    ]  # fmt: skip
    base, tuned = (write_full(tmp_path / n, s) for n, s in zip(("a", "b"), sides, strict=True))
    results = wdecomp.compare(base, tuned, columns="both")
    for parameter in sides[0]:
        if torch.equal(sides[0][parameter], sides[1][parameter]):
            continue
        kept = results.columns("b", parameters=[parameter])
        delta = wdecomp.ColumnDelta(
            *(kept[c].to_numpy() for c in ("column", "magnitude_base", "delta_magnitude")),
            kept["delta_direction"].to_numpy(), 0, 0, 0,
        )  # fmt: skip
        _check(sides[0][parameter], sides[1][parameter], delta)


def test_broken_and_zero_columns_are_counted_and_have_no_entry() -> None:
    base = torch.ones(6, 4)
    tuned = torch.full((6, 4), 2.0)
    base[1], tuned[2] = 0, 0
    base[3, 0], tuned[4, 1] = math.nan, math.inf
    delta = wdecomp.column_delta(base, tuned)
    assert (delta.n_columns, delta.n_zero, delta.n_nonfinite) == (6, 2, 2)
    assert_array_equal(delta.column, [0, 5])
    assert_array_equal(delta.delta_magnitude, [2.0, 2.0])


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
    for got in (wdecomp.column_delta(base, tuned), wdecomp.column_delta(base, strided)):
        assert_allclose(got.delta_magnitude, want.delta_magnitude, **ROUNDING)
        assert_allclose(got.delta_direction, want.delta_direction, **ROUNDING)


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


@pytest.mark.parametrize(("dtype", "name"), [(torch.bfloat16, "BF16"), (torch.float16, "F16")])
def test_the_floor_is_what_rounding_really_does(dtype: torch.dtype, name: str) -> None:
    weight = torch.randn(64, 1024, generator=torch.Generator().manual_seed(0)) * 0.05
    rounded = summarise(wdecomp.column_delta(weight, weight.to(dtype).float()))
    floor = rounding_floor(weight.double().numpy(), name)
    assert_allclose(floor, rounded.delta_direction, rtol=0.03)
    pruned = np.where(np.arange(1024) % 2, weight.double().numpy(), 0)
    assert_allclose(rounding_floor(pruned, name), floor, rtol=0.03)
