"""The `fits` table: every correlation and line of magnitude change on direction change."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from wdecomp.stats.bootstrap import NO_INTERVAL, cluster_intervals
from wdecomp.stats.estimators import (
    Estimate,
    Floats,
    Sample,
    line,
    pearson,
    samples,
    spearman,
)
from wdecomp.stats.kinds import Columns, Key, kinds
from wdecomp.stats.theil_sen import theil_sen

KEYS = ("run", "stack", "module", "axis")
RESPONSES = ("delta_magnitude", "relative_delta_magnitude", "signed_delta_magnitude")
GROUPINGS = ("pooled", "within_step", "within_layer", "per_column")
ESTIMATORS = ("pearson", "spearman", "slope", "theil_sen", "intercept")
FIGURES = ("value", "low", "high", "n", "cluster_low", "cluster_high")
FIT_COLUMNS = (*KEYS, "response", "grouping", "estimator", *FIGURES)

T = TypeVar("T")
Row = tuple[object, ...]
Kinds = Iterable[tuple[Key, Callable[[], Columns]]]


def module_fits(modules: pd.DataFrame) -> pd.DataFrame:
    """One row per run, stack, module, axis, response, grouping and estimator: value and intervals.

    x is ΔD, y the response, one point per layer and step (paper section 3.2, Fig. 2):
    - `pooled`: all points together, as the paper; ρ or r in [−1, 1], slope in weight units per ΔD
    - `within_step`, `within_layer`: each step's (layer's) means of x and y subtracted first;
      slope as from least squares with one dummy variable per step (layer); no intercept
    `theil_sen` is the median of the slopes between two points, within groups of one group; beyond
    499 points, of evenly spaced ones.

    `low`, `high` (95 %): Fisher z, tanh(atanh r ± 1.96/√(n−3)); Bonett–Wright for Spearman, with
    (1+ρ²/2)/(n−3) for the variance; Student t for slope and intercept; Sen's for his slope. All
    take the points as independent, with one degree of freedom fewer for each group mean beyond the
    first. `cluster_low`, `cluster_high` (95 %) do not: whole layers are resampled, where there are
    3 or more. What both cover: `wdecomp.stats.bootstrap.cluster_intervals`.
    Points without finite x and y are left out of `n`; below 3 points, or without variance, NaN.
    A null layer or step counts as one layer or step. Groups stand in order of first appearance.

    >>> figures = {"delta_direction": [0.0, 1.0, 2.0], "delta_magnitude": [1.0, 3.0, 5.0]}
    >>> others = {"relative_delta_magnitude": np.nan, "signed_delta_magnitude": np.nan}
    >>> keys = {"run": "r", "stack": "encoder", "module": "q", "axis": "output", "step": 10}
    >>> fits = module_fits(pd.DataFrame(keys | {"layer": [0, 1, 2]} | figures | others))
    >>> fits.head(5).set_index("estimator")["value"].round(9).to_dict()
    {'pearson': 1.0, 'spearman': 1.0, 'slope': 2.0, 'theil_sen': 2.0, 'intercept': 1.0}
    """
    names = ("delta_direction", *RESPONSES, "layer", "step")
    return _table(_module_rows, kinds(modules, KEYS, names))


def column_fits(of_columns: Kinds) -> pd.DataFrame:
    """One `per_column` row per kind, response and estimator, from the columns of all its layers.

    A kind is ((run, stack, module, axis), a function that gives its points): one point per weight
    column at one step. x is 1 − cos, y is |Δm|, |Δm|/m0 or Δm; the points have `layer`,
    `magnitude_base` m0, `delta_magnitude` Δm = m − m0 (signed) and `delta_direction`, an array
    each. Columns with m0 = 0 have no relative change and are left out there. Intervals as in
    `module_fits`: columns of one layer resemble each other, so believe `cluster_low`,
    `cluster_high` before `low`, `high`.
    """
    return _table(_column_rows, of_columns)


def _column_rows(key: Key, points_of: Callable[[], Columns]) -> Iterator[Row]:
    points = points_of()
    base, signed = points["magnitude_base"], points["delta_magnitude"]
    size = np.abs(signed)
    with np.errstate(all="ignore"):
        relative = size / base
    fits = _fits(points["delta_direction"], (size, relative, signed), points["layer"])
    for response, found in zip(RESPONSES, fits, strict=True):
        for fit in found:
            yield (*key, response, "per_column", *fit)


def _module_rows(key: Key, part: Columns) -> Iterator[Row]:
    x, layers, steps = part["delta_direction"], part["layer"], part["step"]
    responses = [part[response] for response in RESPONSES]
    groupings = {"pooled": None, "within_step": steps, "within_layer": layers}
    fits = [list(_fits(x, responses, layers, groups)) for groups in groupings.values()]
    for response, *found in zip(RESPONSES, *fits, strict=True):
        for grouping, rows in zip(groupings, found, strict=True):
            for fit in rows:
                yield (*key, response, grouping, *fit)


def _fits(
    x: Floats, responses: Sequence[Floats], layers: Floats, groups: Floats | None = None
) -> Iterator[list[Row]]:
    """The fits of each response."""
    # Where means were subtracted, the intercept is zero by construction.
    names = ESTIMATORS if groups is None else ESTIMATORS[:-1]
    for usable, points in samples(x, responses, groups):
        n, found, clusters = int(usable.sum()), {}, {}
        if points is not None:
            with np.errstate(all="ignore"):
                found = _estimates(points, names)
                clusters = cluster_intervals(points, layers[usable], found, groups is layers)
        yield [
            (name, e.value, e.low, e.high, n, *clusters.get(name, NO_INTERVAL))
            for name in names
            for e in (found.get(name, Estimate()),)
        ]


def _estimates(points: Sample, names: tuple[str, ...]) -> dict[str, Estimate]:
    slope, intercept = line(points)
    values = (pearson(points), spearman(points), slope, theil_sen(points), intercept)
    return dict(zip(names, values, strict=False))


def _table(
    rows_of: Callable[[Key, T], Iterator[Row]], groups: Iterable[tuple[Key, T]]
) -> pd.DataFrame:
    """The rows of all groups, as many at a time as there are cores.

    Reading, sorting and gathering, most of the work, free the interpreter; a BLAS with threads of
    its own would only be in their way.
    """
    with threadpool_limits(limits=1), ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda group: list(rows_of(*group)), groups)
        rows = [row for some in found for row in some]
    dtypes = dict.fromkeys(FIT_COLUMNS, "str") | dict.fromkeys(FIGURES, "float64") | {"n": "int64"}
    return pd.DataFrame(rows, columns=list(FIT_COLUMNS)).astype(dtypes)
