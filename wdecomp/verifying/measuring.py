"""One pass over base, adapter and merged checkpoint: the only module here that reads a tensor."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np

from wdecomp.adapter import Adapted, ChangeReader
from wdecomp.checkpoint import BLOCK_BYTES, Matrix, MatrixReader, QuantizedTensor, Rectangle
from wdecomp.decomposition import Axis
from wdecomp.dtypes import BITS, Array, widen
from wdecomp.verifying.allowance import DEQUANTISED, least, roundoff
from wdecomp.verifying.lineup import Item
from wdecomp.verifying.sums import Adding, ColumnSums, TensorSums

OnBytes = Callable[[int], None]
WIDE_BITS = 32  # of a decoded weight
SAMPLED_ROWS, SAMPLED_WIDTH = 8, 2048
FLOAT32_BITS = {16: "BF16", 13: "F16"}  # zeros at the end of a float32 that such a number has


@dataclass(frozen=True)
class Changed:
    """The sums of a tensor that the adapter changes.

    precision: the dtype whose rounding is allowed.
    """

    columns: ColumnSums
    tensor: TensorSums
    precision: str


@dataclass(frozen=True)
class Kept:
    """How a tensor differs from the one that it should be.

    precision: the dtype whose rounding is allowed, if it is not the base's.
    off: weights that differ by more than that; moved: that differ at all.
    base, difference: ΣW0², Σ(merged − W0)².
    damaged: NaN or infinite, where the base's is not.
    """

    precision: str
    off: int
    moved: int
    base: float
    difference: float
    damaged: int


def measure(item: Item, on_bytes: OnBytes) -> Changed | Kept:
    """The sums of one tensor.

    Args:
        item: what to hold beside what.
        on_bytes: told how many bytes have been gone through since it was last called.
    """
    if item.change is None:
        return _kept(item, on_bytes)
    return _changed(item, item.change, on_bytes)


def _changed(item: Item, change: Adapted | Matrix, on_bytes: OnBytes) -> Changed:
    axis, precision = _axis(change), precision_of(item.merged)
    of_base = DEQUANTISED if isinstance(item.base.tensor, QuantizedTensor) else ""
    sums = Adding(item.shape[0 if axis == "output" else 1], axis, precision, of_base)
    with ExitStack() as files:
        base = files.enter_context(MatrixReader(item.base))
        merged = files.enter_context(MatrixReader(item.merged))
        whole = plain = _reader(change, item.base)
        files.enter_context(whole)
        if isinstance(change, Adapted) and change.magnitude is not None:
            plain = ChangeReader(replace(change, magnitude=None), item.base)
        for at in _blocks(item):
            block = base.read(at)
            w0, now = widen(block), widen(merged.read(at))
            delta = _delta(whole, block, at)
            before = delta if plain is whole else _delta(plain, block, at)
            sums.add(w0, delta, before, now, at.outputs, at.inputs)
            on_bytes(item.nbytes * block.size // item.size)
    return Changed(*sums.total(), precision)


def _axis(change: Adapted | Matrix) -> Axis:
    """Which columns have sums of their own: those that have a magnitude."""
    magnitude = change.magnitude if isinstance(change, Adapted) else None
    return "output" if magnitude is None else magnitude.axis


def _reader(change: Adapted | Matrix, base: Matrix) -> ChangeReader | MatrixReader:
    return ChangeReader(change, base) if isinstance(change, Adapted) else MatrixReader(change)


def _delta(reader: ChangeReader | MatrixReader, base: Array, at: Rectangle) -> Array:
    """ΔW of a rectangle; of a whole tensor in the base's place, what it is off it."""
    found = reader.beside(base, at)
    if isinstance(reader, ChangeReader):
        return found
    with np.errstate(all="ignore"):  # NaN and infinity are counted further on
        delta: Array = widen(found) - widen(base)
    return delta


def _blocks(item: Item) -> list[Rectangle]:
    """Rectangles of whole stored rows, so that sums over a row do not depend on blocks."""
    row = item.shape[0] if item.base.input_first else item.shape[1]
    row_bytes = -(-row * BITS.get(item.base.dtype, WIDE_BITS) // 8)
    return list(item.base.rectangles(item.shape, max(BLOCK_BYTES, row_bytes)))


def _kept(item: Item, on_bytes: OnBytes) -> Kept:
    precision, found = "", np.zeros(5)
    with MatrixReader(item.base) as base, MatrixReader(item.merged) as merged:
        for at in _blocks(item):
            block, now = base.read(at), merged.read(at)
            found[2] += float(np.linalg.norm(widen(block))) ** 2
            if item.base.dtype != item.merged.dtype or not np.array_equal(block, now):
                precision = precision or precision_of(item.merged)
                found += _differences(widen(block), widen(now), item, precision)
            on_bytes(item.nbytes * block.size // item.size)
    off, moved, squares, difference, damaged = found.tolist()
    return Kept(precision, int(off), int(moved), squares, difference, int(damaged))


def _differences(w0: Array, now: Array, item: Item, precision: str) -> Array:
    """What a block adds to the figures of `Kept`, but to ΣW0²."""
    w0, now = w0.astype(np.float64), now.astype(np.float64)
    damaged = np.isfinite(w0) & ~np.isfinite(now)
    finite = np.isfinite(w0) & np.isfinite(now)
    apart = np.abs(np.where(finite, now, 0.0) - np.where(finite, w0, 0.0))
    coarser = roundoff(precision) > roundoff(item.base.dtype)
    allowed = (roundoff(precision) if coarser else 0.0) * np.where(finite, np.abs(w0), 0.0)
    dtypes = {precision, item.merged.dtype} - {item.base.dtype}
    allowed += max(map(least, dtypes), default=0.0)
    other_kind = ~np.isfinite(w0) & np.isfinite(now)
    off = (apart > allowed) | other_kind | damaged
    return np.array([off.sum(), (apart > 0).sum(), 0.0, np.square(apart).sum(), damaged.sum()])


def precision_of(matrix: Matrix) -> str:
    """The coarsest dtype that holds some rows of a matrix: a merge in BF16 may be stored in F32."""
    numbers = _sample(matrix)
    if not numbers.any():
        return matrix.dtype
    narrow = numbers.astype(np.float32)
    if not np.array_equal(narrow, numbers, equal_nan=True):
        return "F64"
    bits = narrow.view(np.uint32)
    for zeros, dtype in FLOAT32_BITS.items():
        if not (bits & (2**zeros - 1)).any():
            return dtype
    return "F32"


def _sample(matrix: Matrix) -> Array:
    """Some stored rows from all over a matrix."""
    outputs, inputs = matrix.shape
    rows, width = (inputs, outputs) if matrix.input_first else (outputs, inputs)
    width = min(width, SAMPLED_WIDTH)
    found = []
    with MatrixReader(matrix, copied=True) as reader:
        for row in np.unique(np.linspace(0, rows - 1, SAMPLED_ROWS).astype(int)):
            stored = slice(int(row), int(row) + 1), slice(0, width)
            at = Rectangle(*(reversed(stored) if matrix.input_first else stored))
            found.append(widen(reader.read(at)).reshape(-1).copy())
    return np.concatenate(found)
