"""A product of thin factors beside a base: the sums that its numbers in memory have."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from test_kernel import _agree, _block

from wdecomp.decomposition import LowRankBlock, PlainSums, SharedSums, Sums, strips_of
from wdecomp.decomposition.kernel import BAND, STRIP
from wdecomp.decomposition.products import FORMED

SHAPES = [(1, 1), (3, 5), (4, 16), (7, 45), (FORMED + 3, 100), (BAND + 70, 48), (9, STRIP + 37)]


def _factors(
    shape: tuple[int, int], rank: int, size: float = 0.02
) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(rank)
    left, right = random.normal(size=(shape[0], rank)), random.normal(size=(rank, shape[1]))
    return (size * left).astype(np.float32), right.astype(np.float32)


def _product(left: np.ndarray, right: np.ndarray) -> LowRankBlock:
    return LowRankBlock.of(left, strips_of(right), right.shape[1])


def _summed(
    kind: type[SharedSums],
    base: np.ndarray,
    second: np.ndarray | LowRankBlock,
    share: float = 0.0,
) -> Sums:
    sums = kind(base.shape, 1)
    outputs, inputs = base.shape
    sums.add(base, [second], [share], slice(0, outputs), slice(0, inputs))
    return sums.total()[0]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rank", [1, 3, 16, 70])
def test_the_product_is_that_of_float64(shape: tuple[int, int], rank: int) -> None:
    left, right = _factors(shape, rank)
    wanted = left.astype(np.float64) @ right.astype(np.float64)
    block = _product(left, right)
    size = np.abs(left) @ np.abs(right)
    assert np.all(np.abs(block.array() - wanted) <= 1e-6 * size)
    assert_allclose(block.T.array(), block.array().T, rtol=0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str
)
@pytest.mark.parametrize("turned", [False, True], ids=["by row", "by column"])
def test_its_sums_are_those_of_its_numbers(
    shape: tuple[int, int], dtype: torch.dtype, turned: bool
) -> None:
    base, block = _block(0, shape, dtype), _product(*_factors(shape, 5))
    if turned:
        base, block = base.T, block.T
    found = _summed(SharedSums, base, block)
    _agree(found, _summed(PlainSums, base, block.array()))


def test_it_is_formed_where_the_base_lies_another_way() -> None:
    base, block = _block(0, (20, 40), torch.bfloat16), _product(*_factors((40, 20), 5)).T
    _agree(_summed(SharedSums, base, block), _summed(PlainSums, base, block.array()))


def test_the_tuned_weights_themselves_are_summed_too() -> None:
    """Share −1: d = ΔW + w0, where ΔW all but cancels the base."""
    base, block = _block(0, (20, 40), torch.bfloat16), _product(*_factors((20, 40), 5))
    found = _summed(SharedSums, base, block, -1.0)
    _agree(found, _summed(PlainSums, base, block.array(), -1.0))


@pytest.mark.parametrize("size", [0.0, 1e-39, 1e-30, 1e-22, 1e-12, 1.0, 1e18])
def test_what_float32_cannot_sum_is_summed_in_float64(size: float) -> None:
    """A change of zero is none; one whose squares are too small for float32 is one."""
    shape = (BAND + 20, STRIP + 60)
    base, block = _block(0, shape, torch.float32), _product(*_factors(shape, 4, size))
    found = _summed(SharedSums, base, block)
    wanted = _summed(PlainSums, base, block.array())
    _agree(found, wanted, 2e-6)
    assert (found.output[2].sum() > 0) == (size > 0)


def test_a_change_along_the_base_keeps_its_digits() -> None:
    """Of a scaled base of rank one ac − b² is rounding: its sums have to be float64's."""
    left, right = _factors((70, 200), 1)
    base, block = (left @ right).astype(np.float32), _product(left * np.float32(0.01), right)
    found, wanted = (
        _summed(kind, base, second)
        for kind, second in ((SharedSums, block), (PlainSums, block.array()))
    )
    _agree(found, wanted, 1e-12)


def test_blocks_of_one_matrix_add_up() -> None:
    """With parts of its rows and of its columns, beside a tuned matrix and in any order."""
    shape = (300, 200)
    base, tuned = (_block(seed, shape, torch.bfloat16) for seed in (0, 1))
    left, right = _factors(shape, 6)
    sums, wanted = SharedSums(shape, 2), PlainSums(shape, 2)
    for rows in (slice(64, 300), slice(0, 64)):
        for columns in (slice(0, 90), slice(90, 200)):
            here = base[rows, columns], (rows, columns)
            second = tuned[rows, columns]
            block = _product(left[rows], right[:, columns])
            sums.add(here[0], [block, second], [0.0, 1.0], *here[1])
            wanted.add(here[0], [block.array(), second], [0.0, 1.0], *here[1])
    for found, expected in zip(sums.total(), wanted.total(), strict=True):
        _agree(found, expected)
