"""Stored bytes read past the page cache: for what is read once and would not stay there.

Through the page cache every 4 KiB of a file take a page, those of others are pushed out, and a fast
disk waits. `O_DIRECT` reads into buffers that are used again and again, into one while another is
looked at. What the page cache has already is mapped all the same, and so is what cannot be read in
this way: a mapping tells why.
"""

import mmap
import os
import random
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from threading import Lock

import numpy as np

from wdecomp.checkpoint.mapping import HUGE, NOTHING
from wdecomp.dtypes import Array

SECTOR = 4096  # where a direct read may begin and end
LOOKED = 2 << 20  # bytes of which one says whether the page cache has them
READERS = 8  # threads that wait for the disk, beside those that look at windows

_lock = Lock()
_depth = 0
_free: list[Array] = []
_readers = ThreadPoolExecutor(READERS, thread_name_prefix="direct")  # begun when they are needed


@contextmanager
def past_the_cache() -> Iterator[None]:
    """While it lasts, windows on what the page cache has not are read and leave nothing there."""
    global _depth
    with _lock:
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if not _depth:
                _free.clear()


def is_cached(descriptor: int, start: int, stop: int) -> bool | None:
    """Whether bytes of a file can be had without waiting for the disk, as far as some of them say.

    None if the system does not tell. Looking brings a page into the cache: another one each time.
    """
    try:
        for first in range(start, stop, LOOKED):
            at = _inside(first, min(first + LOOKED, stop))
            os.preadv(descriptor, [bytearray(1)], at, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except (AttributeError, OSError):
        return None
    return True


def _inside(start: int, stop: int) -> int:
    """One of these bytes, of a page that they share with no others, if there is one."""
    first, last = start + SECTOR, stop - SECTOR - 1
    return random.randint(first, last) if first <= last else (start + stop) // 2


class DirectWindow:
    """Some bytes of a file, read; what a mapped `Window` is otherwise.

    stop: where they end in the file.
    """

    damaged = False

    def __init__(self, buffer: Array, skip: int, length: int, stop: int) -> None:
        self._buffer, self.stop = buffer, stop
        self.bytes = buffer[skip : skip + length]
        self.bytes.flags.writeable = False

    def close(self) -> None:
        """Gives the buffer to others; whoever still holds a view of it sees their bytes."""
        self.bytes = NOTHING
        _free.append(self._buffer)


class DirectWindows:
    """Windows on one file from the disk itself; the next is read while one is looked at."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._next: tuple[int, int, Future[DirectWindow | None]] | None = None

    def read(self, start: int, length: int, stop: int) -> DirectWindow | None:
        """Some bytes of the file; None where they should be mapped.

        Args:
            start: of the first byte.
            length: how many.
            stop: up to where others will be asked for, as many at a time.
        """
        if not _depth:
            return None
        found = self._taken(start, length) or _read(self._descriptor, start, length)
        first, count = start + length, min(length, stop - start - length)
        if found is not None and count > 0:
            reading = _readers.submit(_read, self._descriptor, first, count)
            self._next = first, count, reading
        return found

    def close(self) -> None:
        """Before the file is closed."""
        found = self._taken()
        if found is not None:
            found.close()

    def _taken(self, *wanted: int) -> DirectWindow | None:
        if self._next is None:
            return None
        *there, reading = self._next
        self._next = None
        found = reading.result()
        if found is None or not wanted or [*wanted] == there:
            return found
        found.close()
        return None


def _read(descriptor: int, start: int, length: int) -> DirectWindow | None:
    if is_cached(descriptor, start, start + length) is not False:
        return None
    skip = start % SECTOR
    size = skip + length
    buffer = _buffer_of(size - size % -SECTOR)
    with suppress(OSError):
        # Opened by its number: its name may be another file's by now.
        direct = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_DIRECT)
        try:
            if _fill(direct, start - skip, buffer[: size - size % -SECTOR]) >= size:
                return DirectWindow(buffer, skip, length, start + length)
        finally:
            os.close(direct)
    _free.append(buffer)
    return None


def _fill(descriptor: int, start: int, buffer: Array) -> int:
    """How many bytes there were for it."""
    filled = 0
    while filled < buffer.size and filled % SECTOR == 0:
        count = os.preadv(descriptor, [buffer[filled:].data], start + filled)
        if not count:
            break
        filled += count
    return filled


def _buffer_of(size: int) -> Array:
    """At least so many bytes: those of a window that was closed, if they are enough."""
    with suppress(IndexError):
        buffer = _free.pop()
        if buffer.size >= size:
            return buffer
    size -= size % -HUGE
    mapped = mmap.mmap(-1, size + HUGE)
    with suppress(OSError):
        mapped.madvise(mmap.MADV_HUGEPAGE)
    every: Array = np.frombuffer(mapped, np.uint8)
    skip = -every.ctypes.data % HUGE
    return every[skip : skip + size]
