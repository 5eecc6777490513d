"""The one loop over weights: the base read once, everything beside it read with it."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self

import numpy as np

from wdecomp.adapter import Adapted, ChangeReader, OnOtherBase, OtherBaseReader
from wdecomp.checkpoint import EVERYTHING, Matrix, MatrixReader, Rectangle
from wdecomp.decomposition import (
    STRIP,
    UNROUNDED,
    Axis,
    ColumnDelta,
    Rounding,
    Sums,
    column_delta_from,
    rounding_floor,
    shrunken,
    sums_on,
)
from wdecomp.dtypes import Array, Floats, widen
from wdecomp.pairing import Pair

UNCACHED = 8  # times the block that is copied or formed is one that is only looked at
SAMPLE_ROWS, SAMPLE_WIDTH = 8, 2048  # of the base, for its rounding floor


class TunedReader(Protocol):
    """What stands beside the base: tuned weights (share 1) or their change (share 0)."""

    share: ClassVar[float]

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...
    @property
    def sight(self) -> int:
        """Bytes that are seen where they lie, at a time; 0 where they are copied or formed."""
        ...

    def beside(self, base: Array, at: Rectangle) -> Array:
        """The rectangle that belongs to this block of the base."""
        ...


@dataclass(frozen=True)
class Measured:
    """The sums of one pair, with those of Σw² where the tuned weights nearly vanished."""

    sums: Sums
    direct: Sums | None

    def columns(self, axis: Axis) -> ColumnDelta:
        """ΔM and ΔD of every column along an axis."""
        direct = None if self.direct is None else getattr(self.direct, axis)
        return column_delta_from(getattr(self.sums, axis), direct)


def measure(
    pairs: list[Pair], block_bytes: int, on_bytes: Callable[[int], None], device: str = "cpu"
) -> list[Measured]:
    """The sums of all pairs of one parameter, in one pass over each base that they have.

    Args:
        pairs: all have one base; adapters that were trained on another one may have that.
        block_bytes: of the base, to be held at a time.
        on_bytes: told how many bytes have been gone through since it was last called.
        device: where the sums are formed.
    """
    found: dict[int, Measured] = {}
    for base in {id(pair.base.tensor): pair.base for pair in pairs}.values():
        here = [i for i, pair in enumerate(pairs) if pair.base.tensor is base.tensor]
        of_base = _measure([pairs[i] for i in here], block_bytes, on_bytes, device)
        found |= dict(zip(here, of_base, strict=True))
    return [found[i] for i in range(len(pairs))]


def _measure(
    pairs: list[Pair], block_bytes: int, on_bytes: Callable[[int], None], device: str
) -> list[Measured]:
    sums = _pass(pairs, block_bytes, 0.0, on_bytes, device)
    again = [i for i, s in enumerate(sums) if shrunken(s.output).any() or shrunken(s.input).any()]
    direct = (
        _pass([pairs[i] for i in again], block_bytes, 1.0, lambda _: None, device) if again else []
    )
    found = dict(zip(again, direct, strict=True))
    return [Measured(s, found.get(i)) for i, s in enumerate(sums)]


class SampledFloors:
    """What rounding a base's own weights to a tuned dtype does: nothing for an adapter."""

    def __init__(self) -> None:
        self._known: dict[tuple[Matrix, str], Rounding] = {}

    def of(self, pair: Pair) -> Rounding:
        """Of one pair; the base's weights are sampled once for all that have its dtype."""
        if not isinstance(pair.tuned, Matrix):
            return UNROUNDED
        key = pair.base, pair.tuned.dtype
        if key not in self._known:
            self._known[key] = rounding_floor(_sample(pair.base), pair.tuned.dtype)
        return self._known[key]


def _pass(
    pairs: list[Pair],
    block_bytes: int,
    share_less: float,
    on_bytes: Callable[[int], None],
    device: str,
) -> list[Sums]:
    """(a, b, c) with d = w − w0, or with share_less = 1 (a, Σw·w0, Σw²): then d is w itself."""
    base = pairs[0].base
    outputs, inputs = (max(pair.shape[i] for pair in pairs) for i in (0, 1))
    by_shape: dict[tuple[int, int], list[int]] = {}
    for i, pair in enumerate(pairs):
        by_shape.setdefault(pair.shape, []).append(i)
    shared = {shape: sums_on(device, shape, len(of)) for shape, of in by_shape.items()}
    with ExitStack() as open_files:
        reader = open_files.enter_context(MatrixReader(base))
        tuned = [open_files.enter_context(tuned_reader(pair)) for pair in pairs]
        sight, widest = min(each.sight for each in [reader, *tuned]), None
        if sight == EVERYTHING:  # less than a row at a time costs nothing
            block_bytes, widest = block_bytes * UNCACHED, STRIP
        elif sight:
            block_bytes = sight
        for at in base.rectangles((outputs, inputs), block_bytes, widest):
            block = reader.read(at)
            for shape, of in by_shape.items():
                here = at.within(shape)
                if here is None:
                    continue
                w0 = block[: here.shape[0], : here.shape[1]]
                seconds = [tuned[i].beside(w0, here) for i in of]
                shares = [tuned[i].share - share_less for i in of]
                shared[shape].add(w0, seconds, shares, here.outputs, here.inputs)
            on_bytes(block.nbytes * (1 + sum(isinstance(p.tuned, Matrix) for p in pairs)))
    found = {
        i: s
        for shape, of in by_shape.items()
        for i, s in zip(of, shared[shape].total(), strict=True)
    }
    return [found[i] for i in range(len(pairs))]


def tuned_reader(pair: Pair) -> TunedReader:
    """Of what stands beside the base."""
    if isinstance(pair.tuned, Adapted):
        return ChangeReader(pair.tuned, pair.base)
    if isinstance(pair.tuned, OnOtherBase):
        return OtherBaseReader(pair.tuned)
    return MatrixReader(pair.tuned)


def sampled_rows(rows: int) -> list[int]:
    """Which rows of a matrix, as they are stored, its sample is from."""
    return [int(row) for row in np.unique(np.linspace(0, rows - 1, SAMPLE_ROWS).astype(int))]


def _sample(matrix: Matrix) -> Floats:
    """Some weights from all over a matrix, the same whatever the block size."""
    outputs, inputs = matrix.shape
    rows, width = (inputs, outputs) if matrix.input_first else (outputs, inputs)
    width = min(width, SAMPLE_WIDTH)
    found = []
    with MatrixReader(matrix, copied=True) as reader:
        for row in sampled_rows(rows):
            stored = slice(row, row + 1), slice(0, width)
            at = Rectangle(*(reversed(stored) if matrix.input_first else stored))
            found.append(widen(reader.read(at)).astype(np.float64).reshape(-1))
    return np.concatenate(found)
