"""Compiled code: the sums of one pass over W0, ΔW and the merged weights, in float64.

All in units of a, the error that rounding is allowed (see `allowance`), weight by weight:

    w = W0/a      x = ΔW/a      z = D/a      y = (merged − W0)/a      ε = y − x

with D the change before DoRA's magnitude is set (ΔW itself where there is none). Sums are kept for
every column that has a magnitude of its own, or for every output.
"""

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numba import types
from numba.np.numpy_support import from_dtype

from wdecomp.decomposition import Axis, compiled, number, runs_along_rows
from wdecomp.dtypes import Array, Floats
from wdecomp.verifying.allowance import MOST_OF_WEIGHT, least, products, roundoff

STRIP = 512  # numbers of a row at a time, so that they stay in the first-level cache
# Of finite numbers; x - x, by which np.isfinite tells them, becomes 0 where LLVM may reorder.
MOST = float(np.finfo(np.float64).max)
VISIBLE = 2.0  # units of a that a change must have to be seen in one weight

# Sums of a tensor, in the order of `TensorSums`.
LARGEST, OVER, SEEN_EX, SEEN_XX, BASE, CHANGE, ERROR, MOVED, DAMAGED, BROKEN = range(10)


@dataclass(frozen=True)
class ColumnSums:
    """Sums over each column: Σw², Σwz, …; `count` is how many weights are in them."""

    count: Floats
    ww: Floats
    wz: Floats
    zz: Floats
    wy: Floats
    zy: Floats
    yy: Floats
    wx: Floats
    zx: Floats
    ee: Floats


@dataclass(frozen=True)
class TensorSums:
    """Sums over a tensor.

    largest: max |ε|.
    over: weights with |ε| above what one may have.
    seen_ex, seen_xx: Σεx and Σx² of the weights with |x| ≥ 2, whose change is not rounded away.
    base, change, error: ΣW0², ΣΔW², Σ(merged − W0 − ΔW)².
    moved: weights that are not the base's.
    damaged: NaN or infinite in the merged tensor alone.
    broken: NaN or infinite in W0 + ΔW, but not in W0.
    """

    largest: float
    over: float
    seen_ex: float
    seen_xx: float
    base: float
    change: float
    error: float
    moved: float
    damaged: float
    broken: float


@dataclass
class Adding:
    """Sums in the making.

    columns: how many there are along the axis.
    precision: the dtype whose rounding is allowed.
    of_base: another one, if it is coarser, to which W0 was rounded before.
    """

    columns: int
    axis: Axis
    precision: str
    of_base: str = ""
    _columns: Floats = field(init=False)
    _tensor: Floats = field(init=False)

    def __post_init__(self) -> None:
        self._columns, self._tensor = np.zeros((10, self.columns)), np.zeros(10)

    def add(
        self, base: Array, change: Array, plain: Array, merged: Array, outputs: slice, inputs: slice
    ) -> None:
        """Adds a block of whole stored rows, (outputs, inputs), in float32 or float64."""
        blocks = [base, change, plain, merged]
        first = (outputs if self.axis == "output" else inputs).start
        turned = not runs_along_rows(base)
        by_row = (self.axis == "output") != turned
        wide = np.result_type(*blocks)
        rows = [np.ascontiguousarray(b.T if turned else b, wide) for b in blocks]
        u = roundoff(self.precision)
        of_base = max(u, roundoff(self.of_base)) if self.of_base else u
        allowed = of_base, u, products(self.precision), least(self.precision)
        _adding(np.dtype(wide))(*rows, allowed, by_row, first, self._columns, self._tensor)

    def total(self) -> tuple[ColumnSums, TensorSums]:
        """What has been added up."""
        return ColumnSums(*self._columns), TensorSums(*map(float, self._tensor))


@cache
def _adding(wide: Any) -> Any:
    """`_add`, compiled for a dtype of the blocks, whether or not they may be written to."""
    block = types.Array(from_dtype(wide), 2, "C", readonly=True)
    kept = types.float64[:, ::1], types.float64[::1]
    allowed = types.UniTuple(types.float64, 4)
    return _add.compile((*[block] * 4, allowed, types.boolean, types.intp, *kept))


