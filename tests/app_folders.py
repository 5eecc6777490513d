"""Results folders in every state that the app may find them in."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from synthetic_tables import MODULES, generator

from wdecomp.stats import module_fits
from wdecomp.table import Results, files, open_folder
from wdecomp.table.schema import FACTS, FITS
from wdecomp.table.schema import MODULES as MATRICES

SIZES = {4096: 24, 11008: 40}
HOSTILE = (
    "![x](http://host.invalid/beacon.png)",
    "[click](http://host.invalid/)",
    "http://host.invalid/plain",
    "www.host.invalid",
    "someone@host.invalid",
    "<script>document.title='taken'</script>",
    "<img src=x onerror=\"document.title='taken'\">",
    "<a href='http://host.invalid'>q</a>",
    '=HYPERLINK("http://host.invalid";"q")',
    "@SUM(1)|cmd",
    ":red[fake] :material/home: :smile: $x^2$",
    "a\x1b[2J\x07\rb\nc",
    "q\u202eproj\u2066\u200b",
    "`**_~~# <!-- -->",
    "javascript:alert(1)//" + "n" * 300,
)


def unfinished(folder: Path, units: int = 2, layers: int = 4, columns: bool = True) -> Path:
    """A comparison that was interrupted after some units of work."""
    made = generator()
    names = [
        {
            f"model.layers.{layer}.{name}.weight": (SIZES[shape[0]], SIZES[shape[1]])
            for name, shape in made.SHAPES.items()
            if name in MODULES
        }
        for layer in range(layers)
    ]
    plan = made._plan(names, columns, made.METHODS)
    with open_folder(folder, plan, restart=False) as opened:
        for unit in range(units):
            opened.commit(unit, made._part(unit, names[unit], columns, made.METHODS))
    return folder


def recording(folder: Path, results: Results, steps: int = 2) -> Path:
    """What the trainer's recorder leaves while it goes on: tables of some steps, and no fits."""
    known = sorted(results.modules["step"].unique())[:steps]

    def of(frame: pd.DataFrame) -> pd.DataFrame:
        return frame[(frame["run"] == "ft") & frame["step"].isin(known)]

    run = {key: results.run[key] for key in ("wdecomp", "schema", "versions", "base")}
    run |= {"options": {"axes": ["output", "input"], "columns": []}, "units": [], "notes": []}
    runs = [each for each in results.run["runs"] if each["run"] == "ft" and each["step"] in known]
    run |= {"runs": runs}
    run |= {"left_out": [], "live": {"run": "ft", "method": "full", "finished": False}}
    modules = of(results.modules)
    return write(folder, run, modules, of(results.facts), module_fits(modules)[:0])


def write(
    folder: Path,
    run: dict[str, Any],
    modules: pd.DataFrame,
    facts: pd.DataFrame,
    fits: pd.DataFrame | None = None,
) -> Path:
    """A folder with these tables; without `fits` with those that follow from the matrices."""
    fits = module_fits(modules) if fits is None else fits
    for name, frame, schema in (
        ("modules", modules, MATRICES),
        ("facts", facts, FACTS),
        ("fits", fits, FITS),
    ):
        table = pa.Table.from_pandas(frame, schema, preserve_index=False)
        files.commit_table(folder / f"{name}.parquet", table)
    files.commit_json(folder / "run.json", run)
    files.commit_json(folder / "DONE.json", {"sha256": {}})
    return folder


def without_numbers(folder: Path, results: Results) -> Path:
    """Every ΔM and ΔD is NaN, and so is every statistic."""
    nan = dict.fromkeys(("delta_magnitude", "delta_direction", "relative_delta_magnitude"), np.nan)
    return write(folder, results.run, results.modules.assign(**nan), results.facts)


def one_point(folder: Path, results: Results) -> Path:
    """One run, one step, one matrix."""
    first = results.modules.iloc[0]
    where = {name: first[name] for name in ("run", "step", "parameter")}

    def of(frame: pd.DataFrame) -> pd.DataFrame:
        return frame[(frame[list(where)] == pd.Series(where)).all(axis=1)]

    runs = [
        r for r in results.run["runs"] if (r["run"], r["step"]) == (first["run"], first["step"])
    ]
    return write(folder, results.run | {"runs": runs}, of(results.modules), of(results.facts))


def old_schema(folder: Path, results: Results) -> Path:
    """What an older version left."""
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(results.run | {"schema": 0}))
    return folder


def hostile(folder: Path, results: Results, names: Sequence[str] = HOSTILE) -> Path:
    """Runs, stacks, module kinds, parameters, paths, notes and reasons with hostile names."""
    runs = dict(zip(results.modules["run"].unique(), names, strict=False))
    kinds = dict(zip(results.modules["module"].unique(), names[4:], strict=False))
    parameters = [str(name) for name in results.modules["parameter"].unique()]
    named = {name: f"{names[i % len(names)]}.{i}" for i, name in enumerate(parameters)}
    named |= {parameters[i]: name for i, name in enumerate(names[: len(parameters)])}

    def evil(frame: pd.DataFrame) -> pd.DataFrame:
        return frame.assign(
            run=frame["run"].map(runs),
            module=frame["module"].map(kinds),
            parameter=frame["parameter"].map(named),
            stack=names[7],
            dtype_tuned=names[8],
        )

    run = results.run | {
        "base": results.run["base"] | {"path": f"models/{names[0]}"},
        "runs": [
            each | {"run": runs[each["run"]], "path": names[1]} for each in results.run["runs"]
        ],
        "notes": [[runs["ft"], name] for name in names],
        "left_out": [[runs["ft"], 4000, "base", name, names[0]] for name in names],
        "options": {"axes": ["output", "input"], "columns": []},
    }
    return write(folder, run, evil(results.modules), evil(results.facts))
