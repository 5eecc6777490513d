"""Writing that a crash cannot spoil: a name appears when its content is complete and durable.

Temp file, fsync, rename, fsync of the folder. The rename follows the first fsync, so whoever sees
the name sees all of the content, after a power cut too; the second fsync makes the name last.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from wdecomp.errors import ResultsError


def commit(target: Path, write: Callable[[Path], None]) -> None:
    """Creates or replaces a file by what `write` puts at the path that it is given.

    Raises:
        ResultsError: the disk is full, read-only or failing; nothing is left half-written.
    """
    _commit(target, write, lambda _: target)


def commit_by_content(stem: Path, suffix: str, write: Callable[[Path], None]) -> Path:
    """A file whose name ends in a digest of its content, by `commit`; see `is_whole`."""
    return _commit(stem, write, lambda path: _by_content(stem, suffix, path))


def draft_by_content(stem: Path, suffix: str, write: Callable[[Path], None]) -> Path:
    """The same, without waiting for the disk: `settle` does that.

    A draft survives the process, but not a power cut. Its name is what it will have, and more; so
    whoever finds it can tell whether it is whole, and settle it.
    """
    return _commit(
        stem, write, lambda path: _temporary(_by_content(stem, suffix, path)), Path.replace
    )


def settle(draft: Path) -> Path:
    """Makes a draft durable under its name.

    Raises:
        ResultsError: the disk is full, read-only or failing. The draft is gone then: after a flush
            that failed, what can still be read of it may not be on the disk.
    """
    target = draft.with_name(draft.name.rpartition(".tmp-")[0])
    with _committing(target), _removed(draft):
        _settle(draft, target)
    return target


def is_whole(file: Path) -> bool:
    """Whether the content of a file by `commit_by_content`, or of a draft, is what was written.

    Raises:
        ResultsError: it cannot be read.
    """
    with reading(file):
        return file.name.partition(".")[0].rpartition("-")[2] == _mark(file)


def whole(file: Path) -> Path:
    """The file, which `is_whole`.

    Raises:
        ResultsError: it is not, or cannot be read.
    """
    if not is_whole(file):
        raise ResultsError(
            f"{file}: has changed since it was written. Give the same command again to continue."
        )
    return file


def _settle(temporary: Path, target: Path) -> None:
    sync(temporary)
    temporary.replace(target)
    sync(target.parent)


def _commit(
    aim: Path,
    write: Callable[[Path], None],
    named: Callable[[Path], Path],
    place: Callable[[Path, Path], object] = _settle,
) -> Path:
    temporary = _temporary(aim)
    with _committing(aim), _removed(temporary):
        make_folder(aim.parent)
        write(temporary)
        target = named(temporary)
        place(temporary, target)
    return target


def _by_content(stem: Path, suffix: str, written: Path) -> Path:
    return stem.with_name(f"{stem.name}-{_mark(written)}{suffix}")


def _temporary(aim: Path) -> Path:
    return aim.with_name(f"{aim.name}.tmp-{os.getpid()}-{os.urandom(4).hex()}")


@contextmanager
def _committing(aim: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ResultsError(f"{aim}: cannot be written ({reason}).") from None


@contextmanager
def _removed(temporary: Path) -> Iterator[None]:
    """Afterwards a file is not there."""
    try:
        yield
    finally:
        with suppress(OSError):  # a disk that fails fails here too; the next run removes it
            temporary.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """A folder and those above it, durable: a lost name loses all that is below it."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync(path.parent)


def commit_json(target: Path, value: Any) -> None:
    """A JSON file, by `commit`."""
    commit(target, lambda path: _ignore(path.write_bytes(canonical(value))))


def canonical(value: Any) -> bytes:
    """The bytes of a JSON value that is written here; equal values have equal bytes."""
    return json.dumps(value, indent=1).encode("ascii") + b"\n"


def commit_table(target: Path, table: pa.Table) -> None:
    """A Parquet file with page checksums, by `commit`."""

    def write(path: Path) -> None:
        with path.open("xb") as sink:
            pq.write_table(table, sink, **FORMAT)

    commit(target, write)


FORMAT: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Says which file it was that could not be read.

    Raises:
        ResultsError: what is read inside is damaged or gone.
    """
    try:
        yield
    except (OSError, pa.ArrowException, ValueError, LookupError, TypeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ResultsError(
            f"{file}: cannot be read ({reason}). "
            "Compare again with --restart, or into another folder."
        ) from None


def sha256(file: Path) -> str:
    """Digest of a file's content."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _mark(file: Path) -> str:
    return sha256(file)[:16]


def sync(path: Path) -> None:
    """Lets a file, or the names in a folder, reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _ignore(_: object) -> None:
    return None
