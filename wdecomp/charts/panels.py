"""The points of one run and the line through them, from the tables."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from wdecomp.charts.chart import Floats
from wdecomp.charts.style import run_colours
from wdecomp.charts.table import intervals, methods_of, numbers

NULL = ("null_delta_direction", "null_delta_magnitude")
FLOOR = ("floor_delta_direction", "floor_delta_magnitude")


@dataclass(frozen=True)
class Panel:
    """One run's points for one module kind, and the line through them.

    points: columns run, step, layer, parameter, delta_direction, the response (delta_magnitude);
        where the table has them, what random updates of the same size would give
        (null_delta_direction, null_delta_magnitude) and what rounding alone would (floor_…).
    correlation, slope, intercept: pooled over layers and steps; NaN where there are too few.
    low, high: the correlation's interval; slope_low, slope_high: the slope's.
    grouping: "within_step" if they are of each step's points less its mean; no intercept then.
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
    grouping: str = "pooled"

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
        where = "" if self.grouping == "pooled" else " in step"
        return f"r{where} = {self.correlation:+.2f}{interval}, n = {len(self.points)}"

    def line(self, at: Floats) -> Floats:
        """The line's ordinate."""
        return self.intercept + self.slope * at

    def steps(self) -> "list[Panel]":
        """The points of each step, with the line of common slope through their means."""
        found = []
        for _, points in self.points.groupby("step", dropna=False, sort=False):
            x, y = numbers(points, "delta_direction"), numbers(points, self.response)
            usable = np.isfinite(x) & np.isfinite(y)
            if usable.any():
                middle = y[usable].mean() - self.slope * x[usable].mean()
                found.append(replace(self, points=points, intercept=float(middle)))
        return found

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
    grouping: str = "pooled",
) -> list[Panel]:
    """A panel for every run that has this module kind in this stack.

    Args:
        modules: the table of matrices, or part of it.
        fits: statistics of the same rows.
        module: the module kind, "q" in Fig. 2, "v" in Fig. 7.
        stack: "encoder", "decoder", "cross", ….
        axis: "output" or "input".
        response: "delta_magnitude" or "relative_delta_magnitude".
        grouping: "pooled", as the paper, or "within_step".
    """
    here = modules[
        (modules["module"] == module) & (modules["stack"] == stack) & (modules["axis"] == axis)
    ]
    chosen = fits[
        (fits["module"] == module)
        & (fits["stack"] == stack)
        & (fits["axis"] == axis)
        & (fits["response"] == response)
        & (fits["grouping"] == grouping)
    ]
    colours = run_colours(methods_of(modules))
    kept = ["run", "step", "layer", "parameter", "delta_direction", response]
    kept += [name for name in (*NULL, *FLOOR) if name in here and response == "delta_magnitude"]
    return [
        Panel(
            title=str(run),
            colour=colours[str(run)],
            points=points[kept],
            response=response,
            grouping=grouping,
            **_figures(chosen[chosen["run"] == run].set_index("estimator")),
        )
        for run, points in here.groupby("run", sort=False)
    ]


def _figures(fits: pd.DataFrame) -> dict[str, float]:
    """A panel's numbers; NaN for those that `fits` has not."""
    found = fits.reindex(["pearson", "slope", "intercept"])
    value, (low, high) = numbers(found, "value"), intervals(found)
    return {
        **{"correlation": float(value[0]), "low": float(low[0]), "high": float(high[0])},
        **{"slope": float(value[1]), "intercept": float(value[2])},
        **{"slope_low": float(low[1]), "slope_high": float(high[1])},
    }
