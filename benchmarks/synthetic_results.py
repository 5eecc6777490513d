"""A results folder of the size of LLaMA-7B, without the models: for the report and the app.

    python benchmarks/synthetic_results.py FOLDER [--layers 32] [--columns]

writes the tables of 32 layers × 7 modules × 4 steps × 3 methods along both axes, in the ranges of
the DoRA paper's Fig. 2; with --columns also all 1.36 million columns per checkpoint and axis.
"""

import argparse
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from synthetic import HIDDEN, INNER, SHAPES

from wdecomp.names import place
from wdecomp.stats import result_fits
from wdecomp.table import VERSION, ColumnGroup, Part, Results, open_folder

STEPS = (1000, 2000, 3000, 4000)
AXES = ("output", "input")


@dataclass(frozen=True)
class Method:
    """Where a method's points lie: ΔD at the end, ΔM there, and how ΔM goes with ΔD by layer."""

    run: str
    method: str
    direction: float
    magnitude: float
    slope: float


METHODS = (
    Method("ft", "full", 0.018, 0.07, -0.8),
    Method("lora", "lora", 0.13, 0.35, 0.9),
    Method("dora", "dora", 0.24, 1.05, -0.4),
)


def write_results(
    folder: Path,
    layers: int = 32,
    hidden: int = HIDDEN,
    inner: int = INNER,
    columns: bool = False,
    methods: tuple[Method, ...] = METHODS,
    modules: Container[str] = SHAPES,
) -> Results:
    """Writes the folder; the same arguments give the same tables.

    Args:
        folder: for the results; it must not hold others.
        layers: of the model.
        hidden: its width.
        inner: of its MLP.
        columns: whether every single column is kept, too.
        methods: the runs.
        modules: which of the projections there are.
    """
    sizes = {HIDDEN: hidden, INNER: inner}
    names = [
        {
            f"model.layers.{layer}.{name}.weight": (sizes[shape[0]], sizes[shape[1]])
            for name, shape in SHAPES.items()
            if name in modules
        }
        for layer in range(layers)
    ]
    with open_folder(folder, _plan(names, columns, methods), restart=False) as opened:
        for unit in opened.pending():
            opened.commit(unit, _part(unit, names[unit], columns, methods))
        return opened.finish(result_fits)


def _plan(
    names: list[dict[str, tuple[int, int]]], columns: bool, methods: tuple[Method, ...]
) -> dict[str, Any]:
    base = {"path": "models/synthetic-7b", "model_type": "llama", "adapter_config": None}
    runs = [
        {"run": m.run, "method": m.method, "step": step, "path": f"{m.run}/checkpoint-{step}"}
        for m in methods
        for step in STEPS
    ]
    return {
        "wdecomp": "synthetic",
        "schema": VERSION,
        "versions": {"wdecomp": "synthetic"},
        "options": {"axes": list(AXES), "columns": list(AXES) if columns else []},
        "base": base | {"shards": []},
        "runs": [run | {"model_type": None, "adapter_config": None} for run in runs],
        "units": [list(part) for part in names],
        "notes": [],
        "left_out": [[m.run, 4000, "base", "lm_head.weight", "not adapted"] for m in methods],
    }


def _part(
    unit: int,
    shapes: dict[str, tuple[int, int]],
    columns: bool,
    methods: tuple[Method, ...],
) -> Part:
    random = np.random.default_rng(unit)
    part = Part()
    for parameter, shape in shapes.items():
        own = random.normal(0, 0.12, len(methods))  # how far this matrix is off its method's mean
        for method, offset in zip(methods, own, strict=True):
            for step in STEPS:
                where = _where(method, step, parameter)
                part.facts.append(where | _facts(shape, offset))
                for axis in AXES:
                    count = shape[0] if axis == "output" else shape[1]
                    means = _means(random, method, step / STEPS[-1], offset)
                    part.modules.append(where | _row(axis, count, *means))
                    if columns:
                        part.columns.append(_group(random, where, axis, count, *means))
    return part


def _means(
    random: np.random.Generator, method: Method, progress: float, offset: float
) -> tuple[float, float]:
    """ΔD and ΔM of one matrix at one step."""
    direction = method.direction * progress**0.7 * np.exp(offset)
    magnitude = method.magnitude * progress**0.5 * np.exp(method.slope * offset)
    noise = random.normal(0, 0.02, 2)
    return float(direction * np.exp(noise[0])), float(magnitude * np.exp(noise[1]))


def _where(method: Method, step: int, parameter: str) -> dict[str, Any]:
    at = place(parameter)
    run = {"run": method.run, "method": method.method, "step": step}
    return run | {"stack": at.stack, "layer": at.layer, "module": at.module, "parameter": parameter}


def _row(axis: str, count: int, direction: float, magnitude: float) -> dict[str, Any]:
    return {
        "axis": axis,
        "n_columns": count,
        "n_zero": 0,
        "n_nonfinite": 0,
        "delta_magnitude": magnitude,
        "delta_direction": direction,
        "signed_delta_magnitude": 0.6 * magnitude,
        "relative_delta_magnitude": magnitude / 1.3,
        "growth_ratio": 1.0,
        "null_delta_magnitude": 0.9 * direction,
        "null_delta_direction": direction,
        "floor_delta_magnitude": 1e-4,
        "floor_delta_direction": 1e-6,
        "dtype_base": "BF16",
        "dtype_tuned": "BF16",
    }


def _facts(shape: tuple[int, int], offset: float) -> dict[str, Any]:
    norm = float(np.sqrt(shape[0] * shape[1]) * 0.02)
    stored = {"shape": list(shape), "dtype_base": "BF16", "dtype_tuned": "BF16"}
    change = {"norm_base": norm, "norm_delta": 0.1 * norm, "relative_change": 0.1 + 0.01 * offset}
    return stored | change | {"unchanged": False, "zero_outputs": 0, "zero_inputs": 0}


def _group(
    random: np.random.Generator,
    where: dict[str, Any],
    axis: str,
    count: int,
    direction: float,
    magnitude: float,
) -> ColumnGroup:
    """Columns whose means are the row's."""
    spread = np.exp(random.normal(0, 0.4, (2, count)))
    turned, moved = spread / spread.mean(axis=1, keepdims=True) * [[direction], [magnitude]]
    sign = np.where(random.random(count) < 0.8, 1.0, -1.0)
    return ColumnGroup(
        run=where["run"],
        step=where["step"],
        parameter=where["parameter"],
        axis=axis,
        column=np.arange(count),
        magnitude_base=random.normal(1.3, 0.1, count),
        delta_magnitude=moved * sign,
        delta_direction=turned,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--columns", action="store_true", help="keep every column: 0.6 GB")
    given = parser.parse_args()
    written = write_results(given.folder, given.layers, columns=given.columns)
    print(f"{written.path}: {len(written.modules)} matrices, axes and steps")
