"""Products of thin factors, part by part, with what is the same from part to part kept."""

import numpy as np

from wdecomp.adapter.change import Index, Memory
from wdecomp.decomposition import LowRankBlock, strips_of
from wdecomp.dtypes import Array


def wants_float64(left: Array, right: Array) -> bool:
    """Whether a factor is stored so: then their product is formed so."""
    return np.float64 in (left.dtype, right.dtype)


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
        if wants_float64(left, right):
            return np.asarray(left[rows] @ right[:, columns])
        block = self.factors(left, rows, right, columns)
        return block.array(self._memory.of(block.room, np.float32))

    def factors(self, left: Array, rows: Index, right: Array, columns: Index) -> LowRankBlock:
        """The same, not multiplied yet; in float32."""
        beside = right[:, columns]
        at = columns if isinstance(columns, slice) else None
        if at is None or at != self._at:
            self._at, self._strips = at, strips_of(beside)
        return LowRankBlock.of(left[rows], self._strips, beside.shape[1])
