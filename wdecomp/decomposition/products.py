"""The pass over a base and a product of thin factors beside it, formed where it is used.

ΔW = left·right with left (rows, r) and right (r, columns). At ranks of 16 or 64 a BLAS is far below
its rate, and to write ΔW to memory and to read it there would take longer than to form it. So a few
rows of it are formed at a time, in the second-level cache, and added to the sums while they are
there. The right factor is cut into strips of three vectors, each in one piece of memory, so that
a strip stays in the first-level cache while all rows are multiplied with it.
"""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from numba import types
from numba.np.numpy_support import from_dtype

from wdecomp.decomposition.compiling import compiled
from wdecomp.decomposition.kernel import (
    BAND,
    STRIP,
    TILE,
    add_exactly,
    add_running,
    add_tile,
    is_sure,
    running_sums,
)
from wdecomp.decomposition.simd import (
    LANES,
    flush_denormals,
    load,
    plus_product,
    restore,
    splat,
    store,
)
from wdecomp.dtypes import Array, Floats

FORMED = 16  # rows of a product before they are added: they stay in the second-level cache
ROWS = 4  # at a time: with three vectors beside each other, twelve running sums
WIDTH = 3 * LANES
GAP = 48  # float32 between rows, so that rows of 2^n bytes want different places in a cache

ThreeVectors = tuple[Any, Any, Any]  # see simd


@dataclass(frozen=True)
class LowRankBlock:
    """A block of ΔW as its factors, (rows, columns), or the transpose of that.

    left: (rows, r), in float32, with rows of zeros up to a whole number of `ROWS`.
    strips: of the right factor, see `strips_of`.
    rows, columns: of the product.
    turned: whether its transpose is meant.
    """

    left: Array
    strips: Array
    rows: int
    columns: int
    turned: bool = False

    @classmethod
    def of(cls, left: Array, strips: Array, columns: int) -> "LowRankBlock":
        """The product of (rows, r) and of what `strips_of` made of (r, columns)."""
        missing = -len(left) % ROWS
        filled = np.pad(left, ((0, missing), (0, 0))) if missing else left
        return cls(np.ascontiguousarray(filled, np.float32), strips, len(left), columns)

    @property
    def T(self) -> "LowRankBlock":  # as numpy has it
        """Its transpose."""
        return replace(self, turned=not self.turned)

    @property
    def room(self) -> tuple[int, int]:
        """The shape of memory that it can be written to."""
        return len(self.left), len(self.strips) * WIDTH + GAP

    def array(self, room: Array | None = None) -> Array:
        """ΔW itself, in float32; the numbers of a row of the product lie side by side.

        Args:
            room: where to write it, see `room`.
        """
        found = np.empty(self.room, np.float32) if room is None else room
        _multiply(self.left, self.strips, found)
        product = found[: self.rows, : self.columns]
        return product.T if self.turned else product


