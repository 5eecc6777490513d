"""ΔM against ΔD as a picture for a paper or a README: SVG or PNG, no browser."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from wdecomp.charts.scatter import X_TITLE, Y_TITLE, Panel

MARKERS = "os^Dv*PX<>"
LAYER_COLOURS = "viridis"
GREY = "#777777"
RESOLUTION = 150  # dots per inch of a PNG


def static_scatter(rows: dict[str, list[Panel]], title: str, file: Path) -> None:
    """Writes a grid of panels, one row for each entry; the file's suffix decides the format."""
    columns = max(len(row) for row in rows.values())
    figure = Figure(figsize=(3.6 * columns + 0.6, 3.1 * len(rows) + 0.5), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    figure.suptitle(title)
    for axes_row, (name, row) in zip(grid, rows.items(), strict=True):
        for axes, panel in zip(axes_row, row, strict=False):
            _draw(axes, panel, _last_layer(rows))
        axes_row[0].set_ylabel(f"{name}\n{Y_TITLE}")
    for axes in grid[-1]:
        axes.set_xlabel(X_TITLE)
    layers = ScalarMappable(Normalize(0, _last_layer(rows)), cmap=LAYER_COLOURS)
    figure.colorbar(layers, ax=grid, label="layer", aspect=40)
    figure.savefig(file, dpi=RESOLUTION)


def _last_layer(rows: dict[str, list[Panel]]) -> float:
    layers = [panel.points["layer"].max() for row in rows.values() for panel in row]
    return max([float(layer) for layer in layers if layer == layer], default=1.0)


def _draw(axes: Axes, panel: Panel, last_layer: float) -> None:
    points = panel.points
    for marker, (step, at_step) in zip(
        MARKERS * len(points), points.groupby("step", dropna=False), strict=False
    ):
        axes.scatter(
            at_step["delta_direction"],
            at_step["delta_magnitude"],
            c=at_step["layer"].astype(float),
            vmin=0,
            vmax=last_layer,
            cmap=LAYER_COLOURS,
            marker=marker,
            edgecolors=GREY,
            linewidths=0.5,
        )
        axes.scatter([], [], color=GREY, marker=marker, label=f"step {step}")
    ends = np.array([points["delta_direction"].min(), points["delta_direction"].max()])
    if np.isfinite(panel.slope):
        axes.plot(ends, panel.intercept + panel.slope * ends, color=panel.colour, linewidth=2)
    axes.set_title(panel.caption, fontsize=10, color=panel.colour)
    axes.ticklabel_format(style="sci", axis="both", scilimits=(-2, 3))
    axes.legend(fontsize=6)
