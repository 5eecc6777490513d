"""Several results folders as one, so that their runs stand side by side."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from wdecomp.table.columns import ColumnsOf
from wdecomp.table.results import Results

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Together(Results):
    """The tables of several results, one after another; a run is called NAME/RUN.

    members: name → results.
    """

    members: Mapping[str, Results]

    @cached_property
    def run(self) -> dict[str, Any]:
        """What the run.json's say of runs, notes and what was left out; the rest by name."""
        runs = {name: results.run for name, results in self.members.items()}
        return {
            "schema": next(iter(runs.values()))["schema"],
            "versions": next(iter(runs.values())).get("versions", {}),
            "base": {"path": ", ".join(str(run["base"]["path"]) for run in runs.values())},
            "options": {
                kind: sorted({axis for run in runs.values() for axis in run["options"][kind]})
                for kind in ("axes", "columns")
            },
            "runs": [
                each | {"run": f"{name}/{each['run']}"}
                for name, run in runs.items()
                for each in run["runs"]
            ],
            "notes": [
                [f"{name}/{of}", said] for name, run in runs.items() for of, said in run["notes"]
            ],
            "left_out": [
                [f"{name}/{left[0]}", *left[1:]]
                for name, run in runs.items()
                for left in run["left_out"]
            ],
        }

    @cached_property
    def modules(self) -> "pd.DataFrame":
        """One row per run × step × parameter × axis."""
        return self._joined("modules")

    @cached_property
    def fits(self) -> "pd.DataFrame":
        """One row per statistic."""
        return self._joined("fits")

    @cached_property
    def facts(self) -> "pd.DataFrame":
        """One row per compared tensor."""
        return self._joined("facts")

    @cached_property
    def spectra(self) -> "pd.DataFrame":
        """One row per run × step × matrix that changed.

        Raises:
            ResultsError: a folder has none.
        """
        return self._joined("spectra")

    def columns_table(self, of: ColumnsOf) -> pa.Table:
        """As `Results.columns_table`, of the folder that the run's name begins with."""
        name = next(name for name in self.members if of.run.startswith(f"{name}/"))
        own = replace(of, run=of.run.removeprefix(f"{name}/"))
        return self.members[name].columns_table(own)

    def _joined(self, table: str) -> "pd.DataFrame":
        import pandas as pd

        parts = []
        for name, results in self.members.items():
            part: pd.DataFrame = getattr(results, table)
            parts.append(part.assign(run=f"{name}/" + part["run"]))
        return pd.concat(parts, ignore_index=True)


def together(members: Mapping[str, Results]) -> Results:
    """Several results as one; of one alone itself.

    Args:
        members: name → results, in the order in which they are shown.
    """
    results = list(members.values())
    return results[0] if len(results) == 1 else Together(Path(" + ".join(members)), members)
