"""What will be read next, fetched before it is: many ranges at a time, in bounded memory.

A plan says which bytes will be wanted and in about which order. A thread asks for them, `IN_FLIGHT`
ranges at once, as long as what has been fetched and not been taken fits into the memory that was
given; whoever reads takes them from there. What was taken lately is kept for a while. What is not
there is fetched when it is asked for, and then not by the plan.
"""

from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from operator import itemgetter
from threading import Condition, Event, Lock, Thread
from typing import NamedTuple

import numpy as np

from wdecomp.remote import tiny
from wdecomp.remote.blocks import Block, Blocks, Spans
from wdecomp.remote.kept import Kept
from wdecomp.remote.path import RemotePath
from wdecomp.remote.store import IN_FLIGHT

RANGE = 8 << 20  # bytes of a request, about
TOGETHER, MOST_TOGETHER = 32 << 20, 256  # bytes and pieces of a plan among which neighbours join
STALE = 4  # times the memory that was taken since: nobody will come for it


class Wanted(NamedTuple):
    """Some bytes of a file that will be read."""

    file: RemotePath
    start: int
    stop: int


@contextmanager
def fetched_ahead(plan: Iterator[Wanted | None], memory: int) -> Iterator[None]:
    """While it lasts, the bytes of a plan are fetched before they are asked for.

    Args:
        plan: in about the order in which they will be; None where what came before it should not
            wait for what comes after it.
        memory: bytes that may be held which nobody has taken yet.
    """
    ahead = _Ahead(plan, memory)
    with _changing:
        _running.append(ahead)
    try:
        yield
    finally:
        with _changing:
            _running.remove(ahead)
        ahead.stop()


def view_of(file: RemotePath, start: int, length: int) -> memoryview | None:
    """Bytes of a file where they lie in memory, or will in a moment; None if they are to be copied.

    Args:
        file: where they are.
        start: of the first one.
        length: how many.

    Raises:
        OSError: they cannot be had.
    """
    return _there(file, start, most=length, least=length)


def read_into(file: RemotePath, start: int, into: memoryview, limit: int) -> None:
    """Fills `into` with the bytes of a file from `start` on.

    Args:
        file: where they are.
        start: of the first one.
        into: bytes; its length says how many.
        limit: up to where it makes sense to read on: the end of a tensor.

    Raises:
        OSError: they cannot be had.
    """
    while into:
        found = _there(file, start, len(into))
        if found is None:
            count = tiny.take(file, start, into)
            found = None if count else _fetched(file, start, len(into), limit)
        if found is not None:
            count = len(found)
            # By numpy, which lets go of the interpreter, so that others may fetch meanwhile.
            np.frombuffer(into, np.uint8)[:count] = np.frombuffer(found, np.uint8)
        start, into = start + count, into[count:]


def forget_kept() -> None:
    """Drops what was taken lately: a file may have become another one."""
    _kept.forget()
    tiny.forget()


def _sources() -> "list[_Ahead | Kept]":
    return [*_running, _kept]


def _there(file: RemotePath, start: int, most: int, least: int = 1) -> memoryview | None:
    """The bytes from `start` on that have come or are on their way, `least` to `most` of them."""
    for source in _sources():
        found = source.take(file, start, most, least)
        if found is not None:
            return found
    return None


def _fetched(file: RemotePath, start: int, count: int, limit: int) -> memoryview:
    """Asks for what is not there: what was planned or is read on and on, as a whole range."""
    stop = start + count
    widest = max(stop, min(start + RANGE, limit))
    for source in _sources():
        widest = source.next_start(file, start, widest)
    claimed = min((each.claim(file, start, widest) for each in [*_running]), default=start)
    if claimed == start:  # a plan may have asked for them in this moment
        found = _there(file, start, count)
        if found is not None:
            return found
    wide = widest if _kept.goes_on(file, start) else min(stop, widest)
    data = file.fetch(start, claimed if claimed > start else wide)
    _kept.note(file, start + min(count, len(data)))
    if claimed > start or count < len(data):
        _kept.keep(file, start, data)
    return memoryview(data)[:count]


