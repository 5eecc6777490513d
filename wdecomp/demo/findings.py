"""The demo's figures, beside the paper's, and the picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from wdecomp.charts import interactive_scatter, panels, static_scatter
from wdecomp.charts.fits import PAPER
from wdecomp.demo.training import Outcome
from wdecomp.stats import module_fits
from wdecomp.table import Results

MODULE, AXIS = "q", "output"
METHODS = {"ft": "full"}  # of a run whose name is not its method's
N_LATE = 4
EVEN = (0.25, 0.5, 0.75, 1.0)  # of the last step
TITLE = "Magnitude and direction change of the query weights, a point per layer and late step"


def findings(results: Mapping[int, Results]) -> list[dict[str, Any]]:
    """One row per weight decay and run: how ΔM goes with ΔD on the query weights.

    Each row: decay, run, late (pooled over layers and the last four checkpoints) with its interval
    low and high by resampling layers, even (pooled, four evenly spaced checkpoints), within_step
    (late, each step's means taken out), per_column (all columns, last checkpoint), growth_ratio
    (mean over layers, last checkpoint), paper.
    """
    return [row for decay, result in results.items() for row in _rows(decay, result)]


def findings_text(
    outcomes: Sequence[Outcome], found: Sequence[Mapping[str, Any]], folder: Path
) -> str:
    """What the demo prints."""
    base = outcomes[0]
    lines = [
        "Finding the docstring of a signature, held out (MRR@10, higher is better)",
        f"  base model            {base.mrr:.3f}",
    ]
    for run in outcomes[1:]:
        gain = run.mrr - base.mrr
        lines.append(f"  {run.method:<5} decay {run.decay:<8g} {run.mrr:.3f} ({gain:+.3f})")
    lines += [
        "",
        "Correlation of dM with dD, query weights, output axis (paper: VL-BART, query)",
        f"  {'decay':<6} {'run':<6} {'late steps [95 % CI]':>22} {'even steps':>11} "
        f"{'in step':>8} {'columns':>8} {'growth':>7} {'paper':>6}",
    ]
    for row in found:
        interval = f"{row['late']:+.2f} [{row['low']:+.2f},{row['high']:+.2f}]"
        lines.append(
            f"  {row['decay']:<6} {row['run']:<6} {interval:>22} {row['even']:>+11.2f} "
            f"{row['within_step']:>+8.2f} {row['per_column']:>+8.2f} "
            f"{row['growth_ratio']:>+7.2f} {row['paper']:>+6.2f}"
        )
    return "\n".join([*lines, "", *_how_to_read(folder)])


def draw(results: Mapping[int, Results], folder: Path) -> None:
    """Fig. 2 of the paper for these runs: figure-2.svg, .png and .html."""
    grid = {f"weight decay {decay}": _panels(result) for decay, result in results.items()}
    for suffix in (".svg", ".png"):
        static_scatter(grid, TITLE, folder / f"figure-2{suffix}")
    interactive_scatter(grid, TITLE, folder / "figure-2.html")


def _how_to_read(folder: Path) -> list[str]:
    return [
        "late: the last four checkpoints, pooled with the 6 layers, as in the paper; even: four",
        "evenly spaced ones, where both changes grow in time and every method looks positive.",
        "in step: the relation across layers alone. growth: norm growth over what an update",
        "perpendicular to the weights forces; 1 for LoRA by geometry.",
        "An interval that reaches across zero leaves the sign open. With decay 1, FT and DoRA are",
        "negative in step by arithmetic: decay shrinks long columns more, and they turn less. That",
        "is no measure of learning capacity.",
        "",
        f"Picture: {folder / 'figure-2.png'} (.svg, and .html to hover over).",
        f"Tables:  {folder / 'results-decay-1'}/*.parquet; the checkpoints are beside them:",
        f"         wdecomp compare {folder}/base {folder}/decay-1/ft {folder}/decay-1/lora",
    ]


def _rows(decay: int, result: Results) -> list[dict[str, Any]]:
    modules = result.modules
    modules = modules[(modules["module"] == MODULE) & (modules["axis"] == AXIS)]
    late, even = _pearson(_late(modules)), _pearson(_evenly(modules))
    columns = _of_query(result.fits).set_index(["run", "grouping"])
    last = modules[modules["step"] == modules["step"].max()]
    growth = last.groupby("run")["growth_ratio"].mean()
    return [
        {
            "decay": decay,
            "run": run,
            "late": late.loc[(run, "pooled"), "value"],
            "low": late.loc[(run, "pooled"), "cluster_low"],
            "high": late.loc[(run, "pooled"), "cluster_high"],
            "even": even.loc[(run, "pooled"), "value"],
            "within_step": late.loc[(run, "within_step"), "value"],
            "per_column": columns.loc[(run, "per_column"), "value"],
            "growth_ratio": growth[run],
            "paper": PAPER[METHODS.get(run, run)],
        }
        for run in modules["run"].unique()
    ]


def _pearson(modules: pd.DataFrame) -> pd.DataFrame:
    return _of_query(module_fits(modules)).set_index(["run", "grouping"])


def _of_query(fits: pd.DataFrame) -> pd.DataFrame:
    return fits[
        (fits["module"] == MODULE)
        & (fits["axis"] == AXIS)
        & (fits["response"] == "delta_magnitude")
        & (fits["estimator"] == "pearson")
    ]


def _late(modules: pd.DataFrame) -> pd.DataFrame:
    return modules[modules["step"].isin(sorted(modules["step"].unique())[-N_LATE:])]


def _evenly(modules: pd.DataFrame) -> pd.DataFrame:
    last = modules["step"].max()
    return modules[modules["step"].isin([round(part * last) for part in EVEN])]


def _panels(result: Results) -> list[Any]:
    modules = _late(result.modules)
    stack = str(modules.loc[modules["module"] == MODULE, "stack"].iloc[0])
    return panels(modules, module_fits(modules), MODULE, stack, AXIS)
