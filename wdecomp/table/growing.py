"""Results that are not finished: of a comparison, or of a training that is recorded."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from wdecomp.errors import ResultsError
from wdecomp.table import files
from wdecomp.table.claim import parts_of
from wdecomp.table.columns import ColumnsOf, picked
from wdecomp.table.parts import SUFFIX, read_groups, read_rows
from wdecomp.table.results import Results, as_pandas, check_schema
from wdecomp.table.schema import FACTS, MODULES

if TYPE_CHECKING:
    import pandas as pd

Fit = Callable[["pd.DataFrame"], "pd.DataFrame"]


@dataclass(frozen=True)
class Growing(Results):
    """Tables to which rows are still added; the statistics are those of the rows so far.

    fit: modules → fits.
    """

    fit: Fit

    @cached_property
    def fits(self) -> "pd.DataFrame":
        """Statistics of the rows that are there."""
        return self.fit(self.modules)

    @property
    def progress(self) -> str:
        """How far it is, in a sentence."""
        n = len(self.run["runs"])
        return f"A training is being recorded: {n} step{'' if n == 1 else 's'} so far."


@dataclass(frozen=True)
class Unfinished(Growing):
    """What is there of a comparison, from the parts of the units of work that are done."""

    @cached_property
    def modules(self) -> "pd.DataFrame":
        """The rows of the parts, in the order of the runs."""
        return self._rows(0, MODULES)

    @cached_property
    def facts(self) -> "pd.DataFrame":
        """The rows of the parts, in the order of the runs."""
        return self._rows(1, FACTS)

    @property
    def progress(self) -> str:
        """How far it is, in a sentence."""
        done, all_ = len(self._parts), len(self.run["units"])
        return f"This comparison is not finished: {done} of {all_} units of work are done."

    def columns_table(self, of: ColumnsOf) -> pa.Table:
        """As `Results.columns_table`, of the units that are done."""
        if of.axis not in self.run["options"]["columns"]:
            raise ResultsError(f"{self.path}: keeps no columns along the {of.axis} axis.")
        at = of.run, self._last_step(of.run) if of.step is None else of.step
        return picked((group for part in self._parts for group in read_groups(part, at)), of)

    @cached_property
    def _parts(self) -> list[Path]:
        """Those that were there at the first look; more may come."""
        return [files.whole(part) for part in parts_of(self.path)]

    def _rows(self, which: int, schema: pa.Schema) -> "pd.DataFrame":
        order = {(run["run"], run["step"]): i for i, run in enumerate(self.run["runs"])}
        rows = [row for part in self._parts for row in read_rows(part)[which]]
        rows.sort(key=lambda row: order.get((row["run"], row["step"]), len(order)))
        return as_pandas(pa.Table.from_pylist(rows, schema))


def read_growing(path: str | Path, fit: Fit) -> Results:
    """The results in a folder, finished or not; a `Growing` if not.

    Args:
        path: the folder.
        fit: what computes statistics of modules where none are written yet.

    Raises:
        ResultsError: the folder holds no results, or ones of another schema.
    """
    folder = Path(path)
    results = Results(folder)
    check_schema(results)
    if not (folder / "DONE.json").is_file():
        return Unfinished(folder, fit)
    return Growing(folder, fit) if is_recording(results) else results


def is_recording(results: Results) -> bool:
    """Whether a training is being recorded there, whose last step is not written yet."""
    live = results.run.get("live")
    return isinstance(live, dict) and not live.get("finished")


def stamp(path: str | Path) -> tuple[Any, ...]:
    """What changes whenever the results in a folder do; nothing is read but names and sizes."""
    folder = Path(path)
    found: list[Any] = [str(folder)]
    for name in ("run.json", "DONE.json", "modules.parquet"):
        try:
            state = (folder / name).stat()
            found.append((state.st_mtime_ns, state.st_size))
        except OSError:
            found.append(None)
    return (*found, len(list((folder / "parts").glob(f"[0-9]*{SUFFIX}"))))
