"""The running sums of matrix pairs, fed block by block.

A block is given as (output, input); whether it lies in memory that way or transposed, the kernel
runs along the memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wdecomp.decomposition.blocks import readable, runs_along_rows
from wdecomp.decomposition.kernel import BAND, STRIP, add_exactly, kernel
from wdecomp.dtypes import Array, Floats

TOGETHER = 8  # pairs whose running sums stay in the second-level cache
LINE = 16  # float32 of a cache line
APART = 11 * LINE


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
        self._down = _aligned(running, min(max(shape), STRIP))

    def add(
        self,
        base: Array,
        seconds: Sequence[Array],
        shares: Sequence[float],
        outputs: slice,
        inputs: slice,
    ) -> None:
        """Adds one block to the sums of the columns that it touches.

        Args:
            base: (outputs, inputs) of the block, as stored.
            seconds: likewise, for every pair the tuned weights (share 1) or their change (share 0).
            shares: how much of the base is in each of `seconds`.
            outputs: where the block lies in the matrix.
            inputs: likewise.
        """
        rows, columns, at = self._output, self._input, (outputs.start, inputs.start)
        if not runs_along_rows(base):
            base, seconds, rows, columns = base.T, [y.T for y in seconds], columns, rows
            at = inputs.start, outputs.start
        base, seconds = readable(base), [readable(second) for second in seconds]
        alike: dict[tuple[Any, float], list[int]] = {}
        for i, (second, share) in enumerate(zip(seconds, shares, strict=True)):
            alike.setdefault((second.dtype, share), []).append(i)
        for (dtype, share), which in alike.items():
            if np.float64 in (base.dtype, dtype):
                part = (0, base.shape[0], 0, base.shape[1])
                for i in which:
                    add_exactly(base, seconds[i], share, rows[i], columns[i], at, part)
                continue
            for first in range(0, len(which), TOGETHER):
                some = which[first : first + TOGETHER]
                kernel(base.dtype, dtype)(
                    base,
                    seconds[some[0]],
                    np.array([(*_place(seconds[i]), i) for i in some], np.intp),
                    share,
                    rows,
                    columns,
                    at,
                    self._along,
                    self._down,
                )

    def total(self) -> list[Sums]:
        """The sums of every pair."""
        return [Sums(*each) for each in zip(self._output, self._input, strict=True)]


def _aligned(count: int, width: int) -> Array:
    """Room for (count, at least width) sums, whose rows begin at cache lines.

    A vector across two lines is loaded twice. Rows of 2^n bytes would want the same places of the
    cache, as those of the matrices do: these are longer.
    """
    length = -(-width // LINE) * LINE + APART
    room = np.empty(count * length + LINE, np.float32)
    start = -room.ctypes.data % (4 * LINE) // 4
    return room[start : start + count * length].reshape(count, length)


def _place(block: Array) -> tuple[int, int]:
    """Address and bytes from row to row."""
    return block.__array_interface__["data"][0], block.strides[0]
