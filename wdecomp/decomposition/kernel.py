"""The one fused pass over a pair of blocks, compiled by numba at its first use and cached.

For every column, along both axes at once, it adds to

    a = Σ w0²        b = Σ d·w0        c = Σ d²        with d = t − share·w0

so that with `share` = 1 the second block t holds the tuned weights, and with `share` = 0 it holds
their change.

Sums are formed in float32 over at most `STRIP` columns of one block and added up in float64. What
float32 cannot hold to about 1e-6 is recognised by its sums (`_doubtful`) and formed again in
float64, strip by strip while it is in the cache. That is enough for whole columns: by
Cauchy and Schwarz, what holds for a, b and c of every piece of a column holds for their sums.
"""

from functools import cache
from typing import Any

import numpy as np
from numba import types
from numba.np.numpy_support import from_dtype

from wdecomp.decomposition.compiling import compiled
from wdecomp.decomposition.simd import (
    LANES,
    WIDE,
    flush_denormals,
    load,
    plus_product,
    prefetch,
    restore,
    splat,
    store,
    total,
)
from wdecomp.decomposition.stored import array_at, number
from wdecomp.dtypes import Array, Floats

STRIP = 4096  # columns whose running sums stay in the first-level cache
# Rows at a time: so often are the columns' sums loaded and stored less. Their own sums must fit
# into the registers, and rows of 2^n bytes, which want the same places, into the first-level cache.
TILE = 4 if WIDE else 2
AHEAD = 4 if WIDE else 8  # rows from those at hand to those that are asked for

# Where sums in float32 are as good as the claim: no squares lost at either end of its range …
LEAST_A, LEAST_C, MOST = np.float32(1e-12), np.float32(1e-22), np.float32(1e15)
# … and what is left of the change without its part along w0 (ac − b²) is more than rounding. Then
# so is what is left of w0 when the change is added to it (a + 2b + c).
MOST_PARALLEL = np.float32(0.95)

Vector = Any  # of `LANES` float32, see simd
Vectors = tuple[Vector, Vector, Vector]  # of a, b and c


@cache
def kernel(base: Any, second: Any) -> Any:
    """`add_blocks`, compiled for numpy's dtypes of the blocks; not for float64.

    Types are given, not taken from the arguments, so that there is one compilation for rows that
    lie apart and for rows that do not, for arrays that may be written to and for others.
    """
    blocks = [types.Array(from_dtype(d), 2, "A", readonly=True) for d in (base, second)]
    places, at = types.intp[:, ::1], types.UniTuple(types.intp, 2)
    sums, running = types.float64[:, :, ::1], types.float32[:, :, ::1]
    return add_blocks.compile(
        (*blocks, places, types.float64, sums, sums, at, types.intp, running, types.float32[:, ::1])
    )


@compiled
def add_blocks(
    base: Array,
    second: Array,
    places: Array,
    share: float,
    rows: Floats,
    columns: Floats,
    at: tuple[int, int],
    band: int,
    along: Array,
    down: Array,
) -> None:
    """Adds the sums (a, b, c) of some pairs of blocks that have one base, in place.

    While a band of the base is in the cache, all that stands beside it has its turn.

    Args:
        base: (height, width), as stored; numbers of a row lie side by side.
        second: (height, width), likewise: the tuned weights or the change of the first pair.
        places: (pairs, 3), for every pair the address of its `second`, the bytes from row to row
            of that, and where the pair is in `rows` and `columns`.
        share: 1.0 or 0.0, see above.
        rows: (all pairs, 3, matrix height), sums along each row.
        columns: (all pairs, 3, matrix width), sums along each column.
        at: row and column of the matrix at which the block begins.
        band: rows of one.
        along: (strips, 3, band), float32, for the running sums of rows.
        down: (3, at least width), float32, for those of columns.
    """
    for top in range(0, base.shape[0], band):
        x, here = base[top : top + band], (at[0] + top, at[1])
        for k in range(len(places)):
            y = array_at(second, places[k, 0], places[k, 1])[top : top + band]
            i = places[k, 2]
            if k == 0:
                add_block(x, y, share, rows[i], columns[i], here, along, down, None)
            else:
                add_block(x, y, share, rows[i], columns[i], here, along, down, 0)


