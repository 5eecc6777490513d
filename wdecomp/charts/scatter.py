"""What Figs. 2 and 7 of the DoRA paper show: ΔM against ΔD, a point per layer and step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from wdecomp.charts.axes import Kind, axis_of, hidden
from wdecomp.charts.chart import Axis, Band, Chart, Facet, Floats, Level, Line, Mark, Points
from wdecomp.charts.scale import layer_scale
from wdecomp.charts.style import COLOURS, GREY, OTHER_COLOUR, run_colours
from wdecomp.charts.table import RESPONSES, hover, keys, methods_of, numbers, sequence

X_TITLE = "ΔD, mean 1 − cos"
Y_TITLE = RESPONSES["delta_magnitude"]
MOST_POINTS = 3000  # that a browser draws as shapes without a pause
FEW = 60  # points of a panel; more are drawn smaller
ALONG = 24  # points of a line or band, which bend where axes are logarithmic
EXTRA = (
    *("null_delta_direction", "null_delta_magnitude"),
    *("floor_delta_direction", "floor_delta_magnitude"),
)

__all__ = ["COLOURS", "OTHER_COLOUR", "Panel", "panels", "scatter_chart"]


@dataclass(frozen=True)
class Panel:
    """One run's points for one module kind, and the line through them.

    points: columns run, step, layer, parameter, delta_direction, the response (delta_magnitude);
        where the table has them, what random updates of the same size would give
        (null_delta_direction, null_delta_magnitude) and what rounding alone would (floor_…).
    correlation, slope, intercept: pooled over layers and steps; NaN where there are too few.
    low, high: the correlation's interval; slope_low, slope_high: the slope's.
    """

    title: str
    colour: str
    points: pd.DataFrame
    correlation: float
    slope: float
    intercept: float
    low: float = np.nan
    high: float = np.nan
    slope_low: float = np.nan
    slope_high: float = np.nan
    response: str = "delta_magnitude"

    @property
    def caption(self) -> str:
        """Title, correlation and number of points, for the head of the panel."""
        return f"{self.title}: r = {self.correlation:+.2f}, n = {len(self.points)}"

    @property
    def remark(self) -> str:
        """Correlation with its interval, and the number of points."""
        if not np.isfinite(self.correlation):
            return f"too few points for a line, n = {len(self.points)}"
        interval = f" [{self.low:+.2f}, {self.high:+.2f}]" if np.isfinite(self.low) else ""
        return f"r = {self.correlation:+.2f}{interval}, n = {len(self.points)}"

    def line(self, at: Floats) -> Floats:
        """The line's ordinate."""
        return self.intercept + self.slope * at

    def reach(self, at: Floats) -> Floats:
        """Half the height of the line's 95 % band: s·√(Var x + (x − x̄)²), s the slope's interval.

        For the interval by formula this is the classical band of a least-squares line; where the
        slope's interval comes from resampling layers, so does the band.
        """
        x = numbers(self.points, "delta_direction")
        reach: Floats = (self.slope_high - self.slope_low) / 2 * np.hypot(x.std(), at - x.mean())
        return reach


def panels(
    modules: pd.DataFrame,
    fits: pd.DataFrame,
    module: str,
    stack: str,
    axis: str = "output",
    response: str = "delta_magnitude",
) -> list[Panel]:
    """A panel for every run that has this module kind in this stack.

    Args:
        modules: the table of matrices, or part of it.
        fits: statistics of the same rows.
        module: the module kind, "q" in Fig. 2, "v" in Fig. 7.
        stack: "encoder", "decoder", "cross", ….
        axis: "output" or "input".
        response: "delta_magnitude" or "relative_delta_magnitude".
    """
    here = modules[
        (modules["module"] == module) & (modules["stack"] == stack) & (modules["axis"] == axis)
    ]
    chosen = fits[
        (fits["module"] == module)
        & (fits["stack"] == stack)
        & (fits["axis"] == axis)
        & (fits["response"] == response)
        & (fits["grouping"] == "pooled")
    ]
    colours = run_colours(methods_of(modules))
    kept = ["run", "step", "layer", "parameter", "delta_direction", response]
    kept += [name for name in EXTRA if name in here and response == "delta_magnitude"]
    return [
        Panel(
            title=str(run),
            colour=colours[str(run)],
            points=points[kept],
            response=response,
            **_figures(chosen[chosen["run"] == run].set_index("estimator")),
        )
        for run, points in here.groupby("run", sort=False)
    ]


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
        grid += [tuple(facets[i : i + 4]) for i in range(0, len(facets), 4)]
    layers = [panel.points["layer"] for panel in everything]
    said = "; ".join(f"{panel.title}: {panel.remark}" for panel in everything)
    return Chart(title, tuple(grid), layer_scale(layers), tuple(notes), f"{title}. {said}.")


def _figures(fits: pd.DataFrame) -> dict[str, float]:
    """A panel's numbers; intervals by resampling layers where there are such, else by formula."""
    value = numbers(fits, "value")
    clustered = np.isfinite(numbers(fits, "cluster_low"))
    low, high = (
        np.where(clustered, numbers(fits, f"cluster_{end}"), numbers(fits, end))
        for end in ("low", "high")
    )
    r, slope, intercept = (fits.index.get_loc(name) for name in ("pearson", "slope", "intercept"))
    return {
        **{"correlation": float(value[r]), "low": float(low[r]), "high": float(high[r])},
        **{"slope": float(value[slope]), "intercept": float(value[intercept])},
        **{"slope_low": float(low[slope]), "slope_high": float(high[slope])},
    }


def _axes(row: list[Panel], scale: Kind) -> tuple[Axis, Axis]:
    x = [numbers(panel.points, "delta_direction") for panel in row]
    y = [numbers(panel.points, panel.response) for panel in row]
    y += [np.maximum(panel.line(a), b.min()) for panel, a, b in zip(row, x, y, strict=True)]
    nulls = [panel.points for panel in row if EXTRA[1] in panel.points]
    x += [numbers(points, EXTRA[0]) for points in nulls]
    y += [numbers(points, EXTRA[1]) for points in nulls]
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
        marks.append(
            Points(
                numbers(at_step, "delta_direction"),
                numbers(at_step, panel.response),
                numbers(at_step, "layer"),
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
    x, y = numbers(panel.points, "delta_direction"), axes[1]
    at = np.linspace(x.min(), x.max(), ALONG)
    middle, reach = panel.line(at), panel.reach(at)
    line = Line(at, np.where(middle > 0, middle, np.nan) if y.log else middle, panel.colour)
    if not np.isfinite(reach).all():
        return [line]
    low = np.maximum(middle - reach, y.low) if y.log else middle - reach
    high = np.maximum(middle + reach, y.low) if y.log else middle + reach
    return [Band(at, low, high, panel.colour, "95 % band of the line"), line]


def _null(panel: Panel, every: int) -> list[Mark]:
    if "null_delta_magnitude" not in panel.points:
        return []
    points = panel.points.iloc[::every].dropna(subset=list(EXTRA[:2]))
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