class _Ahead:
    """One plan on its way."""

    def __init__(self, plan: Iterator[Wanted | None], memory: int) -> None:
        self._changed, self._stopped = Condition(), Event()
        self._memory = self._left = memory
        self._blocks, self._asked, self._taken = Blocks(), Spans(), 0
        self._waiting: OrderedDict[Block, None] = OrderedDict()
        self._pool = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="ahead")
        self._thread = Thread(target=self._drive, args=(plan,), daemon=True)
        self._thread.start()

    def take(self, file: RemotePath, start: int, most: int, least: int) -> memoryview | None:
        """What is there of these bytes, waiting where it is on its way; None if too few are."""
        with self._changed:
            block = self._blocks.at(file, start)
        if block is None:
            return None
        try:
            found = block.part(start, most, least)
        except CancelledError:
            return None
        if found is None:
            return None
        with self._changed:
            self._taken += len(found)
            block.untaken -= len(found)
            if block.untaken <= 0 and block in self._waiting:
                self._release(block)
                _kept.add(block)
        return found

    def next_start(self, file: RemotePath, start: int, limit: int) -> int:
        with self._changed:
            return self._blocks.next_start(file, start, limit)

    def claim(self, file: RemotePath, start: int, stop: int) -> int:
        """Up to where nobody has asked for these bytes; whoever asks now will, and not the plan."""
        with self._changed:
            free = self._asked.without(file, start, stop)
            if not free or free[0][0] > start:
                return start
            stop = free[0][1]
            self._asked.add(file, start, stop)
            self._taken += stop - start
            self._changed.notify()
            return stop

    def stop(self) -> None:
        with self._changed:
            self._stopped.set()
            self._changed.notify()
        self._thread.join()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _drive(self, plan: Iterator[Wanted | None]) -> None:
        for wanted in _joined(plan):
            if not self._ask(wanted):
                return

    def _ask(self, wanted: Wanted) -> bool:
        """Asks for bytes once there is room for them; False where all has ended."""
        with self._changed:
            self._changed.wait_for(self._has_room)
            if self._stopped.is_set():
                return False
            for start, stop in self._asked.without(*wanted):
                block = Block(wanted.file, start, stop, untaken=stop - start, since=self._taken)
                self._left -= block.length
                block.data = self._pool.submit(self._fetch, block)
                self._blocks.add(block)
                self._waiting[block] = None
            self._asked.add(*wanted)
        return True

    def _fetch(self, block: Block) -> bytes:
        return block.file.fetch(block.start, block.stop, self._stopped)

    def _has_room(self) -> bool:
        while self._left <= 0 and self._waiting and not self._stopped.is_set():
            oldest = next(iter(self._waiting))
            if self._taken - oldest.since < STALE * self._memory or not oldest.data.done():
                return False
            self._release(oldest)
        return True

    def _release(self, block: Block) -> None:
        del self._waiting[block]
        self._blocks.remove(block)
        self._left += block.length
        self._changed.notify()


def _joined(plan: Iterator[Wanted | None]) -> Iterator[Wanted]:
    """A plan with neighbours in one range, as far as they are wanted at about the same time."""
    for group in _groups(plan):
        merged: list[tuple[int, Wanted]] = []
        for rank, each in sorted(enumerate(group), key=lambda w: (str(w[1].file), w[1].start)):
            first, last = merged[-1] if merged else (0, None)
            near = last is not None and last.file == each.file and last.stop >= each.start
            if last is not None and near and each.stop - last.start <= RANGE + RANGE // 8:
                merged[-1] = min(first, rank), last._replace(stop=max(last.stop, each.stop))
            else:
                merged.append((rank, each))
        yield from (each for _, each in sorted(merged, key=itemgetter(0)))


def _groups(plan: Iterator[Wanted | None]) -> Iterator[list[Wanted]]:
    group: list[Wanted] = []
    size = 0
    for each in plan:
        if each is not None:
            group.append(each)
            size += each.stop - each.start
        if each is None or size >= TOGETHER or len(group) >= MOST_TOGETHER:
            yield group
            group, size = [], 0
    yield group


_changing = Lock()
_running: list[_Ahead] = []
_kept = Kept()
