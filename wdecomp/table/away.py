"""A results folder in a bucket while it is being made.

Everything happens in a temporary folder here, as on any disk; each file that has been committed
there is put into the bucket, whole, by one request, and only then counts as done. In a bucket
nothing is renamed and nothing can be locked: any number of processes may write parts of one plan,
since the same unit gives the same bytes under the same name, and run.json, which the first of them
writes, keeps another plan away.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wdecomp.errors import ResultsError, some
from wdecomp.remote.store import at_once
from wdecomp.table import files
from wdecomp.table.claim import OURS
from wdecomp.table.fetched import (
    Away,
    Fetched,
    away_at,
    bring_parts,
    fetch_finished,
    is_plan,
    named,
    temporary_folder,
)
from wdecomp.table.folder import ResultsFolder
from wdecomp.table.parts import Part
from wdecomp.table.results import Results

if TYPE_CHECKING:
    import pandas as pd

READABLE = ("hf", "http", "https")  # and no more


class AwayFolder(ResultsFolder):
    """A results folder in a bucket; `open_away` and `join_away` make one."""

    def __init__(self, away: Away, path: Path, plan: dict[str, Any]) -> None:
        self._away = away
        super().__init__(path, plan, self._put)

    @property
    def place(self) -> str:
        """What names it, from another machine too."""
        return self._away.url

    def is_done(self) -> bool:
        """Whether the final tables of this plan are there, all of them."""
        try:
            names = json.loads(self._away.read("DONE.json") or b"")["sha256"]
            of_this_plan = names["run.json"] == self._digest
        except (ValueError, TypeError, LookupError):  # none, or a damaged one
            return False
        return of_this_plan and all(at_once(self._away.entry, names))

    def has(self, unit: int) -> bool:
        """Whether a unit has a part now, whoever made it."""
        stem = self._part_stem(unit).name
        return any(name.startswith(f"{stem}-") for name in self._away.parts())

    def commit(self, unit: int, part: Part) -> None:
        """Makes the part of one unit durable, there."""
        with named(self._away.url, self.path):
            super().commit(unit, part)

    def finish(self, fits: Callable[[Results], "pd.DataFrame"]) -> Results:
        """The final tables from the parts, those of other processes too; DONE.json is the last."""
        with named(self._away.url, self.path):
            missing = [file for file in self._parts.values() if not file.exists()]
            gone = bring_parts(self._away, missing, self.path)
            if gone and self.is_done():  # another process was quicker
                return self.results()
            if gone:
                raise ResultsError(f"{gone[0]}: is gone. Give the same command again to continue.")
            for part in missing:
                if not files.is_whole(part):
                    self._away.store.remove(self._away.at(f"parts/{part.name}"))
            super().finish(fits)
        return Fetched(self.path, self._away)

    def results(self) -> Results:
        """The finished results."""
        here = (self.path / "DONE.json").exists()
        return Fetched(self.path, self._away) if here else fetch_finished(self._away.url)

    def discard_parts(self) -> None:
        """Removes the parts, there too."""
        super().discard_parts()
        names = [f"parts/{name}" for name in self._away.parts()]
        with self._away.reaching("parts", "removed"):
            at_once(lambda name: self._away.store.remove(self._away.at(name)), names)

    def _parts_there(self) -> dict[int, Path]:
        units = {self._part_stem(unit).name: unit for unit in range(self._n_units)}
        there = {units.get(name.rpartition("-")[0]): name for name in self._away.parts()}
        return {unit: self.path / "parts" / there[unit] for unit in units.values() if unit in there}

    def _put(self, file: Path) -> None:
        name = file.relative_to(self.path).as_posix()
        with self._away.reaching(name, "written"):
            self._away.store.put(self._away.at(name), file)


@contextmanager
def open_away(url: str, plan: dict[str, Any], restart: bool) -> Iterator[AwayFolder]:
    """The results folder of a plan in a bucket: new, or continued where it was interrupted.

    Args:
        url: of the folder, s3://BUCKET/FOLDER or the like.
        plan: what run.json holds.
        restart: whether results of another plan may be removed.

    Raises:
        ResultsError: the folder holds something else, belongs to another plan, or cannot be
            reached.
    """
    away = _ours(url)
    if restart:
        _clear(away)
    _adopt(away, plan, replace=restart)
    yield _folder(away, plan)


def join_away(url: str, plan: dict[str, Any]) -> AwayFolder:
    """The results folder in a bucket that another process has begun.

    Raises:
        ResultsError: it is not there, or is another plan's.
    """
    away = away_at(url)
    _refuse_other(away, plan)
    return _folder(away, plan)


def refuse_foreign(url: str) -> None:
    """That a folder in a bucket may be written to, as far as can be told at once.

    Raises:
        ResultsError: it holds something else, or cannot be reached.
    """
    _ours(url)


def _ours(url: str) -> Away:
    protocol = url.partition(":")[0].lower()
    if protocol in READABLE:
        raise ResultsError(
            f"{url.partition('?')[0]}: cannot be written to, expected a folder on this disk or in "
            "a bucket (s3://, gs://, az://). Choose another with --out."
        )
    away = away_at(url)
    with away.reaching("", "listed"):
        there = sorted(away.store.entries(away.folder, again=True))
    ours = OURS if "run.json" in there and is_plan(away.read("run.json")) else set()
    foreign = [name for name in there if name not in ours]
    if foreign:
        raise ResultsError(
            f"{away.url}: holds {some(foreign)}, which is no result of wdecomp. "
            "Choose another folder with --out."
        )
    return away


def _folder(away: Away, plan: dict[str, Any]) -> AwayFolder:
    path = temporary_folder(away.url)
    files.commit_json(path / "run.json", plan)
    return AwayFolder(away, path, plan)


def _adopt(away: Away, plan: dict[str, Any], replace: bool) -> None:
    """Writes the plan, or finds that whoever came first has written the same.

    It is read again in any case: not every store keeps the first of two from being replaced.
    """
    if replace or away.entry("run.json") is None:
        with away.reaching("run.json", "written"), suppress(FileExistsError):
            content = files.canonical(plan)
            away.store.put(away.at("run.json"), content, fresh=not replace)
    _refuse_other(away, plan)


def _refuse_other(away: Away, plan: dict[str, Any]) -> None:
    content = away.read("run.json")
    if not is_plan(content):
        raise ResultsError(f"{away.url}: holds no results, expected those that the run has begun.")
    before, after = json.loads(content or b""), json.loads(files.canonical(plan))
    if before != after:
        keys = [key for key in after if before.get(key) != after[key]]
        raise ResultsError(
            f"{away.url}: holds results of another run ({some(keys)} differ). "
            "Choose another folder with --out, or --restart to replace them."
        )


def _clear(away: Away) -> None:
    """Removes all but the plan, DONE.json first: while that is there, the tables are whole."""
    with away.reaching("", "emptied"):
        away.store.remove(away.at("DONE.json"))
        at_once(
            away.store.remove, [n for n in _below(away, away.folder) if n != away.at("run.json")]
        )


def _below(away: Away, folder: str) -> Iterator[str]:
    for entry in away.store.entries(folder, again=True).values():
        if entry.is_folder:
            yield from _below(away, entry.name)
        else:
            yield entry.name
