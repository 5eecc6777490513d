"""Read-ahead: the disk is asked for what the workers will want next while they compute.

A thread of its own goes over the bytes in the order in which the workers do, `AHEAD` before them,
and only advises: nothing is copied. What the page cache has already is skipped.

What is elsewhere is really fetched, in the same order: `remote.ahead` holds it until it is taken.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, zip_longest
from pathlib import Path
from threading import Condition
from typing import NamedTuple, Self

from wdecomp.adapter import Adapted, OnOtherBase
from wdecomp.checkpoint import LOOKED, Matrix, StoredTensor, is_cached, spans
from wdecomp.dtypes import BITS
from wdecomp.pairing import Pair
from wdecomp.remote import RANGE, RemotePath, Wanted, fetched_ahead
from wdecomp.scan.plan import Plan, Unit

AHEAD = 256 << 20  # bytes, for each worker
SHARES = 4  # of these bytes: what is gone through before more are asked for
CHUNK = 16 << 20  # bytes of a disk: of one file before those of the next
ASKED = 128 << 10  # asked for at a time: of more, Linux reads as much as read_ahead_kb allows
LARGEST = 4 * RANGE  # bytes of what is elsewhere
OPEN = 16  # files of a disk, at a time
LEAST = 1 << 20  # bytes for which asking a disk is worth while
TOGETHER = 32 << 20  # bytes of a disk after which what is elsewhere does not wait
FETCHED = 256 << 20  # bytes that are elsewhere: held before they are taken, and for each worker
FETCHED_EACH = 64 << 20  # as many more


class Piece(NamedTuple):
    """Some bytes of a file.

    chunk: bytes to ask for at a time where it is elsewhere.
    seen: whether they are looked at where they lie, not copied.
    """

    file: Path
    start: int
    length: int
    chunk: int = RANGE
    seen: bool = False


def pieces(plan: Plan, units: list[Unit], workers: int) -> Iterator[Piece]:
    """The bytes of these units in about the order in which so many workers read them."""
    for first in range(0, len(units), workers):
        yield from _in_turn(_of_unit(plan, unit) for unit in units[first : first + workers])


@contextmanager
def read_ahead(
    wanted: Iterator[Piece], reach: int, direct: bool = False
) -> Iterator[Callable[[int], None]]:
    """Keeps about `reach` bytes ahead; to be told how many bytes have been gone through.

    Args:
        wanted: what will be read, in about this order.
        reach: bytes.
        direct: whether the workers themselves read from the disk what they look at.
    """
    progress = _Progress(reach)
    memory = FETCHED + FETCHED_EACH * max(reach // AHEAD, 1)
    with fetched_ahead(_elsewhere(wanted, progress, direct), memory):
        try:
            yield progress.advance
        finally:
            progress.advance(None)


def _elsewhere(
    wanted: Iterator[Piece], progress: "_Progress", direct: bool
) -> Iterator[Wanted | None]:
    """The pieces that are to be fetched; on the way to them, the disk is asked for the others.

    None after some of these: what stands before it is not to wait until they are within reach.
    """
    passed = 0
    with _Disk() as disk:
        for piece in wanted:
            if isinstance(piece.file, RemotePath):
                yield Wanted(piece.file, piece.start, piece.start + piece.length)
                continue
            passed += piece.length
            if passed >= TOGETHER:
                yield None
                passed = 0
            if not progress.take(piece.length):
                return
            if not (direct and piece.seen):
                disk.advise(piece)


class _Progress:
    """How far ahead the disk has been asked for.

    Whoever asks sleeps until a share of the reach is free: a worker that wakes another thread for
    every block pays for it.
    """

    def __init__(self, reach: int) -> None:
        self._left, self._stopped, self._changed = reach, False, Condition()
        self._worth = reach // SHARES

    def advance(self, count: int | None) -> None:
        """So many bytes more have been gone through; None ends it all."""
        with self._changed:
            self._stopped |= count is None
            self._left += count or 0
            if self._stopped or self._left >= self._worth:
                self._changed.notify()

    def take(self, count: int) -> bool:
        """Waits until so many bytes are within reach; False where it has ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._left > 0)
            self._left -= count
            return not self._stopped


class _Disk:
    """Files that the disk is asked for; each is opened once, as long as there are not too many."""

    def __init__(self) -> None:
        self._open: dict[Path, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in tuple(self._open):
            os.close(self._open.pop(file))

    def advise(self, piece: Piece) -> None:
        """Asks for what the page cache has not."""
        if not hasattr(os, "posix_fadvise"):
            return
        with suppress(OSError):  # whoever reads it will say what is wrong
            descriptor, end = self._descriptor(piece.file), piece.start + piece.length
            for start in range(piece.start, end, LOOKED):
                stop = min(start + LOOKED, end)
                if not is_cached(descriptor, start, stop):
                    for at in range(start, stop, ASKED):
                        count = min(ASKED, stop - at)
                        os.posix_fadvise(descriptor, at, count, os.POSIX_FADV_WILLNEED)

    def _descriptor(self, file: Path) -> int:
        if file not in self._open:
            if len(self._open) == OPEN:
                os.close(self._open.pop(next(iter(self._open))))
            self._open[file] = os.open(file, os.O_RDONLY)
        return self._open[file]


def _of_unit(plan: Plan, unit: Unit) -> Iterator[Piece]:
    for parameter in unit.parameters:
        pairs = [pair for _, pair in plan.beside(parameter)]
        runs = dict.fromkeys(chain.from_iterable(map(_read_for, pairs)))
        worth = (run for run in runs if run.length >= _least(run.file))
        yield from _in_turn(_chunks(run) for run in worth)


def _least(file: Path) -> int:
    """How many bytes are worth asking for."""
    return 1 if isinstance(file, RemotePath) else LEAST


def _read_for(pair: Pair) -> Iterator[Piece]:
    tuned = pair.tuned.base if isinstance(pair.tuned, OnOtherBase) else pair.tuned
    for matrix in (pair.base, tuned):
        if isinstance(matrix, Matrix):
            chunk = _block(pair.base, matrix)
            for tensor, start, stop in spans(matrix):
                at = tensor.offset + start
                yield Piece(tensor.file, at, stop - start, chunk, matrix.is_seen)
    adapted = pair.tuned.adapted if isinstance(pair.tuned, OnOtherBase) else pair.tuned
    if isinstance(adapted, Adapted):
        for part in adapted.tensors:
            if isinstance(part, StoredTensor):
                yield Piece(part.file, part.offset, part.nbytes)


def _block(base: Matrix, matrix: Matrix) -> int:
    """Bytes of a matrix that are seen beside a block of its base: they should come together."""
    height = base.height(RANGE)
    size = height * matrix.stored_shape[1] * BITS.get(matrix.dtype, 0) // 8
    return size if 0 < size <= LARGEST else RANGE  # of quantised ones each part has its own


def _chunks(run: Piece) -> Iterator[Piece]:
    chunk = run.chunk if isinstance(run.file, RemotePath) else CHUNK
    for start in range(0, run.length, chunk):
        yield run._replace(start=run.start + start, length=min(chunk, run.length - start))


def _in_turn(series: Iterable[Iterator[Piece]]) -> Iterator[Piece]:
    """One of each, then the next of each."""
    for row in zip_longest(*series):
        yield from (piece for piece in row if piece is not None)
