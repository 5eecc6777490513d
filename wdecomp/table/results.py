"""A finished comparison, read back."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from wdecomp.errors import ResultsError, some
from wdecomp.remote.urls import is_url
from wdecomp.table.columns import ColumnsOf, groups_of, open_columns, picked, read_group
from wdecomp.table.files import reading
from wdecomp.table.schema import FACTS, FITS, MODULES, SPECTRA, VERSION

SPECTRA_FILE = "spectra.parquet"
INPUTS_FILE = "inputs.parquet"
SCHEMAS = {
    "modules.parquet": MODULES,
    "facts.parquet": FACTS,
    "fits.parquet": FITS,
    SPECTRA_FILE: SPECTRA,
}
WHOLE = {
    *("step", "layer", "rank", "rank_90", "rank_99"),
    *("leading", "intruders", "intruders_most"),
}

if TYPE_CHECKING:  # loaded by the first table that is read: much of the time that starting takes
    import pandas as pd


@dataclass(frozen=True)
class Results:
    """The tables of one comparison as pandas DataFrames; each is read when it is asked for.

    path: the results folder.
    """

    path: Path

    @property
    def place(self) -> str:
        """Where they are, as the user names it: a folder, or a URL."""
        return str(self.path)

    @cached_property
    def run(self) -> dict[str, Any]:
        """run.json: inputs, options, versions, units of work, what was left out and why."""
        file = self.path / "run.json"
        with reading(file):
            record = json.loads(file.read_bytes())
            if not isinstance(record, dict):
                raise ValueError("no JSON object")
            return record

    @cached_property
    def modules(self) -> "pd.DataFrame":
        """One row per run × step × parameter × axis: ΔM, ΔD and what goes with them."""
        return self._table("modules.parquet")

    @cached_property
    def fits(self) -> "pd.DataFrame":
        """One row per statistic: correlations, slopes, intercepts, with intervals."""
        return self._table("fits.parquet")

    @cached_property
    def facts(self) -> "pd.DataFrame":
        """One row per compared tensor, 1-D ones included: norms, changes, ranks, scalings."""
        return self._table("facts.parquet")

    @cached_property
    def spectra(self) -> "pd.DataFrame":
        """One row per run × step × matrix that changed: what singular values say of the change.

        Raises:
            ResultsError: none were asked for.
        """
        if "spectral" not in self.run["options"]:
            raise ResultsError(
                f"{self.path / SPECTRA_FILE}: there is none. Compare with --spectral."
            )
        return self._table(SPECTRA_FILE)

    @cached_property
    def left_out(self) -> "pd.DataFrame":
        """One row per tensor that was not compared: run, step, side, tensor, reason."""
        import pandas as pd

        return pd.DataFrame(
            self.run["left_out"], columns=["run", "step", "side", "tensor", "reason"]
        ).astype({"step": "Int64"})

    def columns(
        self,
        run: str,
        step: int | None = None,
        parameters: list[str] | None = None,
        axis: str = "output",
        every: int = 1,
    ) -> "pd.DataFrame":
        """One row per column of the matrices of a run.

        Columns of the table: parameter, axis, column, magnitude_base (m0), delta_magnitude
        (m − m0, signed), delta_direction (1 − cos).

        Args:
            run: the run's name.
            step: the step; the run's last one if none is given.
            parameters: names of the matrices; all of them if none are given.
            axis: "output" or "input".
            every: only each so-manieth column of a matrix.

        Raises:
            ResultsError: no columns were kept for this run, step and axis.
        """
        names = None if parameters is None else frozenset(parameters)
        return as_pandas(self.columns_table(ColumnsOf(run, step, names, axis, every)))

    def columns_table(self, of: ColumnsOf) -> pa.Table:
        """`columns` as Arrow has it, each name kept once."""
        file = self.path / self._columns_file(of)
        if not file.exists():
            raise ResultsError(
                f"{file}: there is none. Compare with --columns {of.axis}, or name another step."
            )
        with reading(file), open_columns(file) as parquet:
            groups = groups_of(parquet.metadata, of.parameters, of.axis)
            return picked((read_group(parquet, i) for i in groups), of)

    def _columns_file(self, of: ColumnsOf) -> str:
        return columns_file(of.run, self._last_step(of.run) if of.step is None else of.step)

    def _last_step(self, run: str) -> int | None:
        steps = [known["step"] for known in self.run["runs"] if known["run"] == run]
        if not steps:
            known = ", ".join(sorted({known["run"] for known in self.run["runs"]}))
            raise ResultsError(f"{self.path}: has no run {run!r}. It has {known}.")
        last: int | None = steps[-1]
        return last

    def _table(self, name: str) -> "pd.DataFrame":
        file = self.path / name
        with reading(file):
            table = pq.read_table(file, page_checksum_verification=True)
        missing = [column for column in SCHEMAS[name].names if column not in table.schema.names]
        if missing:
            raise ResultsError(
                f"{file}: has no {some(missing)}. It was made by an older wdecomp: compare again "
                "with --restart, or into another folder."
            )
        return as_pandas(table)


def read_results(path: str | Path) -> Results:
    """The results that `wdecomp compare --out PATH` left; those at a URL are fetched.

    Raises:
        ResultsError: the folder holds no results, unfinished ones, or ones of another schema.
    """
    if is_url(str(path)):
        from wdecomp.table.fetched import fetch_finished

        return fetch_finished(str(path))
    folder = Path(path)
    results = Results(folder)
    check_schema(results)
    if not (folder / "DONE.json").is_file():
        raise ResultsError(f"{folder}: is unfinished. Give the same command again to continue.")
    return results


def check_schema(results: Results) -> None:
    """That there are results of this version's schema, finished or not.

    Raises:
        ResultsError: there are none.
    """
    folder = results.path
    if not (folder / "run.json").is_file():
        raise ResultsError(f"{folder}: holds no results. `wdecomp compare --out` makes them.")
    version = results.run.get("schema")
    if version != VERSION:
        raise ResultsError(
            f"{folder}: has schema {version!r}, expected {VERSION}. Compare again, or read it with "
            "the wdecomp that made it."
        )
    if not _is_whole(results.run):
        raise ResultsError(
            f"{folder / 'run.json'}: lacks what every comparison writes (options, runs, left_out). "
            "Compare again with --restart, or into another folder."
        )


def _is_whole(record: dict[str, Any]) -> bool:
    """Whether run.json has what the tables are read by."""
    kinds = {"options": dict, "runs": list, "left_out": list}
    return all(isinstance(record.get(key), kind) for key, kind in kinds.items()) and all(
        isinstance(run, dict) and {"run", "method", "step"} <= run.keys() for run in record["runs"]
    )


def columns_file(run: str, step: int | None) -> str:
    """Where a run's columns at one step are, inside the results folder."""
    return f"columns/{run}/{'final' if step is None else f'step-{step}'}.parquet"


def as_pandas(table: pa.Table) -> "pd.DataFrame":
    """As pandas, with whole numbers that may be missing as Int64 and text as str."""
    frame: pd.DataFrame = table.to_pandas(integer_object_nulls=False)
    whole = [field.name for field in table.schema if field.name in WHOLE]
    return frame.astype(dict.fromkeys(whole, "Int64")) if whole else frame