@compiled
def add_block(
    base: Array,
    second: Array,
    share: float,
    rows: Floats,
    columns: Floats,
    at: tuple[int, int],
    along: Array,
    down: Array,
    known: int | None,
) -> None:
    """Adds the sums (a, b, c) of one pair of blocks, in place.

    Args:
        base: (height, width), as stored; numbers of a row lie side by side.
        second: (height, width), likewise: the tuned weights or their change.
        share: 1.0 or 0.0, see above.
        rows: (3, matrix height), sums along each row.
        columns: (3, matrix width), sums along each column.
        at: row and column of the matrix at which the block begins.
        along: (strips, 3, at least height), float32, where the sums of each strip's rows form.
        down: (3, at least width), float32, where those of its columns do.
        known: None; or a number if the last call was for the same block of the base. Its a then
            still stands in `along` and `down`, and is not formed again.
    """
    height, width = base.shape
    for left in range(0, width, STRIP):
        right = min(left + STRIP, width)
        tiled = height - height % TILE
        even = right - (right - left) % LANES
        if tiled == 0 or even == left:
            tiled, even = 0, right
        else:
            x, y, of_rows = base[:tiled, left:even], second[:tiled, left:even], along[left // STRIP]
            _add_tiles(x, y, share, of_rows, down[:, left:even], known)
            if (
                _doubtful(of_rows, 0, tiled)
                or _doubtful(down, left, even)
                or (not of_rows[2, :tiled].any() and _differs(x, y, share))
            ):
                part = (0, tiled, left, even)
                add_exactly(base, second, share, rows, columns, at, part)
            else:
                _increase(rows, at[0], of_rows, 0, tiled)
                _increase(columns, at[1] + left, down, left, even)
        for part in ((0, tiled, even, right), (tiled, height, left, right)):
            add_exactly(base, second, share, rows, columns, at, part)


@compiled
def _add_tiles(
    base: Array, second: Array, share: float, along: Array, down: Array, known: int | None
) -> None:
    """The sums of one strip, in float32, written over what `along` and `down` hold."""
    height, width = base.shape
    before = flush_denormals()
    zero, part = splat(0.0), splat(share)
    for j in range(0, width, LANES):
        if known is None:
            store(down, 0, j, zero)
        store(down, 1, j, zero)
        store(down, 2, j, zero)
    for i in range(0, height, TILE):
        row0 = row1 = row2 = row3 = (zero, zero, zero)
        for j in range(0, width, LANES):
            for k in range(i + AHEAD, i + AHEAD + TILE):
                if known is None:
                    prefetch(base, k, j)
                prefetch(second, k, j)
            column = load(down, 0, j), load(down, 1, j), load(down, 2, j)
            row0, column = _step(load(base, i, j), load(second, i, j), part, row0, column)
            row1, column = _step(load(base, i + 1, j), load(second, i + 1, j), part, row1, column)
            if TILE == 4:
                x, y = load(base, i + 2, j), load(second, i + 2, j)
                row2, column = _step(x, y, part, row2, column)
                x, y = load(base, i + 3, j), load(second, i + 3, j)
                row3, column = _step(x, y, part, row3, column)
            if known is None:
                store(down, 0, j, column[0])
            store(down, 1, j, column[1])
            store(down, 2, j, column[2])
        _end_row(along, i, row0, known)
        _end_row(along, i + 1, row1, known)
        if TILE == 4:
            _end_row(along, i + 2, row2, known)
            _end_row(along, i + 3, row3, known)
    restore(before)


@compiled
def _step(x: Vector, y: Vector, share: Vector, row: Vectors, column: Vectors) -> Any:
    """Some numbers of one row, into the row's sums and into those of their columns."""
    d = y - share * x
    return _plus_squares(row, x, d), _plus_squares(column, x, d)


@compiled
def _plus_squares(sums: Vectors, x: Vector, d: Vector) -> Vectors:
    a, b, c = sums
    return plus_product(a, x, x), plus_product(b, d, x), plus_product(c, d, d)


@compiled
def _end_row(along: Array, i: int, row: Vectors, known: int | None) -> None:
    if known is None:
        along[0, i] = total(row[0])
    along[1, i] = total(row[1])
    along[2, i] = total(row[2])


@compiled
def _doubtful(sums: Array, start: int, stop: int) -> bool:
    """Whether any of these sums is not as good in float32 as it would be in float64."""
    bad = np.float32(0)
    all_a, all_b, all_c = sums[0, start:stop], sums[1, start:stop], sums[2, start:stop]
    for j in range(stop - start):
        a, b, c = all_a[j], all_b[j], all_c[j]
        told_apart = (c >= LEAST_C) & (c <= MOST) & (b * b <= MOST_PARALLEL * (a * c))
        good = (a >= LEAST_A) & (a <= MOST) & ((c == 0) | told_apart)
        bad += np.float32(0) if good else np.float32(1)
    return bool(bad)


@compiled
def _differs(base: Array, second: Array, share: float) -> bool:
    """Whether there is a change at all, be its square too small for float32."""
    found = 0
    for i in range(base.shape[0]):
        for j in range(base.shape[1]):
            found += number(second, i, j) != share * number(base, i, j)
    return found > 0


@compiled
def _increase(sums: Floats, first: int, by: Array, start: int, stop: int) -> None:
    """Adds `by` from `start` to `stop` to the sums from the `first` on."""
    for k in range(3):
        into, part = sums[k, first : first + stop - start], by[k, start:stop]
        for j in range(stop - start):
            into[j] += part[j]


@compiled
def add_exactly(
    base: Array, second: Array, share: float, rows: Floats, columns: Floats,
    at: tuple[int, int], part: tuple[int, int, int, int],
) -> None:  # fmt: skip
    """The same, for the part (top, bottom, left, right) of a block, all of it in float64."""
    top, bottom, left, right = part
    wanted = slice(at[1] + left, at[1] + right)
    down_a, down_b, down_c = columns[0, wanted], columns[1, wanted], columns[2, wanted]
    for i in range(top, bottom):
        a = b = c = 0.0
        for j in range(right - left):
            w0 = number(base, i, left + j)
            d = number(second, i, left + j) - share * w0
            aa, bb, cc = w0 * w0, d * w0, d * d
            a += aa
            b += bb
            c += cc
            down_a[j] += aa
            down_b[j] += bb
            down_c[j] += cc
        rows[0, at[0] + i] += a
        rows[1, at[0] + i] += b
        rows[2, at[0] + i] += c
