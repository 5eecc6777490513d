"""Bytes that were taken lately, for those who come back to them."""

from collections import OrderedDict
from threading import Lock

from wdecomp.remote.blocks import Block, Blocks
from wdecomp.remote.path import RemotePath

KEPT = 64 << 20  # bytes
FILES = 256  # of which it is known where they were last read


class Kept:
    """What was taken lately, up to `KEPT` bytes; any thread may use it."""

    def __init__(self) -> None:
        self._lock, self._blocks, self._size = Lock(), Blocks(), 0
        self._order: OrderedDict[Block, None] = OrderedDict()
        self._ends: OrderedDict[RemotePath, int] = OrderedDict()

    def keep(self, file: RemotePath, start: int, data: bytes) -> None:
        """Bytes that were fetched."""
        block = Block(file, start, start + len(data))
        block.data.set_result(data)
        self.add(block)

    def add(self, block: Block) -> None:
        """A block that has come."""
        with self._lock:
            if self._blocks.at(block.file, block.start) is not None:
                return
            self._blocks.add(block)
            self._order[block] = None
            self._size += block.length
            while self._size > KEPT and len(self._order) > 1:
                self._drop(next(iter(self._order)))

    def take(self, file: RemotePath, start: int, most: int, least: int) -> memoryview | None:
        """What is there of these bytes; None if too few are."""
        with self._lock:
            block = self._blocks.at(file, start)
            if block is not None:
                self._order.move_to_end(block)
        return None if block is None else block.part(start, most, least)

    def next_start(self, file: RemotePath, start: int, limit: int) -> int:
        """Where the next block begins, at most `limit`."""
        with self._lock:
            return self._blocks.next_start(file, start, limit)

    def goes_on(self, file: RemotePath, start: int) -> bool:
        """Whether what was last asked for of a file ended here."""
        with self._lock:
            return self._ends.get(file) == start

    def note(self, file: RemotePath, end: int) -> None:
        """Says where what was asked for of a file ended."""
        with self._lock:
            self._ends[file] = end
            self._ends.move_to_end(file)
            while len(self._ends) > FILES:
                self._ends.popitem(last=False)

    def forget(self) -> None:
        """Drops all of it."""
        with self._lock:
            self._ends.clear()
            while self._order:
                self._drop(next(iter(self._order)))

    def _drop(self, block: Block) -> None:
        del self._order[block]
        self._blocks.remove(block)
        self._size -= block.length
