"""Blocks of weights as compiled code takes them."""

from functools import cache
from platform import machine

import numba
import numpy as np
from llvmlite import binding

from wdecomp.dtypes import Array, widen


def runs_along_rows(block: Array) -> bool:
    """Whether numbers of one output lie side by side."""
    return block.strides[1] == block.itemsize or block.shape[1] == 1


def readable(block: Array) -> Array:
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
