"""What Figs. 2 and 7 of the DoRA paper show: ΔM against ΔD, a point per layer and step."""

from dataclasses import dataclass

import pandas as pd

# Colours that stay apart for colour-blind readers (Okabe and Ito), a fixed one for each method.
COLOURS = {"full": "#0072B2", "lora": "#D55E00", "dora": "#009E73"}
OTHER_COLOUR = "#666666"
X_TITLE = "ΔD, mean 1 − cos"
Y_TITLE = "ΔM, mean |m − m0|"


@dataclass(frozen=True)
class Panel:
    """One run's points for one module kind, and the line through them.

    points: columns step, layer, parameter, delta_direction, delta_magnitude.
    correlation, slope, intercept: pooled over layers and steps; NaN where there are too few.
    """

    title: str
    colour: str
    points: pd.DataFrame
    correlation: float
    slope: float
    intercept: float

    @property
    def caption(self) -> str:
        """Title, correlation and number of points, for the head of the panel."""
        return f"{self.title}: r = {self.correlation:+.2f}, n = {len(self.points)}"


def panels(
    modules: pd.DataFrame, fits: pd.DataFrame, module: str, stack: str, axis: str = "output"
) -> list[Panel]:
    """A panel for every run that has this module kind in this stack.

    Args:
        modules: the table of matrices, or part of it.
        fits: statistics of the same rows.
        module: the module kind, "q" in Fig. 2, "v" in Fig. 7.
        stack: "encoder", "decoder", "cross", ….
        axis: "output" or "input".
    """
    here = modules[
        (modules["module"] == module) & (modules["stack"] == stack) & (modules["axis"] == axis)
    ]
    chosen = fits[
        (fits["module"] == module)
        & (fits["stack"] == stack)
        & (fits["axis"] == axis)
        & (fits["response"] == "delta_magnitude")
        & (fits["grouping"] == "pooled")
    ]
    values = chosen.set_index(["run", "estimator"])["value"]
    return [
        Panel(
            title=str(run),
            colour=COLOURS.get(str(points["method"].iloc[0]), OTHER_COLOUR),
            points=points[["step", "layer", "parameter", "delta_direction", "delta_magnitude"]],
            correlation=float(values[run, "pearson"]),
            slope=float(values[run, "slope"]),
            intercept=float(values[run, "intercept"]),
        )
        for run, points in here.groupby("run", sort=False)
    ]
