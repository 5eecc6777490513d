"""Is a matrix's mean carried by a few columns? Each column of one, or how densely many lie."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd

from wdecomp.charts.axes import axis_of
from wdecomp.charts.chart import Axis, Cells, Chart, Facet, Floats, Mark, Points, wrapped
from wdecomp.charts.scale import value_scale
from wdecomp.charts.scatter import MOST_POINTS
from wdecomp.charts.style import GROWN, SHRUNK, run_colours
from wdecomp.charts.table import numbers

X_TITLE, Y_TITLE = "1 − cos, of a column", "|m − m0|, of a column"
BINS = 56
IN_A_ROW = 3
DECADES = 8.0  # below the largest value; what is nearer to zero is counted, not drawn


def columns_chart(
    columns: Mapping[str, pd.DataFrame],
    methods: Mapping[str, str],
    title: str,
    most: int = MOST_POINTS,
) -> Chart:
    """A facet per run with the same axes: a mark for each column up to `most`, beyond, densities.

    Axes are logarithmic; columns that are zero, NaN, or eight decades below the largest are counted
    in the remark.

    Args:
        columns: run → its rows of `Results.columns`: of one matrix, or of many.
        methods: run → method.
        title: above all.
        most: columns that are drawn one by one, in all.
    """
    points = {run: _points(table) for run, table in columns.items()}
    x, y = (_axis(name, [part[i] for part in points.values()]) for i, name in _TITLES)
    dense = sum(len(table) for table in columns.values()) > most
    colours = run_colours(methods)
    drawn = {run: _in_sight(part, x, y) for run, part in points.items()}
    facets = []
    for run, table in columns.items():
        seen = drawn[run]
        hidden = int(len(seen) - seen.sum())
        absent = f", {hidden} not drawn (0, nearly 0 or NaN)" if hidden else ""
        a, b = points[run][0][seen], points[run][1][seen]
        marks = _density(a, b, x, y) if dense else _signs(run, table[seen], a, b)
        facets.append(Facet(run, x, y, marks, f"n = {len(table)}{absent}", colours[run]))
    counts = [m.values.ravel() for f in facets for m in f.marks if isinstance(m, Cells)]
    scale = value_scale("columns", np.concatenate(counts)) if counts else None
    said = "; ".join(f"{facet.heading}: {facet.remark}" for facet in facets)
    return Chart(title, tuple(wrapped(facets, IN_A_ROW)), scale, alt=f"{title}. {said}.")


_TITLES = ((0, X_TITLE), (1, Y_TITLE))


def _points(table: pd.DataFrame) -> tuple[Floats, Floats]:
    return numbers(table, "delta_direction"), np.abs(numbers(table, "delta_magnitude"))


def _axis(title: str, values: list[Floats]) -> Axis:
    found = np.concatenate([v[np.isfinite(v)] for v in values] or [np.empty(0)])
    least = found.max() * 10**-DECADES if found.size else 0.0
    return axis_of(title, [found[found > least]], "log")


def _in_sight(part: tuple[Floats, Floats], x: Axis, y: Axis) -> npt.NDArray[np.bool_]:
    return np.logical_and(part[0] >= x.low, part[1] >= y.low)


def _signs(run: str, table: pd.DataFrame, x: Floats, y: Floats) -> tuple[Mark, ...]:
    grown = numbers(table, "delta_magnitude") >= 0
    hover = np.array(
        [
            f"{run} · column {row.column} · {row.parameter}"
            for row in table[["column", "parameter"]].itertuples()
        ],
        dtype=object,
    )
    return tuple(
        Points(x[part], y[part], colour, marker, label, 6, tuple(hover[part]))
        for part, colour, marker, label in (
            (grown, GROWN, 2, "column grew"),
            (~grown, SHRUNK, 4, "column shrank"),
        )
    )


def _density(x: Floats, y: Floats, over_x: Axis, over_y: Axis) -> tuple[Mark, ...]:
    edges = [np.geomspace(axis.low, axis.high, BINS + 1) for axis in (over_x, over_y)]
    counts, _, _ = np.histogram2d(x, y, bins=edges)
    values = np.where(counts > 0, counts, np.nan).T
    return (Cells(edges[0], edges[1], values),)


def largest_columns(columns: pd.DataFrame, most: int = 20) -> pd.DataFrame:
    """The columns whose magnitudes changed most, the first the most: rows of `Results.columns`."""
    order = np.argsort(-np.abs(numbers(columns, "delta_magnitude")), kind="stable")
    return columns.iloc[order[:most]]
