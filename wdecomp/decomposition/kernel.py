"""The one fused pass over a pair of blocks, compiled by numba at its first use and cached.

For every column, along both axes at once, it adds to

    a = Σ w0²        b = Σ d·w0        c = Σ d²        with d = t − share·w0

so that with `share` = 1 the second block t holds the tuned weights, and with `share` = 0 it holds
their change.

Sums are formed in float32 of at most `BAND` numbers, and those of parts of a block (`BAND` rows of
at most `STRIP` columns) added up in float64. Longer ones would be wrong by more than chance: odd
squares are 1 mod 8, so that what is rounded off BF16's is cut more often than rounded up.

What float32 cannot hold to about 1e-6 is recognised by its sums (`_doubtful`) and formed again in
float64, piece by piece while it is in a cache. That is enough for whole columns: by Cauchy and
Schwarz, what holds for a, b and c of every piece of a column holds for their sums.

Several pairs that have one base take turns, a few rows each: so the base comes from memory once.
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

BAND = 256  # rows over which a column's sums are formed in float32, at most
# Columns of a strip beside one pair: so many running sums stay in the second-level cache, or, where
# rows are taken by twos and ask for them twice as often, in the first-level one.
STRIP = 12288 if WIDE else 4096
LEAST_STRIP = 4096  # beside several
RUN = BAND * LANES  # columns over which a row's sums are formed, so many numbers in every lane
TURN = 8  # rows of one pair before it is another's turn: they stay in the second-level cache
# Rows at a time: so often are the columns' sums loaded and stored less. Their own sums must fit
# into the registers, and rows of 2^n bytes, which want the same places, into the first-level cache.
TILE = 4 if WIDE else 2
AHEAD = 4 if WIDE else 8  # rows from those at hand to those that are asked for
LINE = 16  # float32 of a cache line
APART = 11 * LINE

# Where sums in float32 are as good as the claim: no squares lost at either end of its range …
LEAST_A, LEAST_C, MOST = np.float32(1e-12), np.float32(1e-22), np.float32(1e15)
# … and what is left of the change without its part along w0 (ac − b²) is more than rounding. Then
# so is what is left of w0 when the change is added to it (a + 2b + c).
MOST_PARALLEL = np.float32(0.95)

Vector = Any  # of `LANES` float32, see simd
Vectors = tuple[Vector, Vector, Vector]  # of a, b and c


def running_sums(count: int, width: int) -> Array:
    """Room for (count, at least width) sums, whose rows begin at cache lines.

    A vector across two lines is loaded twice. Rows of 2^n bytes would want the same places of the
    cache, as those of the matrices do: these are longer.
    """
    length = -(-width // LINE) * LINE + APART
    room = np.empty(count * length + LINE, np.float32)
    start = -room.ctypes.data % (4 * LINE) // 4
    return room[start : start + count * length].reshape(count, length)


@cache
def kernel(base: Any, second: Any) -> Any:
    """`add_blocks`, compiled for numpy's dtypes of the blocks; not for float64.

    Types are given, not taken from the arguments, so that there is one compilation for rows that
    lie apart and for rows that do not, for arrays that may be written to and for others.
    """
    blocks = [types.Array(from_dtype(d), 2, "A", readonly=True) for d in (base, second)]
    places, at = types.intp[:, ::1], types.UniTuple(types.intp, 2)
    sums, running = types.float64[:, :, ::1], types.float32[:, ::1]
    return add_blocks.compile((*blocks, places, types.float64, sums, sums, at, running, running))


@compiled
def add_blocks(
    base: Array,
    second: Array,
    places: Array,
    share: float,
    rows: Floats,
    columns: Floats,
    at: tuple[int, int],
    along: Array,
    down: Array,
) -> None:
    """Adds the sums (a, b, c) of some pairs of blocks that have one base, in place.

    Args:
        base: (height, width), as stored; numbers of a row lie side by side.
        second: (height, width), likewise: the tuned weights or the change of the first pair.
        places: (pairs, 3), for every pair the address of its `second`, the bytes from row to row
            of that, and where the pair is in `rows` and `columns`.
        share: 1.0 or 0.0, see above.
        rows: (all pairs, 3, matrix height), sums along each row.
        columns: (all pairs, 3, matrix width), sums along each column.
        at: row and column of the matrix at which the block begins.
        along: (at least 1 + 2 pairs, at least BAND), float32, for the running sums of rows: a,
            which all pairs have, and from `_first(pair)` on b and c.
        down: (likewise, at least STRIP or width), float32, for those of columns.
    """
    height, width = base.shape
    tiled, even = height - height % TILE, width - width % LANES
    strip = _strip(even, len(places))
    for top in range(0, tiled, BAND):
        bottom = min(top + BAND, tiled)
        for left in range(0, even, strip):
            part = (top, bottom, left, min(left + strip, even))
            _form(base, second, places, share, part, along, down)
            for pair in range(len(places)):
                y, i = _second(second, places, pair), places[pair, 2]
                add_running(base, y, share, rows[i], columns[i], at, part, along, down, pair)
    for pair in range(len(places)):
        y, i = _second(second, places, pair), places[pair, 2]
        for part in ((0, tiled, even, width), (tiled, height, 0, width)):
            add_exactly(base, y, share, rows[i], columns[i], at, part)


@compiled
def _strip(width: int, pairs: int) -> int:
    """Columns of a strip: equally many in as few strips as the sums of so many pairs admit."""
    most: int = max(_first(1) * STRIP // _first(pairs), LEAST_STRIP) // LANES * LANES
    strips = max(-(-width // most), 1)
    return max(-(-width // (strips * LANES)), 1) * LANES


@compiled
def _second(like: Array, places: Array, pair: int) -> Array:
    found: Array = array_at(like, places[pair, 0], places[pair, 1])
    return found


@compiled
def _first(pair: int) -> int:
    """Where a pair's own running sums begin, after a and those of the pairs before it."""
    return 1 + 2 * pair


