"""A table of results in a format that other programs read, whole or in part."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pandas as pd

from wdecomp.errors import ResultsError, some
from wdecomp.publishing.formats import FORMATS
from wdecomp.table import Results
from wdecomp.table.files import commit

TABLES = ("modules", "fits", "facts", "spectra", "left_out", "columns")


@dataclass(frozen=True)
class Selection:
    """Which rows: of these runs, steps, module kinds and this axis; all where nothing is named."""

    runs: tuple[str, ...] = ()
    steps: tuple[int, ...] = ()
    modules: tuple[str, ...] = ()
    axis: str = ""

    def of(self, table: pd.DataFrame) -> pd.DataFrame:
        """The rows; a column that the table has not selects nothing out."""
        wanted = {"run": self.runs, "step": self.steps, "module": self.modules}
        wanted["axis"] = (self.axis,) if self.axis else ()
        for column, values in wanted.items():
            if values and column in table:
                table = table[table[column].isin(list(values))]
        return table


def export(
    results: Results, table: str, form: str, target: Path | BinaryIO, selection: Selection
) -> None:
    """Writes one table.

    Args:
        results: of a comparison.
        table: one of `TABLES`; "columns" goes a checkpoint at a time, so that memory does not grow
            with their number.
        form: one of `FORMATS`.
        target: a file's name, or an open stream.
        selection: which rows.

    Raises:
        ResultsError: there is no such run, step or column, or the file cannot be written.
    """
    _check(results, selection)
    frames = _columns(results, selection) if table == "columns" else _whole(results, table)
    chosen = (selection.of(frame) for frame in frames)
    if isinstance(target, Path):

        def write(path: Path) -> None:
            with path.open("wb") as stream:
                FORMATS[form](chosen, stream, table)

        commit(target, write)
    else:
        FORMATS[form](chosen, target, table)


def _whole(results: Results, table: str) -> Iterator[pd.DataFrame]:
    yield getattr(results, table)


def _columns(results: Results, selection: Selection) -> Iterator[pd.DataFrame]:
    """The columns of each checkpoint, with its run and step, and each matrix's place, before them.

    Raises:
        ResultsError: no columns were kept.
    """
    axes = [axis for axis in results.run["options"]["columns"] if selection.axis in ("", axis)]
    if not axes:
        raise ResultsError(
            f"{results.place}: no columns were kept along this axis. Compare with --columns."
        )
    places = results.modules.drop_duplicates("parameter").set_index("parameter")
    known = selection.of(pd.DataFrame(results.run["runs"], columns=["run", "step"]))
    for run, step in known.itertuples(index=False):
        at = None if pd.isna(step) else int(step)
        for axis in axes:
            columns = results.columns(str(run), at, axis=axis)
            names = columns["parameter"].astype(str)
            columns["parameter"] = names
            columns["axis"] = columns["axis"].astype(str)
            for i, place in enumerate(("stack", "layer", "module")):
                columns.insert(i, place, names.map(places[place]))
            columns.insert(0, "run", str(run))
            columns.insert(1, "step", pd.Series([at] * len(columns), dtype="Int64"))
            yield columns


def _check(results: Results, selection: Selection) -> None:
    """That the runs, steps and module kinds are there: an empty table would look like an answer."""
    runs = results.run["runs"]
    there = {
        "run": (selection.runs, [str(run["run"]) for run in runs]),
        "step": (selection.steps, [run["step"] for run in runs if run["step"] is not None]),
        "module": (selection.modules, list(results.facts["module"].unique())),
    }
    for name, (wanted, known) in there.items():
        for value in wanted:
            if value not in known:
                choice = some([str(each) for each in dict.fromkeys(known)])
                raise ResultsError(f"{value!r}: no such {name}. There are {choice or 'none'}.")
