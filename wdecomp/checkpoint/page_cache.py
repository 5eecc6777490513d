"""What of a file the page cache has: it can be had without waiting for the disk."""

import mmap
import os
import random

LOOKED = 2 << 20  # bytes of which one says whether they are there


def is_cached(descriptor: int, start: int, stop: int) -> bool | None:
    """Whether bytes of a file are there, as far as some of them say.

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
    first, last = start + mmap.PAGESIZE, stop - mmap.PAGESIZE - 1
    return random.randint(first, last) if first <= last else (start + stop) // 2