def strips_of(right: Array) -> Array:
    """(r, columns) as (strips, r, WIDTH) in float32, the last one filled up with zeros."""
    r, columns = right.shape
    wide = np.zeros((r, -(-columns // WIDTH) * WIDTH), np.float32)
    wide[:, :columns] = right
    return np.ascontiguousarray(wide.reshape(r, -1, WIDTH).swapaxes(0, 1))


def as_array(second: Array | LowRankBlock) -> Array:
    """What stands beside a block of a base, in memory."""
    return second.array() if isinstance(second, LowRankBlock) else second


class ProductRoom:
    """Room for passes over blocks of one width.

    For `FORMED` rows of the product, and for the running sums: of rows, three for each `STRIP`
    columns, and of columns.
    """

    def __init__(self, columns: int) -> None:
        width = -(-columns // WIDTH) * WIDTH
        self._formed = np.empty((FORMED, width + GAP), np.float32)
        self._along = np.empty((-(-columns // STRIP) * 3, BAND), np.float32)
        self._down = running_sums(3, columns)

    def add(
        self, base: Array, block: LowRankBlock, rows: Floats, columns: Floats, at: tuple[int, int]
    ) -> None:
        """Adds the sums (a, b, c) of a block of the base and of its change, in place.

        Args:
            base: (rows, columns) of the block, as stored, not in float64.
            block: its change, not turned.
            rows: (3, matrix height), sums along each row.
            columns: (3, matrix width), sums along each column.
            at: row and column of the matrix at which the block begins.
        """
        room = self._formed, self._along, self._down
        _compiled_for(base.dtype)(base, block.left, block.strips, rows, columns, at, *room)


@cache
def _compiled_for(base: Any) -> Any:
    """`_add_product`, compiled for numpy's dtype of the base."""
    block = types.Array(from_dtype(base), 2, "A", readonly=True)
    factors = [types.Array(types.float32, d, "C", readonly=True) for d in (2, 3)]
    sums, at = types.float64[:, ::1], types.UniTuple(types.intp, 2)
    return _add_product.compile((block, *factors, sums, sums, at, *[types.float32[:, ::1]] * 3))


@compiled
def _add_product(
    base: Array, left: Array, strips: Array, rows: Floats, columns: Floats,
    at: tuple[int, int], formed: Array, along: Array, down: Array,
) -> None:  # fmt: skip
    """See `ProductRoom`, and `kernel.add_blocks`, which does the same with two blocks in memory."""
    height, width = base.shape
    even = width - width % LANES
    for top in range(0, height, BAND):
        bottom = min(top + BAND, height)
        x, y, here = base[top:bottom], left[top : bottom + -bottom % ROWS], (at[0] + top, at[1])
        tiled = len(x) - len(x) % TILE
        _form(x, y, strips, rows, columns, here, even, formed, along, down)
        change, sure = formed, True
        for start in range(0, even, STRIP):
            of_rows, of_columns, count = _running(along, down, start, even)
            sure &= is_sure(of_rows, of_columns, 0, tiled, count)
        if not sure:
            change = np.empty((len(y), len(strips) * WIDTH), np.float32)
            _multiply(y, strips, change)
        for start in range(0, even, STRIP):
            of_rows, of_columns, count = _running(along, down, start, even)
            part = (0, tiled, start, start + count)
            add_running(x, change, 0.0, rows, columns, here, part, of_rows, of_columns, 0)


@compiled
def _running(along: Array, down: Array, start: int, even: int) -> tuple[Array, Array, int]:
    """The running sums of the columns from `start` on, and how many these are."""
    first = start // STRIP * 3
    return along[first : first + 3], down[:, start:], min(start + STRIP, even) - start


@compiled
def _form(
    base: Array, left: Array, strips: Array, rows: Floats, columns: Floats,
    at: tuple[int, int], even: int, formed: Array, along: Array, down: Array,
) -> None:  # fmt: skip
    """The running sums of a band; what lies beyond whole tiles is added at once."""
    height, width = base.shape
    down[:, :even] = 0
    for top in range(0, height, FORMED):
        x, here = base[top : top + FORMED], (at[0] + top, at[1])
        tiled = len(x) - len(x) % TILE
        _multiply(left[top : top + FORMED], strips, formed)
        before = flush_denormals()
        for start in range(0, even, STRIP):
            of_rows, of_columns, count = _running(along, down, start, even)
            end = start + count
            for i in range(0, tiled, TILE):
                add_tile(
                    x[i:, start:end], formed[i:, start:end], 0.0, top + i,
                    of_rows, of_columns, 0, None,
                )  # fmt: skip
        restore(before)
        for part in ((0, tiled, even, width), (tiled, len(x), 0, width)):
            add_exactly(x, formed, 0.0, rows, columns, here, part)


@compiled
def _multiply(left: Array, strips: Array, found: Array) -> None:
    """Writes left·right over `found`, row by row."""
    zero = splat(0.0)
    for s in range(len(strips)):
        right, j = strips[s], s * WIDTH
        for i in range(0, len(left), ROWS):
            row0 = row1 = row2 = row3 = (zero, zero, zero)
            for k in range(left.shape[1]):
                beside = load(right, k, 0), load(right, k, LANES), load(right, k, 2 * LANES)
                row0 = _plus(row0, left[i, k], beside)
                row1 = _plus(row1, left[i + 1, k], beside)
                row2 = _plus(row2, left[i + 2, k], beside)
                row3 = _plus(row3, left[i + 3, k], beside)
            _keep(found, i, j, row0)
            _keep(found, i + 1, j, row1)
            _keep(found, i + 2, j, row2)
            _keep(found, i + 3, j, row3)


@compiled
def _plus(row: ThreeVectors, by: float, beside: ThreeVectors) -> ThreeVectors:
    factor = splat(by)
    return (
        plus_product(row[0], factor, beside[0]),
        plus_product(row[1], factor, beside[1]),
        plus_product(row[2], factor, beside[2]),
    )


@compiled
def _keep(found: Array, i: int, j: int, row: ThreeVectors) -> None:
    store(found, i, j, row[0])
    store(found, i, j + LANES, row[1])
    store(found, i, j + 2 * LANES, row[2])
