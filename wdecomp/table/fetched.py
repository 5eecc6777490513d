"""Results that are not on this disk: in a bucket, on the hub or on a web server.

Their files are fetched whole into a temporary folder, which lives as long as the process, and are
read there as any others. What DONE.json says is held to, so that nothing of another run, and
nothing half replaced, is taken for a table.
"""

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from wdecomp.errors import CheckpointError, ResultsError
from wdecomp.remote.store import Store, at_once, store_of
from wdecomp.remote.transport import Entry
from wdecomp.remote.urls import parsed
from wdecomp.table import files
from wdecomp.table.checking import digests
from wdecomp.table.claim import PART
from wdecomp.table.columns import ColumnsOf
from wdecomp.table.results import Results, check_schema

if TYPE_CHECKING:
    import pandas as pd

CHUNK = 8 << 20  # bytes of a request


@dataclass(frozen=True)
class Away:
    """A results folder that is not on this disk.

    url: as it was given.
    store: what it is in.
    folder: its path from the root of that.
    """

    url: str
    store: Store
    folder: str

    def entry(self, name: str) -> Entry | None:
        """A file, as it is now."""
        with self.reaching(name, "read"):
            found = self.store.entry(self.at(name), again=True)
        return None if found is None or found.is_folder else found

    def read(self, name: str) -> bytes | None:
        """The content of a small file; None if there is none."""
        entry = self.entry(name)
        if entry is None:
            return None
        with self.reaching(name, "read"):
            return self.store.fetch(self.at(name), 0, entry.size, entry.etag)

    def fetch(self, name: str, into: Path) -> bool:
        """Brings one file here, to where it belongs in a folder; False if there is none."""
        entry = self.entry(name)
        if entry is None:
            return False
        files.commit(into / name, lambda path: self._copy(entry, name, path))
        return True

    def parts(self) -> list[str]:
        """The names of the parts that are there now."""
        with self.reaching("parts", "listed"):
            found = self.store.entries(self.at("parts"), again=True)
        return sorted(filter(PART.fullmatch, found))

    def at(self, name: str) -> str:
        """The path of a file from the root of the store."""
        return f"{self.folder}/{name}" if self.folder else name

    @contextmanager
    def reaching(self, name: str, done: str) -> Iterator[None]:
        """Says which file it was that could not be reached.

        Raises:
            ResultsError: what is done inside cannot be.
        """
        try:
            yield
        except OSError as error:
            reason = error.strerror or type(error).__name__
            at = f"{self.url}/{name}" if name else self.url
            raise ResultsError(f"{at}: cannot be {done} ({reason}).") from None

    def _copy(self, entry: Entry, name: str, path: Path) -> None:
        with path.open("xb") as sink:
            for start in range(0, entry.size, CHUNK):
                stop = min(start + CHUNK, entry.size)
                with self.reaching(name, "read"):
                    content = self.store.fetch(self.at(name), start, stop, entry.etag)
                sink.write(content)


@dataclass(frozen=True)
class Fetched(Results):
    """Finished results whose tables were fetched; columns are when they are asked for."""

    away: Away

    @property
    def place(self) -> str:
        """The URL."""
        return self.away.url

    def columns_table(self, of: ColumnsOf) -> pa.Table:
        """As `Results.columns_table`."""
        name = self._columns_file(of)
        with named(self.away.url, self.path):
            listed = digests(self.path / "DONE.json") or {}
            if name in listed and not (self.path / name).exists():
                _bring(self.away, {name: listed[name]}, self.path)
            return super().columns_table(of)

    def _table(self, name: str) -> "pd.DataFrame":
        with named(self.away.url, self.path):
            return super()._table(name)


def away_at(url: str) -> Away:
    """The results folder that a URL names.

    Raises:
        ResultsError: the URL is not understood, or its store cannot be reached.
        MissingExtraError: the packages for its protocol are not there.
    """
    try:
        place = parsed(url)
        return Away(str(place), store_of(place.address), place.name)
    except CheckpointError as error:
        raise ResultsError(str(error)) from None


