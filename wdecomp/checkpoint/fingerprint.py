"""Whether files are still those that were opened, and what their bytes were.

A file's size and time of change are looked at while it is read; a sample of its bytes tells it from
another of the same size and time; CRC-32 of every byte tells what has rotted since. A file that is
elsewhere has no times and is not sampled: its ETag, or what the hub knows it by, is both.
"""

import hashlib
import os
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from wdecomp.errors import CheckpointError
from wdecomp.remote import RemotePath, at_once, read_into

if TYPE_CHECKING:
    from wdecomp.checkpoint.header import ShardFile

SAMPLES, SAMPLE_BYTES = 64, 4096  # of a file, evenly spread
CHUNK = 4 << 20  # bytes of a file that are held at a time


class Span(NamedTuple):
    """Some bytes of a file: a tensor's, or all of a pickled file's."""

    file: Path
    start: int
    length: int
    tensor: str


_seen: ContextVar[set[Span] | None] = ContextVar("seen", default=None)


@contextmanager
def witnessed() -> Iterator[set[Span]]:
    """What this thread reads of weights while the context lasts."""
    seen: set[Span] = set()
    token = _seen.set(seen)
    try:
        yield seen
    finally:
        _seen.reset(token)


def note(span: Span) -> None:
    """Says that these bytes are about to be read."""
    seen = _seen.get()
    if seen is not None:
        seen.add(span)


def check_unchanged(shards: "Collection[ShardFile]") -> None:
    """That files are as they were when their headers were read.

    The time of change is told by the system and cannot be set, as that of modification can.

    Raises:
        CheckpointError: one was written to, replaced or removed.
    """
    far = [shard for shard in shards if isinstance(shard.path, RemotePath)]
    at_once(_check_elsewhere, far)
    for shard in shards:
        if isinstance(shard.path, RemotePath):
            continue
        try:
            status = shard.path.stat()
        except OSError as error:
            raise CheckpointError(
                f"{shard.path}: went away while it was read ({error.strerror}). "
                "Give the same command again when it is back."
            ) from None
        now = status.st_size, status.st_mtime_ns, status.st_ctime_ns
        if now != (shard.size, shard.mtime_ns, shard.ctime_ns):
            raise _changed(shard.path)


def is_pinned(shard: "ShardFile") -> bool:
    """Whether no byte of another content can have been read: its ranges are asked for by etag."""
    return isinstance(shard.path, RemotePath) and bool(shard.etag) and shard.path.store.pins


def _check_elsewhere(shard: "ShardFile") -> None:
    """One request; none where nothing can change."""
    file = shard.path
    assert isinstance(file, RemotePath)
    if file.store.immutable:
        return
    try:
        now = file.entry(again=True)
    except OSError as error:
        raise CheckpointError(
            f"{file}: cannot be looked at again ({error.strerror}). "
            "Give the same command again when it is back."
        ) from None
    if (now.size, now.etag) != (shard.size, shard.etag):
        raise _changed(file)


def _changed(file: Path) -> CheckpointError:
    return CheckpointError(
        f"{file}: was changed or replaced while it was read. "
        "Give the same command again when it is complete."
    )


def sample_sha256(file: Path, size: int) -> str:
    """SHA-256 of 64 pieces of 4 KiB, evenly spread over a file; of all of a small one.

    Of a file that is elsewhere: its ETag, or what the hub knows its content by.

    Raises:
        CheckpointError: the file cannot be read.
    """
    if isinstance(file, RemotePath):
        return _etag(file)
    digest = hashlib.sha256()
    last = max(size - SAMPLE_BYTES, 0)
    starts = sorted({last * i // (SAMPLES - 1) for i in range(SAMPLES)})
    if size <= SAMPLES * SAMPLE_BYTES:
        starts = list(range(0, size, SAMPLE_BYTES))
    try:
        with file.open("rb") as stream:
            for start in starts:
                stream.seek(start)
                digest.update(stream.read(SAMPLE_BYTES))
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror}).") from None
    return digest.hexdigest()


def _etag(file: RemotePath) -> str:
    try:
        return file.entry().etag
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror}).") from None


def crc32(span: Span, on_bytes: Callable[[int], None]) -> int:
    """CRC-32 of some bytes of a file, as zlib and PNG have it.

    Args:
        span: the bytes.
        on_bytes: told how many more have been gone through.

    Raises:
        CheckpointError: they cannot be read, or the file ends before them.
    """
    checksum, buffer = 0, memoryview(bytearray(min(CHUNK, span.length)))
    far = isinstance(span.file, RemotePath)
    try:
        for got in (_far_chunks if far else _near_chunks)(span, buffer):
            checksum = zlib.crc32(buffer[:got], checksum)
            on_bytes(got)
    except OSError as error:
        raise CheckpointError(f"{span.file}: cannot be read ({error.strerror}).") from None
    return checksum


def _near_chunks(span: Span, buffer: memoryview) -> Iterator[int]:
    """Fills the buffer again and again, and says how far."""
    left = span.length
    with span.file.open("rb", buffering=0) as stream:
        stream.seek(span.start, os.SEEK_SET)
        while left:
            got = stream.readinto(buffer[:left])
            if not got:
                raise CheckpointError(f"{span.file}: ended while {span.tensor!r} was read.")
            yield got
            left -= got


def _far_chunks(span: Span, buffer: memoryview) -> Iterator[int]:
    assert isinstance(span.file, RemotePath)
    stop = span.start + span.length
    for start in range(span.start, stop, max(len(buffer), 1)):
        got = min(len(buffer), stop - start)
        read_into(span.file, start, buffer[:got], stop)
        yield got
