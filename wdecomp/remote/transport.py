"""What every protocol has to offer a `Store`: one try at each thing, and an error that says which.

All raise OSErrors whose `strerror` is a clause for a message and holds nothing secret:
FileNotFoundError, PermissionError, FileExistsError, `PassingError` for what another try may mend,
`OtherContentError` for a file that is no longer what was opened, `RefusedError` for the rest.
"""

import errno
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

DENIED = "access is denied (HTTP {}): the environment has no credentials that open it"
RANGE = re.compile(r"bytes (?P<first>\d{1,18})-(?P<last>\d{1,18})/(\d+|\*)")


@dataclass(frozen=True)
class Entry:
    """A file or folder below the root of a store.

    name: its path from there, "/" between the parts.
    size: bytes; 0 of a folder.
    etag: what tells this content from another of that name; "" where nothing does.
    """

    name: str
    size: int = 0
    etag: str = ""
    is_folder: bool = False


class PassingError(OSError):
    """Something that may be gone at the next try.

    wait: seconds that the server asks for before it; 0 where it does not say.
    """

    def __init__(self, text: str, wait: float = 0) -> None:
        super().__init__(errno.EIO, text)
        self.wait = wait


class RefusedError(OSError):
    """Something that no other try will mend."""

    def __init__(self, text: str) -> None:
        super().__init__(errno.EIO, text)


class OtherContentError(OSError):
    """The file is no longer the one that was opened."""

    def __init__(self) -> None:
        super().__init__(errno.ESTALE, "was changed or replaced while it was read")


class Transport(Protocol):
    """One way to bytes elsewhere. Names are paths below the root of the store."""

    @property
    def root(self) -> str:
        """The root as it is written down: of a repository, with its commit once that is known."""
        ...

    @property
    def guesses(self) -> tuple[str, ...]:
        """The files to ask for where folders cannot be listed; none where they can."""
        ...

    @property
    def immutable(self) -> bool:
        """Whether what it shows can never change."""
        ...

    @property
    def pins(self) -> bool:
        """Whether it gives no bytes of another content than was asked for, by its etag."""
        ...

    def entries(self, folder: str) -> list[Entry]:
        """What is in a folder, or in all folders below it; nothing if there is none."""
        ...

    def entry(self, name: str) -> Entry:
        """One file."""
        ...

    def read(self, name: str, start: int, stop: int, etag: str) -> bytes:
        """The bytes of a range, all of them, of a file that has this etag if it is not ""."""
        ...

    def write(self, name: str, source: bytes | Path, fresh: bool) -> None:
        """One whole file; with `fresh`, only where there is none."""
        ...

    def remove(self, name: str) -> None:
        """One file; one that is not there stays so."""
        ...


def missing() -> FileNotFoundError:
    """That there is no such file."""
    return FileNotFoundError(errno.ENOENT, "there is no such file")


def forbidden(text: str) -> PermissionError:
    """That the credentials do not open it, or that there are none."""
    return PermissionError(errno.EACCES, text)


def by_status(status: int, wait: float = 0) -> OSError | None:
    """The error that an HTTP status stands for; None where it is none."""
    if status < 400:
        return None
    if status in (404, 410):
        return missing()
    if status in (401, 403):
        return forbidden(DENIED.format(status))
    if status == 412:
        return OtherContentError()
    if status in (408, 425, 429) or status >= 500:
        return PassingError(f"the server answers HTTP {status}", wait)
    return RefusedError(f"the server answers HTTP {status}")


def check_range(content_range: str | None, length: int | None, start: int, stop: int) -> None:
    """That an answer is about the range that was asked for, before any of it is read.

    Args:
        content_range: `bytes 0-99/1000`; None where the server ignores ranges.
        length: bytes that are to come; None where it is not said.
        start: of the first byte that was asked for.
        stop: where they end.

    Raises:
        OSError: it is about other bytes, or all of them.
    """
    if content_range is None:
        if start == 0 and length == stop:
            return
        raise RefusedError(
            "the server does not give ranges of a file, only all of it. Download it and name "
            "the copy"
        )
    found = RANGE.fullmatch(content_range.strip())
    if found is None or int(found["first"]) != start:
        raise PassingError("the server gives another range than was asked for")
    if int(found["last"]) != stop - 1 or length not in (None, stop - start):
        raise PassingError(f"the server gives fewer bytes than the {stop - start:,} asked for")
