"""Read-ahead: the disk is asked for what the workers will want next while they compute.

A thread of its own goes over the bytes in the order in which the workers do, `AHEAD` before them,
and only advises: nothing is copied. What the page cache has already is skipped.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, zip_longest
from pathlib import Path
from threading import Condition, Thread
from typing import NamedTuple

from wdecomp.adapter import OnOtherBase
from wdecomp.checkpoint import Matrix, QuantizedTensor, StoredTensor
from wdecomp.pairing import Pair
from wdecomp.scan.plan import Plan, Unit

AHEAD = 256 << 20  # bytes, for each worker
CHUNK = 8 << 20  # bytes: asked for at a time
LEAST = 1 << 20  # bytes of a tensor for which asking is worth while


class Piece(NamedTuple):
    """Some bytes of a file."""

    file: Path
    start: int
    length: int


def pieces(plan: Plan, units: list[Unit], workers: int) -> Iterator[Piece]:
    """The bytes of these units in about the order in which so many workers read them."""
    for first in range(0, len(units), workers):
        yield from _in_turn(_of_unit(plan, unit) for unit in units[first : first + workers])


@contextmanager
def read_ahead(wanted: Iterator[Piece], reach: int) -> Iterator[Callable[[int], None]]:
    """Keeps about `reach` bytes ahead; to be told how many bytes have been gone through."""
    if not hasattr(os, "posix_fadvise"):
        yield lambda _: None
        return
    progress = _Progress(reach)
    thread = Thread(target=_advise, args=(wanted, progress), daemon=True)
    thread.start()
    try:
        yield progress.advance
    finally:
        progress.advance(None)
        thread.join()


class _Progress:
    def __init__(self, reach: int) -> None:
        self._left, self._stopped, self._changed = reach, False, Condition()

    def advance(self, count: int | None) -> None:
        """So many bytes more have been gone through; None ends it all."""
        with self._changed:
            self._stopped |= count is None
            self._left += count or 0
            self._changed.notify()

    def take(self, count: int) -> bool:
        """Waits until so many bytes are within reach; False where it has ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._left > 0)
            self._left -= count
            return not self._stopped


def _advise(wanted: Iterator[Piece], progress: _Progress) -> None:
    for piece in wanted:
        if not progress.take(piece.length):
            return
        with suppress(OSError):  # whoever reads it will say what is wrong
            descriptor = os.open(piece.file, os.O_RDONLY)
            try:
                if not _is_cached(descriptor, piece):
                    advice = os.POSIX_FADV_WILLNEED
                    os.posix_fadvise(descriptor, piece.start, piece.length, advice)
            finally:
                os.close(descriptor)


def _is_cached(descriptor: int, piece: Piece) -> bool:
    """Whether the first and the last byte can be had without waiting for the disk."""
    try:
        ends = piece.start, piece.start + piece.length - 1
        return all(os.preadv(descriptor, [bytearray(1)], at, os.RWF_NOWAIT) for at in ends)
    except OSError:
        return False


def _of_unit(plan: Plan, unit: Unit) -> Iterator[Piece]:
    for parameter in unit.parameters:
        pairs = [pair for _, pair in plan.beside(parameter)]
        tensors = dict.fromkeys(chain.from_iterable(map(_read_for, pairs)))
        yield from _in_turn(_of_tensor(tensor) for tensor in tensors if tensor.nbytes >= LEAST)


def _read_for(pair: Pair) -> Iterator[StoredTensor]:
    tuned = pair.tuned.base if isinstance(pair.tuned, OnOtherBase) else pair.tuned
    for matrix in (pair.base, tuned):
        if isinstance(matrix, Matrix):
            weight = matrix.tensor
            parts = weight.parts.values() if isinstance(weight, QuantizedTensor) else [weight]
            yield from (part for part in parts if isinstance(part, StoredTensor))


def _of_tensor(tensor: StoredTensor) -> Iterator[Piece]:
    for start in range(0, tensor.nbytes, CHUNK):
        length = min(CHUNK, tensor.nbytes - start)
        yield Piece(tensor.file, tensor.offset + start, length)


def _in_turn(series: Iterable[Iterator[Piece]]) -> Iterator[Piece]:
    """One of each, then the next of each."""
    for row in zip_longest(*series):
        yield from (piece for piece in row if piece is not None)
