"""The merge formulas: what an adapter adds to its base, block by block.

    LoRA    ΔW = s·BA                                         DoRA paper, Eq. (1)
    DoRA    W' = m·V/‖V‖ with V = W0 + s·BA                   Eq. (5)
            ΔW = (g − 1)·W0 + g·s·BA with g = m/‖V‖

with one magnitude per output feature. ΔW is formed in float32, and ‖V‖ in float64. ΔW is never
added to W0 or rounded to the dtype of the base, which would lose most of it.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Self

import numpy as np

from wdecomp.checkpoint import (
    BLOCK_BYTES,
    Matrix,
    MatrixReader,
    Rectangle,
    StoredTensor,
    read_whole,
)
from wdecomp.dtypes import Array, Floats, widen


@dataclass(frozen=True)
class LowRankUpdate:
    """One module's LoRA or DoRA update, on disk: a is (r, in), b (out, r), magnitude (out,)."""

    a: StoredTensor
    b: StoredTensor
    magnitude: StoredTensor | None
    scaling: float

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs) of the matrix that it changes."""
        return self.b.shape[0], self.a.shape[1]

    @property
    def rank(self) -> int:
        """The r of A and B."""
        return self.a.shape[0]


class ChangeReader:
    """ΔW of one adapted matrix, rectangle by rectangle, beside the base's block."""

    share: ClassVar[float] = 0.0

    def __init__(self, update: LowRankUpdate, base: Matrix) -> None:
        self._base = base
        self._a = widen(read_whole(update.a)).astype(np.float32)
        self._sb = widen(read_whole(update.b)).astype(np.float32) * np.float32(update.scaling)
        magnitude = update.magnitude
        self._magnitude = None if magnitude is None else widen(read_whole(magnitude))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def beside(self, base: Array, at: Rectangle) -> Array:
        """ΔW of a rectangle, (outputs, inputs), float32, laid out in memory as `base` is."""
        with np.errstate(all="ignore"):  # columns of NaN and infinity are counted further on
            return self._change(base, at)

    def _change(self, base: Array, at: Rectangle) -> Array:
        low_rank = self._low_rank(at, like=base)
        if self._magnitude is None:
            return low_rank
        w0 = widen(base)
        complete = at.inputs == slice(0, self._base.shape[1])
        norm = _row_norms(w0, low_rank) if complete else self._norms[at.outputs]
        magnitude = self._magnitude[at.outputs].astype(np.float64)
        # A zero row of V has no direction: W' is zero there, as a limit and as PEFT's is not.
        g = np.divide(magnitude, norm, out=np.zeros_like(norm), where=norm > 0)[:, None]
        change: Array = (g - 1).astype(np.float32) * w0
        change += g.astype(np.float32) * low_rank
        return change

    def _low_rank(self, at: Rectangle, like: Array) -> Array:
        a, sb = self._a[:, at.inputs], self._sb[at.outputs]
        product: Array = sb @ a if like.flags.c_contiguous else (a.T @ sb.T).T
        return product

    @cached_property
    def _norms(self) -> Floats:
        """‖V‖ of every output, in a pass of its own: one block does not hold a whole output."""
        squares = np.zeros(self._base.shape[0])
        with MatrixReader(self._base) as reader:
            for at in self._base.rectangles(self._base.shape, BLOCK_BYTES):
                w0 = reader.read(at)
                squares[at.outputs] += _row_norms(widen(w0), self._low_rank(at, like=w0)) ** 2
        return np.sqrt(squares)


def _row_norms(w0: Array, low_rank: Array) -> Floats:
    """‖V‖ of every row: V in float64, or its rounding would outweigh the change of a short run."""
    v: Floats = np.add(w0, low_rank, dtype=np.float64)
    squares: Floats = np.einsum("ij,ij->i", v, v)
    return np.sqrt(squares)