@compiled
def _form(
    base: Array, second: Array, places: Array, share: float,
    part: tuple[int, int, int, int], along: Array, down: Array,
) -> None:  # fmt: skip
    """The running sums of all pairs over a part of their blocks, instead of what they were."""
    top, bottom, left, right = part
    before = flush_denormals()
    zero = splat(0.0)
    for k in range(_first(len(places))):
        for j in range(0, right - left, LANES):
            store(down, k, j, zero)
    for start in range(top, bottom, TURN):
        for pair in range(len(places)):
            y = _second(second, places, pair)
            for i in range(start, min(start + TURN, bottom), TILE):
                here = base[i:, left:right], y[i:, left:right], share, i - top, along, down
                if pair == 0:
                    add_tile(*here, pair, None)
                else:
                    add_tile(*here, pair, 0)
    restore(before)


@compiled
def add_tile(
    base: Array, second: Array, share: float, at: int,
    along: Array, down: Array, pair: int, known: int | None,
) -> None:  # fmt: skip
    """The first `TILE` rows of two blocks, into the running sums; their own are those from `at` on.

    known: None where a is to be formed, a number where the pair before did that.
    """
    zero, part, width = splat(0.0), splat(share), base.shape[1]
    b = _first(pair)
    c = b + 1
    for start in range(0, width, RUN):
        row0 = row1 = row2 = row3 = (zero, zero, zero)
        for j in range(start, min(start + RUN, width), LANES):
            for i in range(AHEAD, AHEAD + TILE):
                if known is None:
                    prefetch(base, i, j)
                prefetch(second, i, j)
            column = load(down, 0, j), load(down, b, j), load(down, c, j)
            row0, column = _step(load(base, 0, j), load(second, 0, j), part, row0, column)
            row1, column = _step(load(base, 1, j), load(second, 1, j), part, row1, column)
            if TILE == 4:
                row2, column = _step(load(base, 2, j), load(second, 2, j), part, row2, column)
                row3, column = _step(load(base, 3, j), load(second, 3, j), part, row3, column)
            if known is None:
                store(down, 0, j, column[0])
            store(down, b, j, column[1])
            store(down, c, j, column[2])
        _end_run(along, at, row0, b, known, start)
        _end_run(along, at + 1, row1, b, known, start)
        if TILE == 4:
            _end_run(along, at + 2, row2, b, known, start)
            _end_run(along, at + 3, row3, b, known, start)


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
def _end_run(along: Array, i: int, row: Vectors, b: int, known: int | None, start: int) -> None:
    if known is None:
        along[0, i] = total(row[0]) + (along[0, i] if start else 0.0)
    along[b, i] = total(row[1]) + (along[b, i] if start else 0.0)
    along[b + 1, i] = total(row[2]) + (along[b + 1, i] if start else 0.0)


@compiled
def add_running(
    base: Array, second: Array, share: float, rows: Floats, columns: Floats, at: tuple[int, int],
    part: tuple[int, int, int, int], along: Array, down: Array, pair: int,
) -> None:  # fmt: skip
    """Adds what one pair's running sums hold; what they cannot hold is formed again."""
    top, bottom, left, right = part
    height, width = bottom - top, right - left
    x, y = base[top:bottom, left:right], second[top:bottom, left:right]
    if is_sure(along, down, pair, height, width) or not (
        _doubtful(along, pair, height) or _doubtful(down, pair, width) or _differs(x, y, share)
    ):
        _increase(rows, at[0] + top, along, pair, height)
        _increase(columns, at[1] + left, down, pair, width)
    else:
        add_exactly(base, second, share, rows, columns, at, part)


@compiled
def is_sure(along: Array, down: Array, pair: int, height: int, width: int) -> bool:
    """Whether a pair's running sums will do, without a look at the blocks."""
    if _doubtful(along, pair, height) or _doubtful(down, pair, width):
        return False
    return bool(along[_first(pair) + 1, :height].any())


@compiled
def _doubtful(sums: Array, pair: int, count: int) -> bool:
    """Whether any of a pair's sums is not as good in float32 as it would be in float64."""
    bad, first = np.float32(0), _first(pair)
    all_a, all_b, all_c = sums[0, :count], sums[first, :count], sums[first + 1, :count]
    for j in range(count):
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
def _increase(sums: Floats, at: int, by: Array, pair: int, count: int) -> None:
    """Adds a pair's running sums to its sums from `at` on."""
    first = _first(pair)
    for k, of in enumerate((0, first, first + 1)):
        into, part = sums[k, at : at + count], by[of, :count]
        for j in range(count):
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
