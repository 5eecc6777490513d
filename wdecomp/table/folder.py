"""A results folder while it is being made: the plan, the parts, the final tables.

    run.json     the plan, written first: inputs, options, units of work, what is left out
    parts/       an Arrow file per finished unit; the listing of this folder is the journal
    *.parquet    the tables, a function of the parts in the order of the plan
    DONE.json    digests of the tables, written last; then the parts are removed

A part's name holds a hash of plan and unit, so that no part of another run can be taken for one,
and a digest of its content, so that none that has rotted can be taken for what was written.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from wdecomp.errors import ResultsError
from wdecomp.table import files
from wdecomp.table.claim import TABLES as TABLES
from wdecomp.table.claim import both, claimed, parts_of
from wdecomp.table.columns import columns_writer
from wdecomp.table.parts import (
    SUFFIX,
    Part,
    read_groups,
    read_inputs,
    read_rows,
    read_spectra,
    write_part,
)
from wdecomp.table.results import INPUTS_FILE, SPECTRA_FILE, Results, columns_file
from wdecomp.table.schema import FACTS, FITS, INPUTS, MODULES, SPECTRA
from wdecomp.table.shares import Share, shared

if TYPE_CHECKING:
    import pandas as pd


class ResultsFolder:
    """A results folder; `open_folder` and `share_folder` hold one, `join_folder` adds to one.

    placed: called with each file that has been committed here.
    """

    def __init__(
        self, path: Path, plan: dict[str, Any], placed: Callable[[Path], None] | None = None
    ) -> None:
        self.path, self._placed = path, placed
        self._runs: list[tuple[str, int | None]] = [(r["run"], r["step"]) for r in plan["runs"]]
        self._order = {run: i for i, run in enumerate(self._runs)}
        self._n_units = len(plan["units"])
        self._keeps_columns = bool(plan["options"]["columns"])
        self._keeps_spectra = "spectral" in plan["options"]
        self._keeps_checksums = "checksums" in plan["options"]
        self._digest = hashlib.sha256(files.canonical(plan)).hexdigest()
        self.look()

    @property
    def place(self) -> str:
        """What names it, from another machine too."""
        return str(self.path.absolute())

    def look(self) -> None:
        """Sees which parts are there now, whoever made them."""
        self._parts = self._parts_there()

    def is_done(self) -> bool:
        """Whether the final tables of this plan are there, all of them."""
        try:
            names = json.loads((self.path / "DONE.json").read_bytes())["sha256"]
            of_this_plan = names["run.json"] == self._digest
        except (OSError, ValueError, TypeError, LookupError):  # none, or a damaged one
            return False
        return of_this_plan and all((self.path / name).exists() for name in names)

    def results(self) -> Results:
        """The finished results."""
        return Results(self.path)

    def pending(self) -> list[int]:
        """The units without a part, in the order of the plan."""
        return [unit for unit in range(self._n_units) if unit not in self._parts]

    def has(self, unit: int) -> bool:
        """Whether a unit has a part now, whoever made it."""
        stem = self._part_stem(unit)
        return any(map(files.is_whole, stem.parent.glob(f"{stem.name}-*{SUFFIX}")))

    def commit(self, unit: int, part: Part) -> None:
        """Makes the part of one unit durable."""
        self._parts[unit] = files.commit_by_content(
            self._part_stem(unit), SUFFIX, lambda path: write_part(path, part)
        )
        self._tell(self._parts[unit])

    def draft(self, unit: int, part: Part) -> Callable[[], None]:
        """Writes the part of one unit; what comes back makes it durable.

        Between the two a process may be killed, and the next one finds it. What is to be sent
        elsewhere is sent at once: its folder here goes with the process.
        """
        if self._placed is not None:
            self.commit(unit, part)
            return lambda: None
        stem = self._part_stem(unit)
        draft = files.draft_by_content(stem, SUFFIX, lambda path: write_part(path, part))

        def rest() -> None:
            self._parts[unit] = files.settle(draft)

        return rest

    def finish(self, fits: Callable[[Results], "pd.DataFrame"]) -> Results:
        """The final tables from the parts, then DONE.json; every step can be repeated."""
        parts = [files.whole(self._parts[unit]) for unit in range(self._n_units)]
        modules, facts = self._modules_and_facts(parts)
        self._commit_table("modules.parquet", modules)
        self._commit_table("facts.parquet", facts)
        spectra = [self._commit_spectra(parts)] if self._keeps_spectra else []
        inputs = [self._commit_inputs(parts)] if self._keeps_checksums else []
        kept = self._runs if self._keeps_columns else []
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            columns = list(pool.map(lambda run: self._commit_columns(run, parts), kept))
        table = pa.Table.from_pandas(fits(Results(self.path)), FITS, preserve_index=False)
        self._commit_table("fits.parquet", table)
        written = [*TABLES, *spectra, *inputs, *columns]
        for parent in {self.path / above for name in columns for above in Path(name).parents}:
            files.sync(parent)  # a killed process may have made it and not come to this
        digests = {name: files.sha256(self.path / name) for name in ("run.json", *written)}
        files.commit_json(self.path / "DONE.json", {"sha256": digests})
        self._tell(self.path / "DONE.json")
        self.discard_parts()
        return Results(self.path)

    def discard_parts(self) -> None:
        """Removes the parts; the tables hold all that they said."""
        shutil.rmtree(self.path / "parts", ignore_errors=True)

    def _tell(self, file: Path) -> None:
        if self._placed is not None:
            self._placed(file)

    def _part_stem(self, unit: int) -> Path:
        mark = hashlib.sha256(f"{self._digest}:{unit}".encode()).hexdigest()[:16]
        return self.path / "parts" / f"{unit:06d}-{mark}"

    def _parts_there(self) -> dict[int, Path]:
        there = {file.stem.rpartition("-")[0]: file for file in parts_of(self.path)}
        found = {unit: there.get(self._part_stem(unit).name) for unit in range(self._n_units)}
        return {unit: file for unit, file in found.items() if file}

    def _modules_and_facts(self, parts: list[Path]) -> tuple[pa.Table, pa.Table]:
        """Part by part: as rows of Python's they would take many times the memory."""
        modules, facts = [MODULES.empty_table()], [FACTS.empty_table()]
        for part in parts:
            rows = read_rows(part)
            for tables, found in zip((modules, facts), rows, strict=True):
                tables.append(pa.Table.from_pylist(found, tables[0].schema))
        return self._in_run_order(modules), self._in_run_order(facts)

    def _in_run_order(self, tables: list[pa.Table]) -> pa.Table:
        table = pa.concat_tables(tables)
        runs = zip(table["run"].to_pylist(), table["step"].to_pylist(), strict=True)
        order = np.argsort([self._order[run] for run in runs], kind="stable")
        return table.take(order.astype(np.int64)).combine_chunks()

    def _by_run(self, row: dict[str, Any]) -> int:
        return self._order[row["run"], row["step"]]

    def _commit_spectra(self, parts: list[Path]) -> str:
        rows = sorted((row for part in parts for row in read_spectra(part)), key=self._by_run)
        self._commit_table(SPECTRA_FILE, pa.Table.from_pylist(rows, SPECTRA))
        return SPECTRA_FILE

    def _commit_inputs(self, parts: list[Path]) -> str:
        """What was read, once; in two sessions the same file has to be the same."""
        rows: dict[tuple[str, int, int], dict[str, Any]] = {}
        for row in (row for part in parts for row in read_inputs(part)):
            known = rows.setdefault((row["file"], row["start"], row["bytes"]), row)
            if known["crc32"] != row["crc32"]:
                raise ResultsError(
                    f"{row['file']}: tensor {row['tensor']!r} was another when it was read again. "
                    "Compare again with --restart."
                )
        table = pa.Table.from_pylist([rows[key] for key in sorted(rows)], INPUTS)
        self._commit_table(INPUTS_FILE, table)
        return INPUTS_FILE

    def _commit_columns(self, run: tuple[str, int | None], parts: list[Path]) -> str:
        """One run's columns at one step, a row group per matrix and axis, as the parts have it."""
        name = columns_file(*run)

        def write(path: Path) -> None:
            with columns_writer(path) as writer:
                for part in parts:
                    for group in read_groups(part, run):
                        writer.write_table(group)

        files.commit(self.path / name, write)
        self._tell(self.path / name)
        return name

    def _commit_table(self, name: str, table: pa.Table) -> None:
        files.commit_table(self.path / name, table)
        self._tell(self.path / name)


