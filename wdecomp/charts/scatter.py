"""What Figs. 2 and 7 of the DoRA paper show: ΔM against ΔD, a point per layer and step."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from wdecomp.charts.axes import Kind, axis_of, hidden
from wdecomp.charts.chart import Axis, Band, Chart, Facet, Level, Line, Mark, Points, wrapped
from wdecomp.charts.panels import NULL, Panel
from wdecomp.charts.scale import layer_scale
from wdecomp.charts.style import GREY
from wdecomp.charts.table import RESPONSES, hover, keys, numbers, sequence

X_TITLE = "ΔD, mean 1 − cos"
Y_TITLE = RESPONSES["delta_magnitude"]
MOST_POINTS = 3000  # that a browser draws as shapes without a pause
FEW = 60  # points of a panel; more are drawn smaller
ALONG = 24  # points of a line or band, which bend where axes are logarithmic


def scatter_chart(
    rows: Mapping[str, Sequence[Panel]],
    title: str,
    shared: bool = True,
    scale: Kind = "auto",
    most: int = MOST_POINTS,
) -> Chart:
    """A grid of panels, a row (or several) for each entry.

    Args:
        rows: name of the row → its panels.
        title: above all.
        shared: one pair of axes for all panels of a row; else each has its own.
        scale: whether axes are logarithmic; where each panel has its own, only if asked.
        most: points that are drawn in all; of more, evenly spaced ones are.
    """
    scale = "linear" if scale == "auto" and not shared else scale
    everything = [panel for row in rows.values() for panel in row]
    every = -(-sum(len(panel.points) for panel in everything) // most)
    order = sequence(panel.points["step"] for panel in everything)
    notes = [] if every <= 1 else [f"One point in {every} is drawn; lines are through all."]
    grid: list[tuple[Facet, ...]] = []
    for name, row in rows.items():
        together = _axes(list(row), scale)
        facets = []
        for panel in row:
            x, y = together if shared else _axes([panel], scale)
            y = y if len(rows) == 1 else Axis(f"{name} · {y.title}", y.low, y.high, y.log)
            notes += _missing(panel, x, y)
            marks = _marks(panel, (x, y), order, max(every, 1))
            facets.append(Facet(panel.title, x, y, marks, panel.remark, panel.colour))
        abreast = 4 if all(panel.grouping == "pooled" for panel in row) else 3  # longer headings
        grid += wrapped(facets, abreast)
    layers = [panel.points["layer"] for panel in everything]
    said = "; ".join(f"{panel.title}: {panel.remark}" for panel in everything)
    return Chart(title, tuple(grid), layer_scale(layers), tuple(notes), f"{title}. {said}.")


def _axes(row: list[Panel], scale: Kind) -> tuple[Axis, Axis]:
    x = [numbers(panel.points, "delta_direction") for panel in row]
    y = [numbers(panel.points, panel.response) for panel in row]
    y += [np.maximum(panel.line(a), b.min()) for panel, a, b in zip(row, x, y, strict=True)]
    nulls = [panel.points for panel in row if NULL[1] in panel.points]
    x += [numbers(points, NULL[0]) for points in nulls]
    y += [numbers(points, NULL[1]) for points in nulls]
    title = RESPONSES[row[0].response] if row else Y_TITLE
    return axis_of(X_TITLE, x, scale), axis_of(title, y, scale)


def _missing(panel: Panel, x: Axis, y: Axis) -> list[str]:
    count = hidden(x, numbers(panel.points, "delta_direction"))
    count += hidden(y, numbers(panel.points, panel.response))
    said = "point is 0 and has" if count == 1 else "points are 0 and have"
    return [f"{panel.title}: {count} {said} no place on a logarithmic axis."] if count else []


def _marks(
    panel: Panel, axes: tuple[Axis, Axis], order: dict[object, int], every: int
) -> tuple[Mark, ...]:
    marks: list[Mark] = [*_levels(panel, axes), *_null(panel, every), *_trend(panel, axes)]
    drawn = panel.points.iloc[::every]
    for step, at_step in drawn.groupby("step", dropna=False, sort=False):
        known = not pd.isna(step)
        layers = numbers(at_step, "layer")
        marks.append(
            Points(
                numbers(at_step, "delta_direction"),
                numbers(at_step, panel.response),
                layers if np.isfinite(layers).any() else GREY,
                marker=order[step if known else None],
                label=f"step {step}" if known else "final",
                size=8 if len(drawn) <= FEW else 6,
                hover=hover(at_step),
                keys=keys(at_step),
            )
        )
    return tuple(marks)


def _trend(panel: Panel, axes: tuple[Axis, Axis]) -> list[Mark]:
    if not np.isfinite(panel.slope):
        return []
    if panel.grouping == "within_step":
        # A band would be of the slope alone; each line is where its step's points are.
        return [_line(step, axes[1]) for step in panel.steps()]
    line = _line(panel, axes[1])
    at, y = line.x, axes[1]
    middle, reach = panel.line(at), panel.reach(at)
    if not np.isfinite(reach).all():
        return [line]
    low = np.maximum(middle - reach, y.low) if y.log else middle - reach
    high = np.maximum(middle + reach, y.low) if y.log else middle + reach
    return [Band(at, low, high, panel.colour, "95 % band of the line"), line]


def _line(panel: Panel, y: Axis) -> Line:
    x = numbers(panel.points, "delta_direction")
    at = np.linspace(np.nanmin(x), np.nanmax(x), ALONG)
    middle = panel.line(at)
    return Line(at, np.where(middle > 0, middle, np.nan) if y.log else middle, panel.colour)


def _null(panel: Panel, every: int) -> list[Mark]:
    if "null_delta_magnitude" not in panel.points:
        return []
    points = panel.points.iloc[::every].dropna(subset=list(NULL))
    if points.empty:
        return []
    return [
        Points(
            numbers(points, "null_delta_direction"),
            numbers(points, "null_delta_magnitude"),
            GREY,
            marker=8,
            label="random update of the same size",
            size=4,
            hover=tuple(f"random update · {text}" for text in hover(points)),
        )
    ]


def _levels(panel: Panel, axes: tuple[Axis, Axis]) -> list[Mark]:
    """The rounding floors, where they are in sight."""
    marks: list[Mark] = []
    for of, axis, name in (
        ("x", axes[0], "floor_delta_direction"),
        ("y", axes[1], "floor_delta_magnitude"),
    ):
        values = numbers(panel.points, name) if name in panel.points else np.empty(0)
        floor = float(np.nanmax(values)) if np.isfinite(values).any() else 0.0
        if axis.low < floor < axis.high and floor > 0:
            marks.append(Level("x" if of == "x" else "y", floor, "floor of rounding"))
    return marks
