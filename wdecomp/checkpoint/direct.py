"""Stored bytes read past the page cache: for what is read once and would not stay there.

Through the page cache every 4 KiB of a file take a page, those of others are pushed out, and a fast
disk waits. `O_DIRECT` reads into buffers that are used again and again, into one while another is
looked at. A tensor that the page cache has already is mapped all the same, and so is what cannot be
read in this way: a mapping tells why.

Disks of virtual machines are copied by the processor: the fewer bytes the buffers have in all, the
more of them its caches hold. So windows are narrow (`WIDEST_READ`).
"""

import mmap
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cached_property
from threading import Lock

import numpy as np

from wdecomp.checkpoint.mapping import HUGE, NOTHING, window_bytes
from wdecomp.checkpoint.page_cache import is_cached
from wdecomp.dtypes import Array

SECTOR = 4096  # where a direct read may begin and end
WIDEST_READ = 2 << 20  # bytes of a window
READERS = 4  # threads that wait for the disk, beside those that look at windows

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
    """Windows on some bytes of a file, from the disk; the next is read while one is looked at.

    start, stop: of these bytes.
    """

    def __init__(self, descriptor: int, start: int, stop: int) -> None:
        self._descriptor, self._start, self._stop = descriptor, start, stop
        self._next: Future[DirectWindow | None] | None = None

    @cached_property
    def width(self) -> int:
        """Bytes of a window, about; 0 where they should be mapped."""
        wanted = _depth and is_cached(self._descriptor, self._start, self._stop) is False
        return min(WIDEST_READ, window_bytes() // 2) if wanted else 0

    def read(self, start: int, length: int, stop: int) -> DirectWindow | None:
        """Some bytes of the file; None where they should be mapped.

        Args:
            start: of the first byte.
            length: how many.
            stop: up to where others will be asked for, as many at a time.
        """
        if not self.width:
            return None
        found = self._taken()
        if found is not None and (found.stop, found.bytes.size) != (start + length, length):
            found.close()
            found = None
        found = found or _read(self._descriptor, start, length)
        first, count = start + length, min(length, stop - start - length)
        if found is None:
            self.width = 0
        elif count > 0:
            self._next = _readers.submit(_read, self._descriptor, first, count)
        return found

    def close(self) -> None:
        """Before the file is closed."""
        found = self._taken()
        if found is not None:
            found.close()

    def _taken(self) -> DirectWindow | None:
        """What was read in advance."""
        reading, self._next = self._next, None
        return None if reading is None else reading.result()


def _read(descriptor: int, start: int, length: int) -> DirectWindow | None:
    skip = start % SECTOR
    needed = skip + length
    whole = needed - needed % -SECTOR
    with suppress(OSError):
        buffer = _buffer_of(whole)
        if _fill(descriptor, start - skip, buffer[:whole]) >= needed:
            return DirectWindow(buffer, skip, length, start + length)
        _free.append(buffer)
    return None


def _fill(descriptor: int, start: int, buffer: Array) -> int:
    """How many bytes there were for it."""
    # Opened by its number: its name may be another file's by now.
    direct = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_DIRECT)
    try:
        filled = 0
        while filled < buffer.size and filled % SECTOR == 0:
            count = os.preadv(direct, [buffer[filled:].data], start + filled)
            if not count:
                break
            filled += count
        return filled
    finally:
        os.close(direct)


def _buffer_of(size: int) -> Array:
    """At least so many bytes: those of a window that was closed, if they are enough."""
    with suppress(IndexError):
        buffer = _free.pop()
        if buffer.size >= size:
            return buffer
    size -= size % -HUGE
    # Private, for shared memory seldom has large pages, and of small ones a disk is asked for less.
    mapped = mmap.mmap(-1, size + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):
        mapped.madvise(mmap.MADV_HUGEPAGE)
    every: Array = np.frombuffer(mapped, np.uint8)
    skip = -every.ctypes.data % HUGE
    return every[skip : skip + size]
