"""Whether the files of results are still what was written."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow.parquet as pq

from wdecomp.errors import ResultsError
from wdecomp.table import files
from wdecomp.table.claim import OURS, TEMPORARY, parts_of
from wdecomp.table.results import INPUTS_FILE, Results, check_schema

CHUNK = 1 << 20  # bytes of a file that are held at a time


@dataclass
class Findings:
    """What a check has found.

    files: how many were gone through.
    nbytes: how many bytes they have.
    wrong: what has rotted, is gone or does not belong there, a line each.
    notes: what could not be checked.
    """

    files: int = 0
    nbytes: int = 0
    wrong: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def results_size(path: Path) -> int:
    """Bytes that `check_results` goes through, about.

    Raises:
        ResultsError: the folder cannot be read.
    """
    with files.reading(path):
        return sum(file.stat().st_size for file in _files(path))


def check_results(path: Path, on_bytes: Callable[[int], None]) -> Findings:
    """Every file of a results folder beside the digest that was taken when it was written.

    Finished ones by SHA-256 in DONE.json, the parts of unfinished ones by the digest in their
    names.

    Args:
        path: the results folder.
        on_bytes: told how many bytes more have been gone through.

    Raises:
        ResultsError: the folder holds no results, or a file cannot be read at all.
    """
    found = Findings()
    if not any((path / name).is_file() for name in ("run.json", "DONE.json")):
        raise ResultsError(f"{path}: holds no results. `wdecomp compare --out` makes them.")
    try:
        check_schema(Results(path))
    except ResultsError as error:
        found.wrong.append(str(error))
    if (path / "DONE.json").is_file():
        _check_finished(path, found, on_bytes)
    else:
        _check_unfinished(path, found, on_bytes)
    return found


def checksums(path: Path) -> list[dict[str, Any]]:
    """The rows of inputs.parquet; none if none were kept.

    Raises:
        ResultsError: the table is damaged.
    """
    file = path / INPUTS_FILE
    if not file.exists():
        return []
    with files.reading(file):
        rows: list[dict[str, Any]] = pq.read_table(
            file, page_checksum_verification=True
        ).to_pylist()
        return rows


def _check_finished(path: Path, found: Findings, on_bytes: Callable[[int], None]) -> None:
    listed = digests(path / "DONE.json")
    if listed is None:
        found.wrong.append(f"{path / 'DONE.json'}: is not what was written.")
        return
    for name, digest in listed.items():
        file = path / name
        if not file.is_file():
            found.wrong.append(f"{file}: is gone.")
        elif _sha256(file, found, on_bytes) != digest:
            found.wrong.append(f"{file}: is not what was written: its SHA-256 is another.")
    known = {*listed, "run.json", "DONE.json"}
    for file in _files(path):
        name = str(file.relative_to(path))
        if name not in known and not name.startswith("parts/"):
            found.wrong.append(f"{file}: is none of the files that DONE.json lists.")


def digests(file: Path) -> dict[str, str] | None:
    """Names and digests that a DONE.json lists; None if it is none, or leads out of its folder."""
    try:
        listed: dict[str, str] = json.loads(file.read_bytes())["sha256"]
        return listed if all(map(_is_inside, listed)) else None
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


def _is_inside(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return ".." not in parts and bool(parts) and parts[0] in OURS


def _check_unfinished(path: Path, found: Findings, on_bytes: Callable[[int], None]) -> None:
    parts = parts_of(path)
    for part in parts:
        size = part.stat().st_size
        found.files, found.nbytes = found.files + 1, found.nbytes + size
        on_bytes(size)
        if not files.is_whole(part):
            found.wrong.append(
                f"{part}: is not what was written. Its unit of work will be done again."
            )
    found.notes.append(
        f"These results are unfinished: only the {len(parts)} finished units of work were checked."
    )


def _files(path: Path) -> Iterator[Path]:
    for file in sorted(path.rglob("*")):
        if file.is_file() and file.name != ".lock" and not TEMPORARY.fullmatch(file.name):
            yield file


def _sha256(file: Path, found: Findings, on_bytes: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    with files.reading(file), file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
            found.nbytes += len(chunk)
            on_bytes(len(chunk))
    found.files += 1
    return digest.hexdigest()
