"""The compiled kernel beside plain numpy in float64."""

import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from wdecomp.decomposition import PlainSums, SharedSums, Sums
from wdecomp.decomposition.kernel import BAND, STRIP, TURN, _strip
from wdecomp.decomposition.simd import LANES
from wdecomp.decomposition.sums import TOGETHER

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
SHAPES = [(3, 5), (4, 16), (7, 45), (40, 100), (BAND + 70, 48), (9, STRIP + 37)]


def _stored(weight: torch.Tensor) -> np.ndarray:
    if weight.dtype == torch.bfloat16:
        return weight.view(torch.int16).numpy().view(np.uint16)
    return weight.view(torch.int16).numpy() if weight.dtype == torch.float16 else weight.numpy()


def _block(seed: int, shape: tuple[int, int], dtype: torch.dtype, size: float = 0.02) -> np.ndarray:
    random = torch.Generator().manual_seed(seed)
    return _stored((size * torch.randn(shape, generator=random, dtype=torch.float64)).to(dtype))


def _plain(base: np.ndarray, second: np.ndarray, share: float) -> Sums:
    return _added(base, [second], [share], PlainSums)[0]


def _added(
    base: np.ndarray,
    seconds: list[np.ndarray],
    shares: list[float],
    kind: type[SharedSums] = SharedSums,
) -> list[Sums]:
    outputs, inputs = base.shape
    sums = kind(base.shape, len(seconds))
    sums.add(base, seconds, shares, slice(0, outputs), slice(0, inputs))
    return sums.total()


def _agree(found: Sums, expected: Sums, tolerance: float = 1e-6) -> None:
    for mine, theirs in ((found.output, expected.output), (found.input, expected.input)):
        a, _, c = theirs
        assert_allclose(mine[0], a, rtol=tolerance)
        assert_allclose(mine[2], c, rtol=tolerance)
        assert np.all(np.abs(mine[1] - theirs[1]) <= tolerance * np.sqrt(a * c))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("turned", [False, True], ids=["by row", "by column"])
def test_sums_are_those_of_float64(
    dtype: torch.dtype, shape: tuple[int, int], turned: bool
) -> None:
    base, second = _block(0, shape, dtype), _block(1, shape, dtype)
    if turned:
        base, second = base.T, second.T
    for share in (0.0, 1.0):
        [found] = _added(base, [second], [share])
        _agree(found, _plain(base, second, share))


def test_pairs_of_one_base_have_the_sums_that_each_has_alone() -> None:
    """Tuned weights and changes of every dtype side by side, block by block."""
    shape = (300, 200)
    base = _block(0, shape, torch.bfloat16)
    seconds = [_block(k, shape, dtype) for k, dtype in enumerate([*DTYPES, *DTYPES], 1)]
    shares = [0.0, 1.0] * 4
    together = SharedSums(shape, len(seconds))
    for top, bottom in pairwise((0, 64, 200, 300)):
        for left, right in pairwise((0, 100, 200)):
            rows, columns = slice(top, bottom), slice(left, right)
            parts = [second[rows, columns] for second in seconds]
            together.add(base[rows, columns], parts, shares, rows, columns)
    for found, second, share in zip(together.total(), seconds, shares, strict=True):
        _agree(found, _plain(base, second, share))


@pytest.mark.parametrize("count", [TOGETHER, TOGETHER + 1, 2 * TOGETHER + 3])
def test_however_many_pairs_take_turns_each_has_its_own_sums(count: int) -> None:
    """Over more rows than float32 sums have, the last turn a short one, to a wide base's end."""
    shape = (BAND + TURN + 7, STRIP + 53)
    base, *seconds = (_block(k, shape, torch.bfloat16) for k in range(count + 1))
    for found, second in zip(_added(base, seconds, [1.0] * count), seconds, strict=True):
        _agree(found, _plain(base, second, 1.0), 2e-6)


def test_a_pair_that_wants_float64_has_all_of_it_beside_others_that_do_not() -> None:
    """Its a, too: beside b and c of float64 the digits of a float32 one would not cancel."""
    base = _block(0, (64, 64), torch.float32)
    seconds = [
        _block(1, base.shape, torch.float32),
        base * np.float32(1.01),
        _block(2, base.shape, torch.float32),
    ]
    found = _added(base, seconds, [1.0] * 3)
    _agree(found[1], _plain(base, seconds[1], 1.0), 1e-12)


