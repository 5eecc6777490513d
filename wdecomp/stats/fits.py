"""The `fits` table: every correlation and line of magnitude change on direction change."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from wdecomp.stats.bootstrap import NO_INTERVAL, cluster_intervals
from wdecomp.stats.estimators import (
    Codes,
    Estimate,
    Floats,
    Sample,
    line,
    pearson,
    sample,
    spearman,
)
from wdecomp.stats.theil_sen import theil_sen

KEYS = ("run", "stack", "module", "axis")
RESPONSES = ("delta_magnitude", "relative_delta_magnitude", "signed_delta_magnitude")
GROUPINGS = ("pooled", "within_step", "within_layer", "per_column")
ESTIMATORS = ("pearson", "spearman", "slope", "theil_sen", "intercept")
FIGURES = ("value", "low", "high", "n", "cluster_low", "cluster_high")
FIT_COLUMNS = (*KEYS, "response", "grouping", "estimator", *FIGURES)

Row = tuple[object, ...]
Groups = Iterable[tuple[Row, pd.DataFrame]]


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
    return _table(
        _module_rows, modules.groupby(list(KEYS), sort=False, dropna=False, observed=True)
    )


def column_fits(kinds: Groups) -> pd.DataFrame:
    """One `per_column` row per kind, response and estimator, from the columns of all its layers.

    A kind is ((run, stack, module, axis), points) with one point per weight column at one step. x
    is 1 − cos, y is |Δm|, |Δm|/m0 or Δm; `points` has `layer`, `magnitude_base` m0,
    `delta_magnitude` Δm = m − m0 (signed) and `delta_direction`. Columns with m0 = 0 have no
    relative change and are left out there. Intervals as in `module_fits`: columns of one layer
    resemble each other, so believe `cluster_low`, `cluster_high` before `low`, `high`.
    """
    return _table(_column_rows, kinds)


def _column_rows(key: Row, points: pd.DataFrame) -> Iterator[Row]:
    x, signed = _figures(points["delta_direction"]), _figures(points["delta_magnitude"])
    layers = _codes(points["layer"])
    with np.errstate(all="ignore"):
        relative = np.abs(signed) / _figures(points["magnitude_base"])
    for response, y in zip(RESPONSES, (np.abs(signed), relative, signed), strict=True):
        for fit in _fits(x, y, layers):
            yield (*key, response, "per_column", *fit)


def _module_rows(key: Row, part: pd.DataFrame) -> Iterator[Row]:
    x, layers, steps = (
        _figures(part["delta_direction"]),
        _codes(part["layer"]),
        _codes(part["step"]),
    )
    for response in RESPONSES:
        y = _figures(part[response])
        for fit in _fits(x, y, layers):
            yield (*key, response, "pooled", *fit)
        for grouping, groups in (("within_step", steps), ("within_layer", layers)):
            for fit in _fits(x, y, layers, groups):
                yield (*key, response, grouping, *fit)


def _fits(x: Floats, y: Floats, layers: Codes, groups: Codes | None = None) -> list[Row]:
    usable = np.isfinite(x) & np.isfinite(y)
    # Where means were subtracted, the intercept is zero by construction.
    names = ESTIMATORS if groups is None else ESTIMATORS[:-1]
    with np.errstate(all="ignore"):
        points = sample(x[usable], y[usable], None if groups is None else groups[usable])
        found = {} if points is None else _estimates(points, names)
        clusters = (
            {}
            if points is None
            else cluster_intervals(points, layers[usable], found, own_groups=groups is layers)
        )
    n = int(usable.sum())
    return [
        (name, e.value, e.low, e.high, n, *clusters.get(name, NO_INTERVAL))
        for name in names
        for e in (found.get(name, Estimate()),)
    ]


def _estimates(points: Sample, names: tuple[str, ...]) -> dict[str, Estimate]:
    slope, intercept = line(points)
    values = (pearson(points), spearman(points), slope, theil_sen(points), intercept)
    return dict(zip(names, values, strict=False))


def _figures(column: "pd.Series[float]") -> Floats:
    return np.asarray(column.to_numpy(dtype=np.float64, na_value=np.nan), dtype=np.float64)


def _codes(column: "pd.Series[int]") -> Codes:
    return pd.factorize(column, sort=True, use_na_sentinel=False)[0]


def _table(rows_of: Callable[[Row, pd.DataFrame], Iterator[Row]], groups: Groups) -> pd.DataFrame:
    """The rows of all groups, as many at a time as there are cores, and one more in waiting.

    Sorting and gathering, most of the work, free the interpreter; a BLAS with threads of its own
    would only be in their way.
    """
    rows: list[Row] = []
    cores, under_way = os.cpu_count() or 1, deque[Future[list[Row]]]()
    with threadpool_limits(limits=1), ThreadPoolExecutor(cores) as pool:
        for key, points in groups:
            under_way.append(pool.submit(lambda *group: list(rows_of(*group)), key, points))
            if len(under_way) > cores:
                rows += under_way.popleft().result()
        for last in under_way:
            rows += last.result()
    dtypes = dict.fromkeys(FIT_COLUMNS, "str") | dict.fromkeys(FIGURES, "float64") | {"n": "int64"}
    return pd.DataFrame(rows, columns=list(FIT_COLUMNS)).astype(dtypes)
