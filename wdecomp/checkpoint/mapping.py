"""Stored bytes seen where the page cache has them, twice as fast as copied ones.

A process that touches a mapped page which its file no longer has, or which cannot be read, is
ended by SIGBUS. Inside `surviving` it is not: zeros take the place of the page, and the window says
that it is damaged, as journald does with its mapped files. Windows are only opened there, and only
on Linux; elsewhere bytes are copied.
"""

import ctypes
import mmap
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from os import fstat
from threading import Lock
from typing import ClassVar

import numpy as np

from wdecomp.dtypes import Array

WIDEST = 32 << 20  # bytes of a window: wider ones are no faster
HUGE = 2 << 20  # bytes of a page where the page cache has large ones and they are mapped whole
LEAST = 256 << 10  # bytes for which a mapping is worth while
NOTHING: Array = np.empty(0, np.uint8)


class Window:
    """Some bytes of a file, mapped; `damaged` once a page of them could not be had.

    stop: where they end in the file.
    """

    _open: ClassVar[set["Window"]] = set()

    def __init__(self, descriptor: int, start: int, length: int) -> None:
        skip, self.stop = start % HUGE, start + length
        first, size = start - skip, fstat(descriptor).st_size
        end = min(self.stop - self.stop % -HUGE, max(self.stop, size))
        mapped = mmap.mmap(descriptor, end - first, mmap.MAP_SHARED, mmap.PROT_READ, offset=first)
        every: Array = np.frombuffer(mapped, np.uint8)
        self.bytes = every[skip : skip + length]
        self.damaged = False
        self._first, self._length = every.ctypes.data, every.size
        self._open.add(self)
        _populate(self._first + skip, length)

    def close(self) -> None:
        """Gives the pages back; whoever still holds a view of them keeps them."""
        self._open.discard(self)
        self.bytes = NOTHING

    @classmethod
    def at(cls, address: int) -> "Window | None":
        """The open window that an address of this process lies in."""
        inside = (w for w in tuple(cls._open) if 0 <= address - w._first < w._length)
        return next(inside, None)


class _Action(ctypes.Structure):
    """Linux' `struct sigaction`, as its C libraries have it."""

    _fields_: ClassVar = [
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ulong * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    ]


_SIGINFO = 4  # the handler is told the address
_ADDRESS_AT = 16  # in its siginfo_t
_POPULATE_READ = 22  # MADV_POPULATE_READ, since Linux 5.14
_FIXED = 0x10  # MAP_FIXED: over the page that is there
_lock = Lock()
_depth = 0
_width = 0


def window_bytes() -> int:
    """How wide a window should be; 0 where a lost page would not be survived."""
    return _width if _depth else 0


@contextmanager
def surviving(width: int = WIDEST) -> Iterator[None]:
    """Windows of about `width` bytes may be opened; a page that is lost damages only its window."""
    global _width
    _width = min(width, WIDEST)
    if not sys.platform.startswith("linux") or ctypes.sizeof(ctypes.c_void_p) != 8:
        yield
        return
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _depth
    with _lock:
        if _depth == 0:
            ours = _Action(ctypes.cast(_on_lost_page, ctypes.c_void_p), flags=_SIGINFO)
            _libc().sigaction(signal.SIGBUS, ctypes.byref(ours), ctypes.byref(_before))
        _depth += 1


def _leave() -> None:
    global _depth
    with _lock:
        _depth -= 1
        if _depth == 0:
            _libc().sigaction(signal.SIGBUS, ctypes.byref(_before), None)


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)  # type: ignore[untyped-decorator]
def _on_lost_page(number: int, info: int, _: int) -> None:
    """Runs in the thread that touched the page; when it returns, that thread touches it again."""
    address = ctypes.c_void_p.from_address(info + _ADDRESS_AT).value or 0
    window = Window.at(address)
    if window is None:  # not one of ours: let it end the process as it would have
        _libc().sigaction(signal.SIGBUS, ctypes.byref(_before), None)
        return
    window.damaged = True
    page = address - address % mmap.PAGESIZE
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _FIXED
    _libc().mmap(page, mmap.PAGESIZE, mmap.PROT_READ, flags, -1, 0)


_before = _Action()


def _populate(address: int, length: int) -> None:
    """Has the pages of a window ready, without holding the interpreter as Python's mmap would.

    An older kernel cannot; pages that cannot be had are seen to be damaged when they are touched.
    """
    page = address - address % mmap.PAGESIZE
    _libc().madvise(page, address + length - page, _POPULATE_READ)


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
    ]  # fmt: skip
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc
