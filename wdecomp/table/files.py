"""Writing that a crash cannot spoil: a name appears when its content is complete and durable.

Temp file, fsync, rename, fsync of the folder. The rename follows the first fsync, so whoever sees
the name sees all of the content, after a power cut too; the second fsync makes the name last.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from wdecomp.errors import ResultsError
from wdecomp.table.schema import FIGURES


def commit(target: Path, write: Callable[[Path], None]) -> None:
    """Creates or replaces a file by what `write` puts at the path that it is given.

    Raises:
        ResultsError: the disk is full, read-only or failing; nothing is left half-written.
    """
    temporary = target.with_name(f"{target.name}.tmp-{os.getpid()}-{os.urandom(4).hex()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        sync(temporary)
        temporary.replace(target)
        sync(target.parent)
    except (OSError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ResultsError(f"{target}: cannot be written ({reason}).") from None
    finally:
        temporary.unlink(missing_ok=True)


def commit_json(target: Path, value: Any) -> None:
    """A JSON file, by `commit`."""
    commit(target, lambda path: _ignore(path.write_bytes(canonical(value))))


def canonical(value: Any) -> bytes:
    """The bytes of a JSON value that is written here; equal values have equal bytes."""
    return json.dumps(value, indent=1).encode("ascii") + b"\n"


def commit_table(target: Path, table: pa.Table) -> None:
    """A Parquet file with page checksums, by `commit`."""
    commit(target, lambda path: pq.write_table(table, path, **FORMAT))


def columns_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Writes tables of columns, a row group each."""
    return pq.ParquetWriter(
        path,
        schema,
        use_dictionary=["parameter", "axis"],
        column_encoding={"column": "DELTA_BINARY_PACKED"}
        | dict.fromkeys(FIGURES, "BYTE_STREAM_SPLIT"),
        **FORMAT,
    )


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


def sync(path: Path) -> None:
    """Lets a file, or the names in a folder, reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _ignore(_: object) -> None:
    return None
