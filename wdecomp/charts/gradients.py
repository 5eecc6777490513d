"""Section 4.2 as a picture: a magnitude's gradient beside the two numbers whose product it is."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatterSciNotation, LogLocator, NullLocator

from wdecomp.charts.style import GREY, LAYER_COLOURS, RESOLUTION
from wdecomp.names import place

Y_TITLE = "|∂L/∂m|"
FACTORS: Mapping[str, str] = {"abs_cosine": "|cos(∂L/∂W, v)|", "gradient_norm": "‖∂L/∂W‖"}


def gradient_scatter(columns: pd.DataFrame, title: str, file: Path) -> None:
    """|∂L/∂m| = ‖∂L/∂W‖ · |cos(∂L/∂W, v)| of every column, above each factor; a line is the other.

    Panels are module kinds, colours layers; the axes are logarithmic, so that every line has slope
    1 and stands where the other factor has its median.

    Args:
        columns: module, magnitude_gradient, gradient_norm and abs_cosine, a row for each column;
            one whose gradient is 0 has no place on the axes.
        title: above all.
        file: .svg, .png or another of matplotlib's.
    """
    points = _points(columns)
    kinds = list(dict.fromkeys(points["kind"]))
    points = points[(points[["size", *FACTORS]] > 0).all(axis=1)]  # not so for NaN
    figure = Figure(figsize=(3.6 * len(kinds) + 0.8, 6.4), layout="constrained")
    figure.suptitle(title)
    grid = figure.subplots(2, len(kinds), squeeze=False, sharey="col")
    last = max(float(points["layer"].max()) if len(points) else 0.0, 1.0)
    for axes_row, (x, other) in zip(grid, (tuple(FACTORS), tuple(FACTORS)[::-1]), strict=True):
        for axes, kind in zip(axes_row, kinds, strict=True):
            _draw(axes, points[points["kind"] == kind], x, other, last)
        axes_row[0].set_ylabel(Y_TITLE)
    for axes, kind in zip(grid[0], kinds, strict=True):
        axes.set_title(kind, fontsize=10)
    layers = ScalarMappable(Normalize(0, last), cmap=LAYER_COLOURS)
    figure.colorbar(layers, ax=grid, label="layer", aspect=40)
    # One table gives one file, whenever it is drawn.
    dated = {"Date": None} if file.suffix == ".svg" else None
    with rc_context({"svg.hashsalt": "gradients"}):
        figure.savefig(file, dpi=RESOLUTION, metadata=dated)


def _points(columns: pd.DataFrame) -> pd.DataFrame:
    """With each matrix's module kind, its layer (0 where it has none), and |∂L/∂m|."""
    places = {name: place(f"{name}.weight") for name in columns["module"].unique()}
    return columns.assign(
        kind=columns["module"].map(lambda name: places[name].module),
        layer=columns["module"].map(lambda name: places[name].layer or 0),
        size=columns["magnitude_gradient"].abs(),
    )


def _draw(axes: Axes, points: pd.DataFrame, x: str, other: str, last: float) -> None:
    axes.set_xlabel(FACTORS[x])
    if points.empty:
        return
    axes.scatter(
        points[x],
        points["size"],
        c=points["layer"],
        vmin=0,
        vmax=last,
        cmap=LAYER_COLOURS,
        s=4,
        linewidths=0,
        rasterized=True,  # thousands of shapes would make an SVG slow
    )
    ends = np.array([points[x].min(), points[x].max()])
    axes.plot(ends, points[other].median() * ends, color=GREY, linewidth=1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis, values in ((axes.xaxis, points[x]), (axes.yaxis, points["size"])):
        narrow = values.max() < 100 * values.min()
        axis.set_major_locator(LogLocator(subs=(1.0, 3.0) if narrow else (1.0,)))
        axis.set_major_formatter(LogFormatterSciNotation(minor_thresholds=(np.inf, np.inf)))
        axis.set_minor_locator(NullLocator())