@compiled
def _add(
    base: Array,
    change: Array,
    plain: Array,
    merged: Array,
    allowed_by: tuple[float, float, float, float],
    by_row: bool,
    first: int,
    columns: Floats,
    tensor: Floats,
) -> None:
    """Adds a block; numbers of a stored row lie side by side.

    `allowed_by` is (u0, u, v, t), and `first` the first column of the block.
    """
    of_base, of_weight, of_change, least_step = allowed_by
    of_rows = of_change * _root_mean_squares(change) + least_step
    part = np.empty((6, STRIP))
    w, x, z, y, e, one = part[0], part[1], part[2], part[3], part[4], part[5]
    pairs = ((one, one), (w, w), (w, z), (z, z), (w, y), (z, y), (y, y), (w, x), (z, x), (e, e))
    for left in range(0, base.shape[1], STRIP):
        count = min(STRIP, base.shape[1] - left)
        for i in range(base.shape[0]):
            units = of_base, of_weight, of_rows[i]
            _in_units(base, change, plain, merged, i, left, units, part, tensor)
            _add_errors(x, e, count, tensor)
            for k in range(len(pairs)):
                one_side, other = pairs[k]
                if by_row:
                    columns[k, first + i] += _product(one_side, other, count)
                else:
                    _add_products(one_side, other, columns[k, first + left :], count)


@compiled
def _root_mean_squares(change: Array) -> Floats:
    found = np.empty(change.shape[0])
    for i in range(change.shape[0]):
        squares = 0.0
        for j in range(change.shape[1]):
            delta = number(change, i, j)
            squares += delta * delta if abs(delta) <= MOST else 0.0
        found[i] = np.sqrt(squares / change.shape[1])
    return found


@compiled
def _in_units(
    base: Array,
    change: Array,
    plain: Array,
    merged: Array,
    i: int,
    left: int,
    units: tuple[float, float, float],
    part: Floats,
    tensor: Floats,
) -> None:
    """The w, x, z, y and ε of a part of a row, 0 where a number is not finite, and 1 where all are.

    It begins at number `left` of row `i`; `units` are u0, u, and what the row's change adds to the
    allowed error.
    """
    of_base, of_weight, of_row = units
    w, x, z, y, e, one = part[0], part[1], part[2], part[3], part[4], part[5]
    ww = xx = ee = moved = broken = damaged = 0.0
    for j in range(min(STRIP, base.shape[1] - left)):
        w0, delta = number(base, i, left + j), number(change, i, left + j)
        now, before = number(merged, i, left + j), number(plain, i, left + j)
        wanted = w0 + delta
        whole, there = abs(wanted) <= MOST, abs(now) <= MOST
        good = whole and there
        unit = 1.0 / (of_base * abs(w0) + of_weight * abs(wanted) + of_row)
        one[j] = 1.0 if good else 0.0
        w[j] = w0 * unit if good else 0.0
        x[j] = delta * unit if good else 0.0
        z[j] = before * unit if good else 0.0
        y[j] = (now - w0) * unit if good else 0.0
        e[j] = (now - wanted) * unit if good else 0.0
        ww += w0 * w0 if good else 0.0
        xx += delta * delta if good else 0.0
        ee += (now - wanted) * (now - wanted) if good else 0.0
        moved += 1.0 if good and now != w0 else 0.0
        broken += 1.0 if not whole and abs(w0) <= MOST else 0.0
        damaged += 1.0 if whole and not there else 0.0
    found = ((BASE, ww), (CHANGE, xx), (ERROR, ee), (MOVED, moved), (BROKEN, broken))
    for k, value in (*found, (DAMAGED, damaged)):
        tensor[k] += value


@compiled
def _add_errors(x: Floats, e: Floats, count: int, tensor: Floats) -> None:
    seen_ex = seen_xx = over = largest = 0.0
    for j in range(count):
        seen = 1.0 if abs(x[j]) >= VISIBLE else 0.0
        seen_ex += seen * e[j] * x[j]
        seen_xx += seen * x[j] * x[j]
        over += 1.0 if abs(e[j]) > MOST_OF_WEIGHT else 0.0
    for j in range(count):
        largest = max(largest, abs(e[j]))
    tensor[SEEN_EX] += seen_ex
    tensor[SEEN_XX] += seen_xx
    tensor[OVER] += over
    tensor[LARGEST] = max(tensor[LARGEST], largest)


@compiled
def _product(one: Floats, other: Floats, count: int) -> float:
    total = 0.0
    for j in range(count):
        total += one[j] * other[j]
    return total


@compiled
def _add_products(one: Floats, other: Floats, sums: Floats, count: int) -> None:
    for j in range(count):
        sums[j] += one[j] * other[j]
