"""The running sums of matrix pairs, fed block by block.

A block is given as (output, input); whether it lies in memory that way or transposed, the kernel
runs along the memory.
"""

from dataclasses import dataclass
from functools import cache
from platform import machine

import numba
import numpy as np
from llvmlite import binding

from wdecomp.decomposition.kernel import STRIP, kernel
from wdecomp.dtypes import Array, Floats, widen

BAND = 256  # rows over which a column's sums are formed in float32


@dataclass(frozen=True)
class Sums:
    """(a, b, c) of every column of one matrix pair, along both axes.

    output: (3, outputs), one column per output feature.
    input: (3, inputs), one column per input feature.
    """

    output: Floats
    input: Floats

    @staticmethod
    def zeros(shape: tuple[int, int]) -> "Sums":
        """Sums of a matrix pair of (outputs, inputs) before its first block."""
        outputs, inputs = shape
        return Sums(np.zeros((3, outputs)), np.zeros((3, inputs)))


class SharedSums:
    """The sums of several pairs that have one base and one shape: its a is formed but once."""

    def __init__(self, shape: tuple[int, int], count: int) -> None:
        self._sums = [Sums.zeros(shape) for _ in range(count)]
        self._along: Array = np.empty(0, np.float32)
        self._down: Array = np.empty(0, np.float32)
        self._kept = False  # whether these two hold a of the present block of the base

    def add(
        self, which: int, base: Array, second: Array, share: float, outputs: slice, inputs: slice
    ) -> None:
        """Adds one block to the sums of the columns that it touches; the first pair goes first.

        Args:
            which: of the pairs.
            base: (outputs, inputs) of the block, as stored.
            second: likewise; the tuned weights (share 1) or their change (share 0).
            share: how much of the base is in `second`.
            outputs: where the block lies in the matrix.
            inputs: likewise.
        """
        sums = self._sums[which]
        rows, columns, top, left = sums.output, sums.input, outputs.start, inputs.start
        if not _runs_along_rows(base):
            base, second, rows, columns = base.T, second.T, columns, rows
            top, left = left, top
        base, second = _readable(base), _readable(second)
        known = 0 if which and self._kept else None
        add_block = kernel(base.dtype, second.dtype, known is not None)
        self._kept = np.float64 not in (base.dtype, second.dtype)
        if not self._kept:
            part = (0, base.shape[0], 0, base.shape[1])
            add_block(base, second, share, rows, columns, (top, left), part, known)
            return
        if known is None:
            self._make_room(base.shape)
        for band, start in enumerate(range(0, len(base), BAND)):
            x, y = base[start : start + BAND], second[start : start + BAND]
            along, down = self._along[band], self._down[band]
            add_block(x, y, share, rows, columns, (top + start, left), along, down, known)

    def total(self) -> list[Sums]:
        """The sums of every pair."""
        first = self._sums[0]
        for sums in self._sums[1:]:
            sums.output[0], sums.input[0] = first.output[0], first.input[0]
        return self._sums

    def _make_room(self, block: tuple[int, ...]) -> None:
        height, width = block
        bands, strips = -(-height // BAND), -(-width // STRIP)
        if self._down.shape != (bands, 3, width):
            self._down = np.empty((bands, 3, width), np.float32)
            self._along = np.empty((bands, strips, 3, BAND), np.float32)


def _runs_along_rows(block: Array) -> bool:
    """Whether numbers of one output lie side by side."""
    return block.strides[1] == block.itemsize or block.shape[1] == 1


def _readable(block: Array) -> Array:
    """As compiled code takes it: numbers of a row side by side."""
    if block.dtype == np.int16 and not _converts_half():
        block = widen(block)
    if block.strides[1] != block.itemsize:
        block = np.ascontiguousarray(block)
    return block


@cache
def _converts_half() -> bool:
    """Whether compiled code may read F16; on an x86 without F16C it would crash."""
    if machine().lower() not in {"x86_64", "amd64", "i386", "i686"}:
        return True
    forced = numba.config.CPU_NAME
    return not forced and bool(binding.get_host_cpu_features().get("f16c", False))
