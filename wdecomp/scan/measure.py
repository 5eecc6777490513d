"""The one loop over weights: the base read once, everything beside it read with it."""

from bisect import bisect_left
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self

import numpy as np

from wdecomp.adapter import (
    Adapted,
    ChangeReader,
    OnOtherBase,
    OtherBaseReader,
    summed_reader,
)
from wdecomp.checkpoint import Matrix, MatrixReader, Rectangle
from wdecomp.decomposition import (
    UNROUNDED,
    Axis,
    ColumnDelta,
    LowRankBlock,
    Rounding,
    Sums,
    any_shrunken,
    column_delta_from,
    rounding_floor,
    sums_on,
)
from wdecomp.dtypes import Array, widen
from wdecomp.pairing import Pair

UNCACHED = 32  # times the block that is copied or formed is one that is only looked at
SAMPLE_ROWS, SAMPLE_WIDTH = 8, 2048  # of the base, for its rounding floor


class SummedReader(Protocol):
    """What stands beside the base: tuned weights (share 1) or their change (share 0)."""

    share: ClassVar[float]

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...
    @property
    def sight(self) -> int:
        """Bytes that may be seen beside a block, at a time; 0 where they are copied or formed."""
        ...

    def beside(self, base: Array, at: Rectangle) -> Array | LowRankBlock:
        """The rectangle that belongs to this block of the base."""
        ...


class TunedReader(SummedReader, Protocol):
    """The same, always in numbers."""

    def beside(self, base: Array, at: Rectangle) -> Array:
        """Likewise."""
        ...


@dataclass(frozen=True)
class Measured:
    """What a pass over one pair gives.

    sums: along both axes.
    direct: (a, Σw·w0, Σw²) where the tuned weights nearly vanished.
    sample: of the base; None where it was not read.
    """

    sums: Sums
    direct: Sums | None
    sample: "Sample | None" = None

    def columns(self, axis: Axis) -> ColumnDelta:
        """ΔM and ΔD of every column along an axis."""
        direct = None if self.direct is None else getattr(self.direct, axis)
        return column_delta_from(getattr(self.sums, axis), direct)

    def rounding(self, pair: Pair) -> Rounding:
        """What rounding the base's weights to the tuned dtype does: nothing for an adapter."""
        if not isinstance(pair.tuned, Matrix) or self.sample is None:
            return UNROUNDED
        return self.sample.rounding(pair.tuned.dtype)


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
    rounded = any(isinstance(pair.tuned, Matrix) for pair in pairs)
    sample = Sample(pairs[0].base, _compared(pairs)) if rounded else None
    sums = _pass(pairs, block_bytes, 0.0, on_bytes, device, sample)
    again = [i for i, s in enumerate(sums) if any_shrunken(s.output) or any_shrunken(s.input)]
    direct = (
        _pass([pairs[i] for i in again], block_bytes, 1.0, lambda _: None, device) if again else []
    )
    found = dict(zip(again, direct, strict=True))
    return [Measured(s, found.get(i), sample) for i, s in enumerate(sums)]


class Sample:
    """Some weights from all over a base, the same whatever the blocks are that it comes in.

    weights: (rows, columns) as they are stored.
    """

    def __init__(self, base: Matrix, shape: tuple[int, int]) -> None:
        self._input_first = base.input_first
        rows, columns = reversed(shape) if base.input_first else shape
        self._rows = sorted({i * (rows - 1) // (SAMPLE_ROWS - 1) for i in range(SAMPLE_ROWS)})
        self.weights = np.empty((len(self._rows) if rows else 0, min(columns, SAMPLE_WIDTH)))
        self._known: dict[str, Rounding] = {}

    def add(self, block: Array, at: Rectangle) -> None:
        """Takes what it wants of a block, (outputs, inputs)."""
        down, along = (at.inputs, at.outputs) if self._input_first else (at.outputs, at.inputs)
        first, last = (bisect_left(self._rows, row) for row in (down.start, down.stop))
        left, right = along.start, min(along.stop, self.weights.shape[1])
        if first < last and left < right:
            stored = block.T if self._input_first else block
            rows = [row - down.start for row in self._rows[first:last]]
            self.weights[first:last, left:right] = widen(stored[rows, : right - left])

    def rounding(self, dtype: str) -> Rounding:
        """What rounding to a dtype does to such weights, once all of them are there."""
        if dtype not in self._known:
            self._known[dtype] = rounding_floor(self.weights, dtype)
        return self._known[dtype]


def _compared(pairs: list[Pair]) -> tuple[int, int]:
    """(outputs, inputs) that the base has a tuned weight beside."""
    outputs, inputs = (max(pair.shape[i] for pair in pairs) for i in (0, 1))
    return outputs, inputs


def _pass(
    pairs: list[Pair],
    block_bytes: int,
    share_less: float,
    on_bytes: Callable[[int], None],
    device: str,
    sample: Sample | None = None,
) -> list[Sums]:
    """(a, b, c) with d = w − w0, or with share_less = 1 (a, Σw·w0, Σw²): then d is w itself."""
    base = pairs[0].base
    by_shape: dict[tuple[int, int], list[int]] = {}
    for i, pair in enumerate(pairs):
        by_shape.setdefault(pair.shape, []).append(i)
    shared = {shape: sums_on(device, shape, len(of)) for shape, of in by_shape.items()}
    with ExitStack() as open_files:
        reader = open_files.enter_context(MatrixReader(base))
        tuned = [open_files.enter_context(_summed_reader(pair, device)) for pair in pairs]
        sight = min(each.sight for each in [reader, *tuned])
        if sight:
            block_bytes = max(block_bytes, min(block_bytes * UNCACHED, sight))
        for at in base.rectangles(_compared(pairs), block_bytes):
            block = reader.read(at)
            if sample is not None:
                sample.add(block, at)
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


def _summed_reader(pair: Pair, device: str) -> SummedReader:
    """Of what the sums take on a device."""
    if device == "cpu" and isinstance(pair.tuned, Adapted):
        return summed_reader(pair.tuned, pair.base)
    return tuned_reader(pair)


def tuned_reader(pair: Pair) -> TunedReader:
    """Of what stands beside the base."""
    if isinstance(pair.tuned, Adapted):
        return ChangeReader(pair.tuned, pair.base)
    if isinstance(pair.tuned, OnOtherBase):
        return OtherBaseReader(pair.tuned)
    return MatrixReader(pair.tuned)