@pytest.mark.parametrize("size", [1e-39, 1e-25, 1e-20, 1e18, 1e30])
def test_squares_that_float32_cannot_hold_are_summed_in_float64(size: float) -> None:
    base, second = (_block(seed, (64, 64), torch.float32, size) for seed in (0, 1))
    [found] = _added(base, [second], [1.0])
    _agree(found, _plain(base, second, 1.0), 1e-12)


@pytest.mark.parametrize("scale", [1.01, 2.0, 1e-3, -1.0])
def test_where_sums_nearly_cancel_they_are_float64(scale: float) -> None:
    """Of a scaled column ac − b² is rounding, of one that shrank a + 2b + c is."""
    base = _block(0, (64, 64), torch.float32)
    second = base * np.float32(scale)
    [found] = _added(base, [second], [1.0])
    _agree(found, _plain(base, second, 1.0), 1e-12)


@pytest.mark.parametrize("at", [np.s_[7:8], np.s_[:, 7:8]], ids=["one row", "one column"])
def test_one_scaled_column_among_others_is_enough(at: tuple[slice, ...]) -> None:
    base, second = (_block(seed, (64, 64), torch.float32) for seed in (0, 1))
    second[at] = base[at] * np.float32(1.01)
    [found] = _added(base, [second], [1.0])
    _agree(found, _plain(base, second, 1.0), 1e-12)


@pytest.mark.parametrize("size", [1e-25, 2e-19, 1e-12])
def test_a_change_far_below_its_base_keeps_its_digits(size: float) -> None:
    base, change = _block(0, (64, 64), torch.float32), _block(1, (64, 64), torch.float32, size)
    [found] = _added(base, [change], [0.0])
    _agree(found, _plain(base, change, 0.0))


def test_a_tiny_base_that_did_not_change_keeps_its_norm() -> None:
    base = _block(0, (64, 64), torch.float32, 1e-25)
    [found] = _added(base, [base.copy()], [1.0])
    _agree(found, _plain(base, base, 1.0), 1e-12)


def test_one_weight_that_changed_by_nearly_nothing_is_a_change() -> None:
    base = _block(0, (32, 32), torch.float32)
    base[3, 5] = 0
    second = base.copy()
    second[3, 5] = 1e-30
    [found] = _added(base, [second], [1.0])
    assert found.output[2, 3] > 0
    assert np.count_nonzero(found.output[2]) == 1
    [same] = _added(base, [base.copy()], [1.0])
    assert not same.output[1:].any()
    assert not same.input[1:].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_broken_number_stays_in_its_row_and_column(bad: float) -> None:
    base, second = (_block(seed, (64, 96), torch.float32) for seed in (0, 1))
    second[10, 20] = bad
    [found] = _added(base, [second], [1.0])
    assert_array_equal(np.flatnonzero(~np.isfinite(found.output[2])), [10])
    assert_array_equal(np.flatnonzero(~np.isfinite(found.input[2])), [20])


@pytest.mark.parametrize("pairs", [1, 2, 3, 8])
@pytest.mark.parametrize("width", [0, LANES, 4096, 11008, STRIP, STRIP + LANES, 40 * STRIP])
def test_no_strip_is_wider_than_the_room_for_its_sums(width: int, pairs: int) -> None:
    strip = _strip(width, pairs)
    assert strip % LANES == 0
    assert 0 < strip <= STRIP
    assert pairs > 1 or -(-width // strip) == -(-width // STRIP)


def test_denormals_are_numbers_again_after_the_kernel() -> None:
    smallest = np.array([1e-40], np.float32)
    base = _block(0, (64, 64), torch.float32)
    _added(base, [base * np.float32(1.5)], [1.0])
    assert (smallest * np.float32(2))[0] > 0


def test_a_processor_without_f16c_or_avx_gets_the_same_sums() -> None:
    """LLVM would call a function that is not there to widen F16, and the process would die."""
    here = os.path.abspath(__file__)  # noqa: PTH100
    wanted = "test_sums_are_those_of_float64 or test_pairs_of_one_base"
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", here, "-k", wanted],
        env=os.environ | {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stdout[-2000:]
