"""Products of thin matrices, (rows, r)·(r, columns), at which a BLAS is far below its rate.

The right factor is cut into strips of three vectors, each in one piece of memory, so that a strip
stays in the first-level cache while all rows are multiplied with it.
"""

from typing import Any

import numpy as np

from wdecomp.adapter.change import Index, Memory
from wdecomp.decomposition import LANES, compiled, load, plus_product, splat, store
from wdecomp.dtypes import Array

TILE = 4  # rows at a time: with three vectors beside each other, twelve running sums
WIDTH = 3 * LANES
GAP = 48  # float32 between rows, so that rows of 2^n bytes want different places in a cache

ThreeVectors = tuple[Any, Any, Any]  # see decomposition/simd.py


class ThinProduct:
    """Parts of left·right, each in the place of the last one."""

    def __init__(self) -> None:
        self._memory = Memory()
        self._at: slice | None = None
        self._strips = np.empty((0, 0, 0), np.float32)

    def of(self, left: Array, rows: Index, right: Array, columns: Index) -> Array:
        """(left·right)[rows, columns]; the numbers of a row lie side by side.

        Args:
            left: (all rows, r).
            rows: which ones.
            right: (r, all columns), the same at every call, for its strips are kept.
            columns: which ones.
        """
        if np.float64 in (left.dtype, right.dtype):
            return np.asarray(left[rows] @ right[:, columns])
        above, beside = left[rows], right[:, columns]
        at = columns if isinstance(columns, slice) else None
        if at is None or at != self._at:
            self._at, self._strips = at, _strips(beside)
        filled = _filled_up(above)
        found = self._memory.of((len(filled), len(self._strips) * WIDTH + GAP), np.float32)
        _multiply(filled, self._strips, found)
        return found[: len(above), : beside.shape[1]]


def _strips(right: Array) -> Array:
    """(r, columns) as (strips, r, WIDTH), the last one filled up with zeros."""
    r, columns = right.shape
    wide = np.zeros((r, -(-columns // WIDTH) * WIDTH), np.float32)
    wide[:, :columns] = right
    return np.ascontiguousarray(wide.reshape(r, -1, WIDTH).swapaxes(0, 1))


def _filled_up(left: Array) -> Array:
    """With rows of zeros, up to a whole number of tiles."""
    missing = -len(left) % TILE
    return np.ascontiguousarray(np.pad(left, ((0, missing), (0, 0))) if missing else left)


@compiled
def _multiply(left: Array, strips: Array, found: Array) -> None:
    """Writes left·right over `found`, row by row."""
    zero = splat(0.0)
    for s in range(len(strips)):
        right, j = strips[s], s * WIDTH
        for i in range(0, len(left), TILE):
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
