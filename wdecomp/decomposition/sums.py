"""The running sums of one matrix pair, fed block by block.

A block is given as (output, input); whether it lies in memory that way or transposed, the kernel
runs along the memory.
"""

from dataclasses import dataclass
from functools import cache
from platform import machine

import numba
import numpy as np
from llvmlite import binding

from wdecomp.decomposition.kernel import add_block
from wdecomp.dtypes import Array, Floats, widen


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


def add(
    sums: Sums, base: Array, second: Array, share: float, outputs: slice, inputs: slice
) -> None:
    """Adds one block to the sums of the columns that it touches.

    Args:
        sums: of the whole matrix; changed in place.
        base: (outputs, inputs) of the block, as stored.
        second: likewise; the tuned weights (share 1) or their change (share 0).
        share: how much of the base is in `second`.
        outputs: where the block lies in the matrix.
        inputs: likewise.
    """
    base, second = _compilable(base), _compilable(second)
    along_output, along_input = sums.output[:, outputs], sums.input[:, inputs]
    if base.flags.c_contiguous:
        add_block(base, np.ascontiguousarray(second), share, along_output, along_input)
    else:
        add_block(
            np.ascontiguousarray(base.T),
            np.ascontiguousarray(second.T),
            share,
            along_input,
            along_output,
        )


def _compilable(stored: Array) -> Array:
    return widen(stored) if stored.dtype == np.int16 and not _converts_half() else stored


@cache
def _converts_half() -> bool:
    """Whether compiled code may read F16; on an x86 without F16C it would crash."""
    if machine().lower() not in {"x86_64", "amd64", "i386", "i686"}:
        return True
    forced = numba.config.CPU_NAME
    return not forced and bool(binding.get_host_cpu_features().get("f16c", False))
