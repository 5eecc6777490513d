"""What every chart takes from the table of matrices."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from wdecomp.charts.chart import Floats, Key

RESPONSES = {
    "delta_magnitude": "ΔM, mean |m − m0|",
    "relative_delta_magnitude": "ΔM/m0, mean |m − m0|/m0",
}
USUAL = ("q", "k", "v", "qkv", "kv", "o", "gate", "up", "gate_up", "down")  # as a block runs
FIGURES = RESPONSES | {"delta_direction": "ΔD, mean 1 − cos"}


def numbers(table: pd.DataFrame, column: str) -> Floats:
    """A column as float64, with NaN for what is missing."""
    return np.asarray(table[column].to_numpy(dtype=np.float64, na_value=np.nan), np.float64)


def intervals(fits: pd.DataFrame) -> tuple[Floats, Floats]:
    """The ends of each statistic's: by resampling layers where there is such, else by formula."""
    clustered = np.isfinite(numbers(fits, "cluster_low"))
    low, high = (
        np.where(clustered, numbers(fits, f"cluster_{end}"), numbers(fits, end))
        for end in ("low", "high")
    )
    return low, high


def hover(points: pd.DataFrame) -> tuple[str, ...]:
    """Which matrix a point is: run, step, layer and the full parameter name."""
    columns = [points[name] for name in ("run", "step", "layer", "parameter")]
    return tuple(_named(*values) for values in zip(*columns, strict=True))


def _named(run: str, step: Any, layer: Any, parameter: str) -> str:
    at_step = "" if pd.isna(step) else f" · step {step}"
    in_layer = "" if pd.isna(layer) else f" · layer {layer}"
    return f"{run}{at_step}{in_layer} · {parameter}"


def keys(points: pd.DataFrame) -> tuple[Key, ...]:
    """Which rows of the table the points are."""
    return tuple(
        (str(run), None if pd.isna(step) else int(step), str(parameter))
        for run, step, parameter in zip(
            points["run"], points["step"], points["parameter"], strict=True
        )
    )


def sequence(columns: Iterable["pd.Series[int]"]) -> dict[object, int]:
    """Steps in ascending order, numbered; none at all is None and comes first."""
    steps = {None if pd.isna(step) else step for column in columns for step in column.unique()}
    return {step: i for i, step in enumerate(sorted(steps, key=lambda s: -1 if s is None else s))}


def last_steps(modules: pd.DataFrame) -> pd.DataFrame:
    """The rows of each run's last step."""
    last = modules.groupby("run", sort=False)["step"].transform("max")
    return modules[(modules["step"] == last) | modules["step"].isna()]


def methods_of(modules: pd.DataFrame) -> dict[str, str]:
    """Run → method, in the order of the table."""
    return {
        str(run): str(method)
        for run, method in modules.groupby("run", sort=False)["method"].first().items()
    }


def kinds_of(modules: pd.DataFrame) -> list[tuple[str, str]]:
    """(stack, module kind) of all that stand in two layers or more, q, k, v first in each stack."""
    layers = modules.groupby(["stack", "module"], sort=False)["layer"].nunique().reset_index()
    several = layers[layers["layer"] > 1]
    kinds = [(str(row.stack), str(row.module)) for row in several.itertuples()]
    stacks = list(dict.fromkeys(stack for stack, _ in kinds))
    return sorted(kinds, key=lambda kind: (stacks.index(kind[0]), _usual_place(kind[1])))


def _usual_place(module: str) -> int:
    return USUAL.index(module) if module in USUAL else len(USUAL)


def kind_names(kinds: Sequence[tuple[str, str]]) -> list[str]:
    """How kinds are called: "q", or "encoder.q" where there is more than one stack."""
    many = len({stack for stack, _ in kinds}) > 1
    return [f"{stack}.{module}" if many else module for stack, module in kinds]
