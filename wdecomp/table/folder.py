"""A results folder while it is being made: the plan, the parts, the final tables.

    run.json     the plan, written first: inputs, options, units of work, what is left out
    parts/       one file per finished unit; the listing of this folder is the journal
    *.parquet    the tables, a function of the parts in the order of the plan
    DONE.json    digests of the tables, written last; then the parts are removed

A part's name holds a hash of plan and unit, so that no part of another run can be taken for one.
"""

import fcntl
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from wdecomp.errors import ResultsError, some
from wdecomp.table import files
from wdecomp.table.parts import Part, read_groups, read_rows, write_part
from wdecomp.table.results import Results, columns_file
from wdecomp.table.schema import COLUMNS, FACTS, FITS, MODULES

if TYPE_CHECKING:
    import pandas as pd

TABLES = ("modules.parquet", "facts.parquet", "fits.parquet")
OURS = {"run.json", "parts", "columns", "DONE.json", ".lock", *TABLES}
TEMPORARY = re.compile(r".+\.tmp-\d+-[0-9a-f]{8}")


class ResultsFolder:
    """A results folder, held by one process; `open_folder` makes one."""

    def __init__(self, path: Path, plan: dict[str, Any]) -> None:
        self.path = path
        self._runs: list[tuple[str, int | None]] = [(r["run"], r["step"]) for r in plan["runs"]]
        self._n_units = len(plan["units"])
        self._keeps_columns = bool(plan["options"]["columns"])
        self._digest = hashlib.sha256(files.canonical(plan)).hexdigest()

    def is_done(self) -> bool:
        """Whether the final tables are there, all of them."""
        try:
            names = json.loads((self.path / "DONE.json").read_bytes())["sha256"]
        except (OSError, ValueError, TypeError, LookupError):  # none, or a damaged one
            return False
        return all((self.path / name).exists() for name in names)

    def pending(self) -> list[int]:
        """The units without a part, in the order of the plan."""
        return [unit for unit in range(self._n_units) if not self._part_path(unit).exists()]

    def commit(self, unit: int, part: Part) -> None:
        """Makes the part of one unit durable."""
        files.commit(self._part_path(unit), lambda path: write_part(path, part))

    def finish(self, fits: Callable[[Results], "pd.DataFrame"]) -> Results:
        """The final tables from the parts, then DONE.json; every step can be repeated."""
        parts = [self._part_path(unit) for unit in range(self._n_units)]
        modules, facts = self._in_run_order(parts)
        files.commit_table(self.path / "modules.parquet", pa.Table.from_pylist(modules, MODULES))
        files.commit_table(self.path / "facts.parquet", pa.Table.from_pylist(facts, FACTS))
        kept = self._runs if self._keeps_columns else []
        columns = [self._commit_columns(run, parts) for run in kept]
        table = pa.Table.from_pandas(fits(Results(self.path)), FITS, preserve_index=False)
        files.commit_table(self.path / "fits.parquet", table)
        written = [*TABLES, *columns]
        digests = {name: files.sha256(self.path / name) for name in written}
        files.commit_json(self.path / "DONE.json", {"sha256": digests})
        self.discard_parts()
        return Results(self.path)

    def discard_parts(self) -> None:
        """Removes the parts; the tables hold all that they said."""
        shutil.rmtree(self.path / "parts", ignore_errors=True)

    def _part_path(self, unit: int) -> Path:
        mark = hashlib.sha256(f"{self._digest}:{unit}".encode()).hexdigest()[:16]
        return self.path / "parts" / f"{unit:06d}-{mark}.parquet"

    def _in_run_order(self, parts: list[Path]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        order = {run: i for i, run in enumerate(self._runs)}

        def by_run(row: dict[str, Any]) -> int:
            return order[row["run"], row["step"]]

        rows = [read_rows(part) for part in parts]
        modules = sorted((row for found, _ in rows for row in found), key=by_run)
        facts = sorted((row for _, found in rows for row in found), key=by_run)
        return modules, facts

    def _commit_columns(self, run: tuple[str, int | None], parts: list[Path]) -> str:
        """One run's columns at one step, a row group per matrix and axis, as the parts have it."""
        name = columns_file(*run)

        def write(path: Path) -> None:
            with files.columns_writer(path, COLUMNS) as writer:
                for part in parts:
                    for group in read_groups(part, run):
                        writer.write_table(group)

        files.commit(self.path / name, write)
        return name


@contextmanager
def open_folder(path: Path, plan: dict[str, Any], restart: bool) -> Iterator[ResultsFolder]:
    """The results folder of a plan: new, or continued where the same plan was interrupted.

    Args:
        path: the folder; it is made if there is none.
        plan: what run.json holds.
        restart: whether results of another plan may be removed.

    Raises:
        ResultsError: the folder holds something else, belongs to another plan, or another
            process is writing to it.
    """
    try:
        _check_ours(path)
        path.mkdir(parents=True, exist_ok=True)
        with (path / ".lock").open("w") as lock:
            _hold(lock.fileno(), path)
            if restart:
                _clear(path)
            _adopt(path, plan)
            _remove_temporary(path)
            yield ResultsFolder(path, plan)
    except OSError as error:
        raise ResultsError(f"{path}: cannot be written ({error.strerror or error}).") from None


def _check_ours(path: Path) -> None:
    if not str(path).isprintable():  # Arrow takes no name that is not UTF-8
        raise ResultsError(f"{str(path)!r}: cannot be a folder's name. Choose another with --out.")
    if not path.exists():
        return
    if not path.is_dir():
        raise ResultsError(f"{path}: is a file, expected a folder for the results.")
    ours = OURS if _is_plan(path / "run.json") else {".lock"}
    names = sorted(child.name for child in path.iterdir())
    foreign = [name for name in names if name not in ours and not TEMPORARY.fullmatch(name)]
    if foreign:
        raise ResultsError(
            f"{path}: holds {some(foreign)}, which is no result of wdecomp. "
            "Choose another folder with --out."
        )


def _is_plan(file: Path) -> bool:
    try:
        plan = json.loads(file.read_bytes())
        return isinstance(plan, dict) and "wdecomp" in plan
    except (OSError, ValueError):
        return False


def _hold(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ResultsError(f"{path}: another wdecomp is writing there.") from None


def _clear(path: Path) -> None:
    for child in path.iterdir():
        if child.name == ".lock":
            continue
        if child.is_dir():
            shutil.rmtree(child)
        else:
            child.unlink()


def _remove_temporary(path: Path) -> None:
    """What killed processes were writing; whoever holds the folder knows that they are gone."""
    for child in path.rglob("*.tmp-*"):
        if TEMPORARY.fullmatch(child.name):
            child.unlink()


def _adopt(path: Path, plan: dict[str, Any]) -> None:
    """Writes the plan, or finds that it is the one that was written."""
    written = path / "run.json"
    if not written.exists():
        _clear(path)  # what a crash left before it had a plan
        files.commit_json(written, plan)
        return
    before = json.loads(written.read_bytes())
    after = json.loads(files.canonical(plan))
    if before != after:
        keys = [key for key in after if before.get(key) != after[key]]
        raise ResultsError(
            f"{path}: holds results of another run ({some(keys)} differ). "
            "Choose another folder with --out, or --restart to replace them."
        )