def fetch_finished(url: str) -> Results:
    """The finished results at a URL; every table is what DONE.json says.

    Raises:
        ResultsError: there are none, they are unfinished, of another schema or damaged.
    """
    away, folder = away_at(url), temporary_folder(url)
    with named(away.url, folder):
        if not _fetch_plan(away, folder):
            raise ResultsError(f"{folder}: is unfinished. Give the same command again to continue.")
        listed = _listed(folder)
        tables = {name: d for name, d in listed.items() if not name.startswith("columns/")}
        _bring(away, tables, folder)
    return Fetched(folder, away)


def fetch_folder(url: str) -> Path:
    """All files of the results at a URL, finished or not, in a folder here, whatever is in them.

    Raises:
        ResultsError: there are none, or a file cannot be read at all.
    """
    away, folder = away_at(url), temporary_folder(url)
    with named(away.url, folder):
        finished = _fetch_plan(away, folder)
        names = _listed(folder) if finished else [f"parts/{name}" for name in away.parts()]
        at_once(lambda name: away.fetch(name, folder), names)
    return folder


def fetch_plan(url: str) -> Path:
    """A folder here with the run.json of the results at a URL, and DONE.json if they have it.

    Raises:
        ResultsError: there are none.
    """
    away, folder = away_at(url), temporary_folder(url)
    with named(away.url, folder):
        _fetch_plan(away, folder)
    return folder


@contextmanager
def named(url: str, folder: Path) -> Iterator[None]:
    """Says the URL where an error names the folder here that stands for it.

    Not where that folder itself cannot be written to: then this disk is what is full.
    """
    try:
        yield
    except ResultsError as error:
        if "cannot be written" in str(error):
            raise
        raise type(error)(str(error).replace(str(folder), url)) from None


def temporary_folder(url: str) -> Path:
    """A folder of the URL's last name, that is removed when the process ends."""
    above = Path(tempfile.mkdtemp(prefix="wdecomp-"))
    atexit.register(_remove, above, os.getpid())
    folder = above / url.rstrip("/").rpartition("/")[2]
    folder.mkdir()
    return folder


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # not at the end of a forked child
        shutil.rmtree(folder, ignore_errors=True)


def _fetch_plan(away: Away, folder: Path) -> bool:
    """Whether the results are finished; the plan is here then in any case."""
    if not away.fetch("run.json", folder):
        raise ResultsError(f"{folder}: holds no results. `wdecomp compare --out` makes them.")
    check_schema(Results(folder))
    return away.fetch("DONE.json", folder)


def _listed(folder: Path) -> dict[str, str]:
    listed = digests(folder / "DONE.json")
    if listed is None or not all(name.isprintable() for name in listed):
        raise ResultsError(f"{folder / 'DONE.json'}: is not what was written.")
    return listed


def _bring(away: Away, listed: dict[str, str], folder: Path) -> None:
    """Fetches files, each the one that DONE.json says."""

    def one(name: str) -> None:
        if name != "run.json" and not away.fetch(name, folder):
            raise ResultsError(f"{folder / name}: is gone.")
        if files.sha256(folder / name) != listed[name]:
            raise ResultsError(
                f"{folder / name}: is not what was written: its SHA-256 is another. "
                "Compare again with --restart, or read it again if it is being replaced."
            )

    at_once(one, listed)


def is_plan(content: bytes | None) -> bool:
    """Whether this is a run.json of ours."""
    try:
        plan: Any = json.loads(content or b"")
        return isinstance(plan, dict) and "wdecomp" in plan
    except ValueError:
        return False


def bring_parts(away: Away, missing: Iterable[Path], folder: Path) -> list[Path]:
    """Fetches parts to where they belong here; those that are no longer there come back."""
    asked = list(missing)
    found = at_once(lambda file: away.fetch(f"parts/{file.name}", folder), asked)
    return [file for file, is_here in zip(asked, found, strict=True) if not is_here]
