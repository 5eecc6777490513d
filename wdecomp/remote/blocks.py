"""Bytes of files that are held, or on their way, by where they begin."""

from bisect import bisect_left, bisect_right, insort
from concurrent.futures import Future
from dataclasses import dataclass, field
from operator import attrgetter

from wdecomp.remote.path import RemotePath

_START = attrgetter("start")


@dataclass(eq=False)
class Block:
    """A run of bytes of a file.

    untaken: how many of them nobody has had yet.
    since: how many bytes had been taken in all when it was asked for.
    """

    file: RemotePath
    start: int
    stop: int
    data: Future[bytes] = field(default_factory=Future)
    untaken: int = 0
    since: int = 0

    @property
    def length(self) -> int:
        """How many bytes it has."""
        return self.stop - self.start

    def part(self, start: int, most: int, least: int) -> memoryview | None:
        """Its bytes from `start` on once they have come, at most `most`; None if not `least`."""
        count = min(self.stop - start, most)
        if count < least:
            return None
        first = start - self.start
        return memoryview(self.data.result())[first : first + count]


class Blocks:
    """Blocks of many files, none of which overlap."""

    def __init__(self) -> None:
        self._of: dict[RemotePath, list[Block]] = {}

    def add(self, block: Block) -> None:
        """One more."""
        insort(self._of.setdefault(block.file, []), block, key=_START)

    def remove(self, block: Block) -> None:
        """One less."""
        held = self._of.get(block.file, [])
        at = bisect_left(held, block.start, key=_START)
        if at < len(held) and held[at] is block:
            del held[at]

    def at(self, file: RemotePath, position: int) -> Block | None:
        """The block that has a byte."""
        held = self._of.get(file, [])
        before = bisect_right(held, position, key=_START) - 1
        return held[before] if before >= 0 and position < held[before].stop else None

    def next_start(self, file: RemotePath, position: int, limit: int) -> int:
        """Where the next block begins, at most `limit`."""
        held = self._of.get(file, [])
        after = bisect_right(held, position, key=_START)
        return min(held[after].start, limit) if after < len(held) else limit


class Spans:
    """Which bytes of files have been asked for, as intervals that are joined where they meet."""

    def __init__(self) -> None:
        self._of: dict[RemotePath, list[tuple[int, int]]] = {}

    def add(self, file: RemotePath, start: int, stop: int) -> None:
        """These bytes, too."""
        spans = self._of.setdefault(file, [])
        first = bisect_left(spans, (start, -1))
        if first and spans[first - 1][1] >= start:
            first -= 1
        last = bisect_right(spans, (stop, stop), lo=first)
        if last > first:
            start = min(start, spans[first][0])
            stop = max(stop, max(end for _, end in spans[first:last]))
        spans[first:last] = [(start, stop)]

    def without(self, file: RemotePath, start: int, stop: int) -> list[tuple[int, int]]:
        """Of these bytes, those that are not among them."""
        spans = self._of.get(file, [])
        found: list[tuple[int, int]] = []
        for begin, end in spans[max(bisect_right(spans, (start, 1 << 63)) - 1, 0) :]:
            if begin >= stop:
                break
            if begin > start:
                found.append((start, begin))
            start = max(start, end)
        if start < stop:
            found.append((start, stop))
        return found
