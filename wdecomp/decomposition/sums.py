"""The running sums of matrix pairs, fed block by block.

A block is given as (output, input); whether it lies in memory that way or transposed, the kernel
runs along the memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wdecomp.decomposition.blocks import readable, runs_along_rows
from wdecomp.decomposition.kernel import BAND, STRIP, add_exactly, kernel, running_sums
from wdecomp.decomposition.products import LowRankBlock, ProductRoom, as_array
from wdecomp.dtypes import Array, Floats

TOGETHER = 8  # pairs whose running sums stay in the second-level cache


@dataclass(frozen=True)
class Sums:
    """(a, b, c) of every column of one matrix pair, along both axes.

    output: (3, outputs), one column per output feature.
    input: (3, inputs), one column per input feature.
    """

    output: Floats
    input: Floats


class SharedSums:
    """The sums of several pairs that have one base and one shape: its a is formed but once."""

    def __init__(self, shape: tuple[int, int], count: int) -> None:
        outputs, inputs = shape
        self._output, self._input = np.zeros((count, 3, outputs)), np.zeros((count, 3, inputs))
        running = 1 + 2 * min(count, TOGETHER)
        self._along = np.empty((running, BAND), np.float32)
        self._down = running_sums(running, min(max(shape), STRIP))
        self._for_products: dict[int, ProductRoom] = {}

    def add(
        self,
        base: Array,
        seconds: Sequence[Array | LowRankBlock],
        shares: Sequence[float],
        outputs: slice,
        inputs: slice,
    ) -> None:
        """Adds one block to the sums of the columns that it touches.

        Args:
            base: (outputs, inputs) of the block, as stored.
            seconds: likewise, for every pair the tuned weights (share 1) or their change (share 0);
                a product of thin factors is formed here.
            shares: how much of the base is in each of `seconds`.
            outputs: where the block lies in the matrix.
            inputs: likewise.
        """
        rows, columns, at = self._output, self._input, (outputs.start, inputs.start)
        if not runs_along_rows(base):
            base, seconds, rows, columns = base.T, [y.T for y in seconds], columns, rows
            at = inputs.start, outputs.start
        base = readable(base)
        alike: dict[tuple[Any, float], dict[int, Array]] = {}
        for i, (second, share) in enumerate(zip(seconds, shares, strict=True)):
            if isinstance(second, LowRankBlock) and _can_form(second, share, base):
                self._room_for(second).add(base, second, rows[i], columns[i], at)
                continue
            block = readable(as_array(second))
            alike.setdefault((block.dtype, share), {})[i] = block
        for (dtype, share), blocks in alike.items():
            if np.float64 in (base.dtype, dtype):
                part = (0, base.shape[0], 0, base.shape[1])
                for i, block in blocks.items():
                    add_exactly(base, block, share, rows[i], columns[i], at, part)
                continue
            places = np.array([(*_place(block), i) for i, block in blocks.items()], np.intp)
            for first in range(0, len(places), TOGETHER):
                some = places[first : first + TOGETHER]
                like = blocks[some[0, 2]]
                running = self._along, self._down
                kernel(base.dtype, dtype)(base, like, some, share, rows, columns, at, *running)

    def _room_for(self, block: LowRankBlock) -> ProductRoom:
        if block.columns not in self._for_products:
            self._for_products[block.columns] = ProductRoom(block.columns)
        return self._for_products[block.columns]

    def total(self) -> list[Sums]:
        """The sums of every pair."""
        return [Sums(*each) for each in zip(self._output, self._input, strict=True)]


def _can_form(block: LowRankBlock, share: float, base: Array) -> bool:
    """Whether it is added as it is formed, the base as `readable` has it."""
    return share == 0 and base.dtype != np.float64 and not block.turned


def _place(block: Array) -> tuple[int, int]:
    """Address and bytes from row to row."""
    return block.__array_interface__["data"][0], block.strides[0]
