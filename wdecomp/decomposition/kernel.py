"""The one fused pass over a pair of blocks, compiled by numba at its first use and cached.

For every column, along both axes at once, it adds to

    a = Σ w0²        b = Σ d·w0        c = Σ d²        with d = t − share·w0

so that with `share` = 1 the second block t holds the tuned weights, and with `share` = 0 it holds
their change. Products and sums are formed in float64: nothing can overflow, underflow or cancel
that the checkpoint itself still told apart.
"""

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from wdecomp.dtypes import Array, Floats

STRIP = 4096  # columns whose running sums stay in cache


@intrinsic  # type: ignore[untyped-decorator]
def _number(_: Any, stored: Any) -> Any:
    """The number that a stored element stands for; its array type tells how it is stored."""

    def widen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        (value,) = args
        if stored == types.uint16:  # BF16: the upper half of a float32
            i32 = ir.IntType(32)
            value = builder.shl(builder.zext(value, i32), ir.Constant(i32, 16))
            value = builder.bitcast(value, ir.FloatType())
        elif stored == types.int16:  # F16
            value = builder.fpext(builder.bitcast(value, ir.HalfType()), ir.FloatType())
        return value if stored == types.float64 else builder.fpext(value, ir.DoubleType())

    return types.float64(stored), widen


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})  # type: ignore[untyped-decorator]
def add_block(base: Array, second: Array, share: float, rows: Floats, columns: Floats) -> None:
    """Adds the sums (a, b, c) of one pair of blocks, in place.

    Args:
        base: (height, width), as stored.
        second: (height, width), the tuned weights or their change.
        share: 1.0 or 0.0, see above.
        rows: (3, height), sums along each row.
        columns: (3, width), sums along each column.
    """
    height, width = base.shape
    for left in range(0, width, STRIP):
        right = min(left + STRIP, width)
        down_a, down_b, down_c = (
            columns[0, left:right],
            columns[1, left:right],
            columns[2, left:right],
        )
        for i in range(height):
            x, y = base[i, left:right], second[i, left:right]
            a = b = c = 0.0
            for j in range(right - left):
                w0 = _number(x[j])
                d = _number(y[j]) - share * w0
                aa, bb, cc = w0 * w0, d * w0, d * d
                a += aa
                b += bb
                c += cc
                down_a[j] += aa
                down_b[j] += bb
                down_c[j] += cc
            rows[0, i] += a
            rows[1, i] += b
            rows[2, i] += c
