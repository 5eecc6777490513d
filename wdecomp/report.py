"""Results as text: the compact table and the notes that `wdecomp compare` prints."""

import math
import textwrap
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pandas as pd

from wdecomp.errors import some
from wdecomp.stats import Correlation, conclusions, correlations
from wdecomp.stats.kinds import Columns, Key, count, kinds, mean, of_last_step
from wdecomp.table import Results

WHERE = ("run", "stack", "module")
SAID = ["findings", "conclusion"]
SHOWN = ("method", "layer", "step", "delta_magnitude", "delta_direction")
WIDTH = 100
KINDS = 8  # named in one line of conclusions
IN_SHORT = {
    "floor": "at the rounding floor",
    "scaled": "magnitudes alone changed",
    "decay": "shrunk as by decay",
    "few": "too few points",
    "reversal": "pooled and within-step signs differ",
    "rises": "dM rises with dD",
    "falls": "dM falls with dD",
    "time": "pooled sign perhaps of time alone",
    "open": "sign open",
    "null": "dM as of random updates",
    "held": "magnitudes held",
}


def summary(results: Results, axis: str = "output") -> pd.DataFrame:
    """One row per run and module kind: sizes at the last step, and how they go together.

    Columns: run, method, stack, module, layers, steps, delta_magnitude and delta_direction (means
    over layers at the last step), pearson with low and high (pooled over layers and steps, 95 %
    by resampling layers where there are enough, else Fisher z), within_step (Pearson with each
    step's means taken out), findings and conclusion (see `wdecomp.stats.Conclusion`).
    """
    modules, fits = results.modules, results.fits
    said = {(each.run, each.stack, each.module): each for each in conclusions(modules, fits, axis)}
    pearson_of = correlations(fits, axis)
    rows = [
        _row(key, columns, pearson_of[key])
        | dict(zip(SAID, (said[key].findings, said[key].text), strict=True))
        for key, columns in kinds(modules[modules["axis"] == axis], WHERE, SHOWN)
        if key in said
    ]
    return pd.DataFrame(rows)


def as_text(table: pd.DataFrame, axis: str) -> str:
    """The summary for a terminal; ASCII only, so that it can be piped anywhere."""
    if table.empty:
        return "No module kind changed in two layers or more."
    many_stacks = table["stack"].nunique() > 1
    wide = min(max(12, *table["run"].str.len()), 28)
    lines = [
        f"{'run':<{wide}} {'module':<14} {'layers':>6} {'steps':>5} {'mean dM':>10} "
        f"{'mean dD':>10} {'corr(dD,dM)  [95 % CI]':>24} {'in step':>8}"
    ]
    for row in table.itertuples():
        module = f"{row.stack}.{row.module}" if many_stacks else str(row.module)
        interval = f"{_signed(row.pearson)} [{_signed(row.low)},{_signed(row.high)}]"
        lines.append(
            f"{str(row.run)[:wide]:<{wide}} {module[:14]:<14} {row.layers:>6} {row.steps:>5} "
            f"{row.delta_magnitude:>10.3g} {row.delta_direction:>10.3g} {interval:>24} "
            f"{_signed(row.within_step):>8}"
        )
    lines.append(
        f"Columns along the {axis} axis; dM, dD at the last step; corr over all layers and steps."
    )
    for _, rows in table.groupby("run", sort=False):
        lines += ["", *_said(rows, many_stacks)]
    return "\n".join(lines)


def notes(results: Results) -> list[str]:
    """What a reader of the table has to know: unchanged matrices, columns and tensors left out."""
    noted = dict.fromkeys((run, note) for run, note in results.run.get("notes", []))
    found = [f"{run}: {note}." for run, note in noted]
    facts, modules = results.facts, results.modules
    for run, group in facts[facts["shape"].str.len() > 1].groupby("run", sort=False):
        unchanged = group[group["unchanged"]]["parameter"].unique()
        if len(unchanged):
            total = group["parameter"].nunique()
            found.append(
                f"{run}: {len(unchanged)} of {total} matrices equal the base's "
                f"({some(list(unchanged))}); they are in facts only."
            )
    for row in (
        modules[modules["n_nonfinite"] > 0].drop_duplicates(["run", "parameter"]).itertuples()
    ):
        found.append(
            f"{row.run}: {row.parameter}: {row.n_nonfinite} {row.axis} columns hold NaN or "
            "infinity and are left out."
        )
    zero = modules[modules["n_zero"] > 0].drop_duplicates(["run", "parameter"])
    if len(zero):
        found.append(
            f"{int(zero['n_zero'].sum())} zero columns have no direction and are left out "
            f"({some(sorted(zero['parameter'].unique()))})."
        )
    left_out = results.left_out
    if len(left_out):
        tensors = left_out["tensor"].unique()
        found.append(
            f"{len(tensors)} {'tensor is' if len(tensors) == 1 else 'tensors are'} not compared "
            f"({some(list(tensors))}): reasons in run.json."
        )
    return found


def as_json(results: Results, axis: str) -> dict[str, Any]:
    """The summary, what can be concluded from it, and the notes, for machines."""
    rows = summary(results, axis).drop(columns=SAID, errors="ignore").to_dict("records")
    return {
        "schema": results.run["schema"],
        "results": results.place,
        "axis": axis,
        "summary": [{str(k): _plain(v) for k, v in row.items()} for row in rows],
        "conclusions": [asdict(each) for each in conclusions(results.modules, results.fits, axis)],
        "notes": notes(results),
    }


def _said(rows: pd.DataFrame, many_stacks: bool) -> list[str]:
    """A run's conclusion on its first module kind, q before others, and in short on the others."""
    first = int((rows["module"] != "q").to_numpy().argmin())
    names = rows["stack"] + "." + rows["module"] if many_stacks else rows["module"]
    alike: dict[tuple[str, ...], list[str]] = {}
    for i in [first, *(i for i in range(len(rows)) if i != first)]:
        alike.setdefault(rows["findings"].iloc[i], []).append(str(names.iloc[i]))
    (head, *likewise), *others = alike.values()
    also = f" (likewise {some(likewise, KINDS)})" if likewise else ""
    lines = _wrapped(f"{rows['run'].iloc[0]}, {head}{also}: {rows['conclusion'].iloc[first]}", "")
    in_short = [", ".join(IN_SHORT[finding] for finding in findings) for findings in alike][1:]
    if others:
        told = zip(others, in_short, strict=True)
        lines += _wrapped("; ".join(f"{some(kinds, KINDS)}: {text}" for kinds, text in told), "  ")
    return lines


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=indent, subsequent_indent="  ", break_on_hyphens=False
    )


def _row(key: Key, columns: Columns, pearson: Mapping[str, Correlation]) -> dict[str, Any]:
    run, stack, module = key
    last, pooled = of_last_step(columns), pearson["pooled"]
    low, high = pooled.interval
    return {
        "run": run,
        "method": columns["method"][0],
        "stack": stack,
        "module": module,
        "layers": count(columns["layer"]),
        "steps": max(count(columns["step"]), 1),
        "delta_magnitude": mean(last["delta_magnitude"]),
        "delta_direction": mean(last["delta_direction"]),
        "pearson": pooled.value,
        "low": low,
        "high": high,
        "within_step": pearson["within_step"].value,
    }


def _signed(value: Any) -> str:
    return "n/a" if math.isnan(value) else f"{value:+.2f}"


def _plain(value: Any) -> Any:
    return (
        float(f"{value:.6g}")
        if isinstance(value, float) and math.isfinite(value)
        else (None if isinstance(value, float) else value)
    )