@contextmanager
def open_folder(
    path: Path,
    plan: dict[str, Any],
    restart: bool,
    placed: Callable[[Path], None] | None = None,
) -> Iterator[ResultsFolder]:
    """The results folder of a plan: new, or continued where the same plan was interrupted.

    Args:
        path: the folder; it is made if there is none.
        plan: what run.json holds.
        restart: whether results of another plan may be removed.
        placed: called with each file that has been committed, run.json the first.

    Raises:
        ResultsError: the folder holds something else, belongs to another plan, or another
            process is writing to it.
    """
    with claimed(path, plan, restart):
        if placed is not None:
            placed(path / "run.json")
        yield ResultsFolder(path, plan, placed)


@contextmanager
def share_folder(path: Path, plan: dict[str, Any], share: Share) -> Iterator[ResultsFolder]:
    """The results folder of a plan for one share of its parts, beside other processes.

    Args:
        path: the folder; it is made if there is none.
        plan: what run.json holds, and has to hold for all of them.
        share: the part of the units.

    Raises:
        ResultsError: as by `open_folder`, or another process has this share.
    """
    with shared(path, plan, share):
        yield ResultsFolder(path, plan)


def join_folder(path: Path, plan: dict[str, Any]) -> ResultsFolder:
    """The results folder that another process holds, on the disk that is shared with it.

    Raises:
        ResultsError: it is not there, or is another plan's.
    """
    try:
        there, here = both(path / "run.json", plan)
    except (OSError, ValueError):
        there, here = None, plan
    if there != here:
        raise ResultsError(
            f"{path}: is not the results folder that the run has, expected to see it here, too. "
            "Choose a folder that all workers share with --out."
        )
    return ResultsFolder(path, plan)
