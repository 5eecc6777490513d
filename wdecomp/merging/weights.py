"""The numbers of merged tensors, some stored rows at a time, rounded once.

W' = round(W0 + ΔW)    the sum in float32 (float64 where either is), to nearest, ties to even
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from wdecomp.adapter import Adapted, ChangeReader
from wdecomp.checkpoint import (
    BLOCK_BYTES,
    Matrix,
    MatrixReader,
    QuantizedTensor,
    Rectangle,
)
from wdecomp.dtypes import Array, widen
from wdecomp.errors import AdapterError
from wdecomp.merging.records import Rounding, Written
from wdecomp.pairing import Pair

SIXTEEN_BITS = ("BF16", "F16")
BF16_NAN = 0x7FC0
Where = tuple[slice | Array, slice | Array]


@dataclass(frozen=True)
class Block:
    """Some whole rows of a source as they are to be stored.

    first: the row of the plane that is the first of `rows`.
    size: rows of a plane.
    """

    plane: int
    first: int
    size: int
    rows: Array
    rounding: Rounding


def merged_blocks(item: Written) -> Iterator[Block]:
    """All rows of a tensor, in the order of its source.

    Raises:
        AdapterError: a weight that was finite no longer is.
    """
    for plane in _planes(item):
        view = item.pairs[0].base.view if item.pairs else None
        stored = Matrix(item.source, False, plane, None, view)
        rows, columns = stored.shape
        height = max(BLOCK_BYTES // max(4 * columns, 1), 1)
        with ExitStack() as files:
            reader = files.enter_context(MatrixReader(stored, copied=True))
            parts = [Part(p, _reader(p)) for p in item.pairs if p.base.plane == plane]
            for part in parts:
                files.enter_context(part.reader)
            for top in range(0, rows, height):
                here = slice(top, min(top + height, rows))
                base = reader.read(Rectangle(here, slice(0, columns)))
                found, rounding = _merged(item, base, here, parts)
                yield Block(plane or 0, top, rows, found, rounding)


def _planes(item: Written) -> list[int | None]:
    """The matrices of a stack; one that is None where the tensor is no stack."""
    source, bases = item.source, [each.base for each in item.pairs]
    packed = isinstance(source, QuantizedTensor) and source.input_first is not None
    if any(base.plane is not None for base in bases):
        return list(range((bases[0].view or source.shape)[0]))
    if packed and len(source.shape) == 3:
        return list(range(source.shape[0]))
    return [None]


def _reader(each: Pair) -> ChangeReader | MatrixReader:
    if isinstance(each.tuned, Adapted):
        return ChangeReader(each.tuned, each.base)
    assert isinstance(each.tuned, Matrix)
    return MatrixReader(each.tuned, copied=True)


@dataclass(frozen=True)
class Part:
    """What an adapter says of one part of a stored matrix."""

    pair: Pair
    reader: ChangeReader | MatrixReader

    def within(self, rows: slice) -> tuple[Rectangle, Where] | None:
        """Which rectangle of the part lies in some stored rows, and where in them."""
        outputs, inputs = self.pair.base.shape
        if self.pair.base.input_first:
            at = Rectangle(slice(0, outputs), rows)
            return at, (slice(None), _run(self._picked))
        low, high = np.searchsorted(self._picked, [rows.start, rows.stop]).tolist()
        if low == high:
            return None
        at = Rectangle(slice(low, high), slice(0, inputs))
        return at, (_run(self._picked[low:high] - rows.start), slice(None))

    @cached_property
    def _picked(self) -> Array:
        """The stored outputs that are the part's."""
        picked = self.pair.base.picked
        if picked is None:
            return np.arange(self.pair.base.shape[0])
        return np.concatenate([np.arange(p.start, p.stop, p.step) for p in picked])

    def tuned(self, stored: Array, at: Rectangle) -> tuple[Array, Array | None]:
        """W' of a rectangle as it is stored, and whether each weight moved (of a change)."""
        turned = self.pair.base.input_first
        w0 = stored.T if turned else stored
        second = self.reader.beside(w0, at)
        if self.reader.share:
            found = widen(second)
            return (found.T if turned else found), None
        found, moved = widen(w0) + second, second != 0
        return (found.T, moved.T) if turned else (found, moved)


def _run(indices: Array) -> slice | Array:
    """Indices as a slice, where they are one: a view costs nothing."""
    first, last = int(indices[0]), int(indices[-1])
    return slice(first, last + 1) if last - first + 1 == len(indices) else indices


def _merged(item: Written, base: Array, rows: slice, parts: list[Part]) -> tuple[Array, Rounding]:
    tuned, moved = widen(base).astype(_wide(item)), np.zeros(base.shape, bool)
    with np.errstate(all="ignore"):  # what is not finite is refused below
        for part in parts:
            found = part.within(rows)
            if found is None:
                continue
            at, where = found
            tuned[where], moves = part.tuned(base[where], at)
            if moves is not None:
                moved[where] = moves
        merged = rounded(tuned, item.dtype)
    _require_finite(item, merged, base, parts)
    if item.dtype not in SIXTEEN_BITS:
        return merged, Rounding()
    before = base if item.source.dtype == item.dtype else rounded(widen(base), item.dtype)
    return merged, Rounding(int(moved.sum()), int((moved & (merged == before)).sum()))


def _wide(item: Written) -> type[np.floating]:
    return np.float64 if "F64" in (item.dtype, item.source.dtype) else np.float32


def rounded(numbers: Array, dtype: str) -> Array:
    """Numbers to nearest, ties to even, in the array type of a stored dtype.

    >>> [hex(code) for code in rounded(np.array([1.00390625, 1.01171875]), "BF16")]
    ['0x3f80', '0x3f82']
    """
    if dtype == "F16":
        return numbers.astype(np.float16).view(np.int16)
    if dtype != "BF16":
        return numbers.astype(np.float64 if dtype == "F64" else np.float32, copy=False)
    bits = numbers.astype(np.float32).view(np.uint32)
    odd = (bits >> 16) & 1  # of the last bit that is kept: a tie goes to the even neighbour
    upper = ((bits + odd + 0x7FFF) >> 16).astype(np.uint16)
    upper[np.isnan(numbers)] = BF16_NAN
    return upper


def _require_finite(item: Written, merged: Array, base: Array, parts: list[Part]) -> None:
    """Refuses what an adapter or rounding made infinite or NaN; a base that is, stays as it is."""
    if np.isfinite(widen(merged)).all() or not np.isfinite(widen(base)).all():
        return
    keys = parts[0].pair.tuned_name if parts else item.name
    raise AdapterError(
        f"{item.name}: has weights in {item.dtype} that are infinite or NaN once {keys} is merged, "
        "expected numbers. The adapter is damaged, or its weights need --dtype float32."
    )
