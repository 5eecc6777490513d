"""A file or folder elsewhere as a `Path`, so that whoever opens checkpoints knows no other kind.

Only what can be asked of a store is overridden. All else would ask this machine's disk, and is
refused: nothing passes a `RemotePath` to the operating system (`__fspath__`).
"""

import errno
import io
import os
import stat
from collections.abc import Generator
from fnmatch import fnmatchcase
from functools import cached_property, lru_cache
from pathlib import PosixPath
from threading import Event
from typing import IO, Any, Self

from wdecomp.remote.store import Store, store_of
from wdecomp.remote.transport import Entry, missing
from wdecomp.remote.urls import Place, parsed


class RemotePath(PosixPath):
    """A URL without query or credentials; `str` gives it back."""

    def __str__(self) -> str:
        protocol, *parts = self.parts or ("",)
        return f"{protocol}//{'/'.join(parts)}" if protocol.endswith(":") else super().__str__()

    def __fspath__(self) -> str:
        raise OSError(errno.ENOTSUP, "is not on this disk")

    def __reduce__(self) -> tuple[Any, ...]:
        return RemotePath, (str(self),)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and self.parts == other.parts

    def __hash__(self) -> int:
        return hash(self.parts)

    @property
    def place(self) -> Place:
        """Its store and its path there.

        Raises:
            CheckpointError: it is none that is understood.
        """
        return _place(str(self))

    @property
    def store(self) -> Store:
        """Where its bytes are."""
        return store_of(self.place.address)

    def entry(self, again: bool = False) -> Entry:
        """What the store says of it; with `again`, whatever is known.

        Raises:
            OSError: there is none, or the store does not say.
        """
        found = self.store.entry(self.place.name, again)
        if found is None:
            raise missing()
        return found

    def fetch(self, start: int, stop: int, stopped: Event | None = None) -> bytes:
        """Its bytes from `start` to before `stop`, exactly, of the content first seen.

        Args:
            start: of the first byte.
            stop: where they end.
            stopped: set when nobody wants them any more.

        Raises:
            OSError: they cannot be had.
        """
        return self.store.fetch(self.place.name, start, stop, self.entry().etag, stopped)

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Its kind and size; there are no times."""
        found = self.entry()
        kind = stat.S_IFDIR | 0o555 if found.is_folder else stat.S_IFREG | 0o444
        return os.stat_result((kind, 0, 0, 1, 0, 0, found.size, 0, 0, 0))

    def lstat(self) -> os.stat_result:
        """The same: there are no links."""
        return self.stat()

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        """Whether there is a file or folder."""
        return self.store.entry(self.place.name) is not None

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Whether there is a file."""
        found = self.store.entry(self.place.name)
        return found is not None and not found.is_folder

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Whether there is a folder."""
        found = self.store.entry(self.place.name)
        return found is not None and found.is_folder

    def is_symlink(self) -> bool:
        """Never."""
        return False

    def iterdir(self) -> Generator[Self, None, None]:
        """What is in it."""
        for name in self.store.entries(self.place.name):
            yield self / name

    def glob(self, pattern: str, **_: Any) -> Generator[Self, None, None]:
        """What is below it by names with `*` and `?`."""
        first, _separator, rest = pattern.partition("/")
        for child in self.iterdir():
            if fnmatchcase(child.name, first):
                yield from child.glob(rest) if rest else [child]

    def resolve(self, strict: bool = False) -> Self:
        """Itself."""
        return self

    def absolute(self) -> Self:
        """Itself."""
        return self

    def read_bytes(self) -> bytes:
        """All of it; whoever asks has seen its size."""
        return self.fetch(0, self.entry().size)

    def open(self, mode: str = "r", buffering: int = -1, *text: Any, **options: Any) -> IO[Any]:  # type: ignore[override]
        """A stream of ranges, to read from."""
        if set(mode) - set("rbt"):
            raise OSError(errno.EROFS, "is only read from")
        raw = _Stream(self)
        if buffering == 0:
            return raw  # type: ignore[return-value]
        buffered = io.BufferedReader(raw, max(buffering, 1 << 20))
        return buffered if "b" in mode else io.TextIOWrapper(buffered, *text, **options)


class _Stream(io.RawIOBase):
    """Bytes from a position on, a range for each read."""

    def __init__(self, path: RemotePath) -> None:
        self._path, self._at = path, 0

    @cached_property
    def _size(self) -> int:
        return self._path.entry().size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, into: Any) -> int:
        view = memoryview(into).cast("B")
        count = max(min(len(view), self._size - self._at), 0)
        view[:count] = self._path.fetch(self._at, self._at + count)
        self._at += count
        return count

    def fileno(self) -> int:
        raise OSError(errno.ENOTSUP, "is not on this disk")


@lru_cache(4096)
def _place(url: str) -> Place:
    return parsed(url)
