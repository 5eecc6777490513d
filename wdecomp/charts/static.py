"""A chart as a picture for a paper or a page: SVG, PDF or PNG by matplotlib, no browser."""

import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize
from matplotlib.figure import Figure

from wdecomp.charts.chart import Axis, Band, Cells, Chart, Floats, Level, Line, Mark, Points, Scale
from wdecomp.charts.dressing import dress, legend, strokes, ticks
from wdecomp.charts.files import commit_bytes
from wdecomp.charts.style import BY_LAYER, GREY, MARKERS, RESOLUTION, at_scale
from wdecomp.charts.words import printable
from wdecomp.errors import ResultsError

FORMATS = ("svg", "pdf", "png")
WIDTH, HEIGHT = 3.5, 2.8  # inches of a facet
MOST_CELLS = 1000
SETTINGS = {
    "svg.hashsalt": "wdecomp",  # one table gives one file, whenever it is drawn
    "text.parse_math": False,  # a name with $ is no formula, nor is a number on an axis
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.6,
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "font.size": 9,
}
MAP = LinearSegmentedColormap.from_list("layers", list(BY_LAYER))


def write_picture(chart: Chart, file: Path) -> None:
    """Writes the chart as .svg, .pdf or .png.

    Raises:
        ResultsError: another suffix, or the file cannot be written.
    """
    form = file.suffix.lower().removeprefix(".")
    if form not in FORMATS:
        known = ", ".join(f".{name}" for name in FORMATS)
        raise ResultsError(f"{file}: the name must end in one of {known}.")
    commit_bytes(file, picture(chart, form))


def picture(
    chart: Chart,
    form: str,
    ink: str = "black",
    most_cells: int = MOST_CELLS,
    settings: Mapping[str, Any] | None = None,
) -> bytes:
    """The content of the file.

    Args:
        chart: what is drawn.
        form: "svg", "pdf" or "png".
        ink: colour of text.
        most_cells: of a facet that are drawn as shapes; of more a picture is made.
        settings: of matplotlib's, beside the own ones.
    """
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(form)
    inked = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), ink)
    every: Any = SETTINGS | inked | dict(settings or {})
    with rc_context(every), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # it is drawn as a box
        content = io.BytesIO()
        _figure(chart, most_cells).savefig(content, format=form, dpi=RESOLUTION, metadata=undated)
        return content.getvalue()


def _figure(chart: Chart, most_cells: int) -> Figure:
    rows, columns = len(chart.rows), chart.n_columns
    size = (max(WIDTH * columns + (0.8 if chart.scale else 0.2), 4.6), HEIGHT * rows + 0.9)
    figure = Figure(figsize=size, layout="constrained", facecolor="none")
    figure.suptitle(printable(chart.title), fontsize=11)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes_row, facets in zip(grid, chart.rows, strict=True):
        for axes, facet in zip(axes_row, facets, strict=False):
            for mark in facet.marks:
                _draw(axes, mark, chart.scale, most_cells)
            dress(axes, facet, same=facet is not facets[0] and facet.y == facets[0].y)
        for axes in axes_row[len(facets) :]:
            axes.set_axis_off()
    if chart.scale is not None:
        bar = figure.colorbar(ScalarMappable(_norm(chart.scale), MAP), ax=grid, aspect=40)
        bar.set_label(printable(chart.scale.title))
        bar.ax.set_facecolor("none")
        low, high = chart.scale.low, chart.scale.high
        ticks(bar.ax.yaxis, Axis("", low, high, chart.scale.log, whole=chart.scale.whole))
    legend(figure, chart)
    return figure


def _draw(axes: Axes, mark: Mark, scale: Scale | None, most_cells: int) -> None:
    match mark:
        case Points():
            axes.scatter(
                mark.x,
                mark.y,
                s=mark.size**2 / 2.4,
                c=_colours(mark.colour, scale),
                marker=MARKERS[mark.marker % len(MARKERS)],
                edgecolors=GREY,
                linewidths=0.4,
            )
        case Line():
            (colour,) = _colours(mark.colour, scale)
            axes.plot(mark.x, mark.y, color=colour, **strokes(mark))
        case Band():
            axes.fill_between(
                mark.x, mark.low, mark.high, color=mark.colour, alpha=0.18, linewidth=0
            )
        case Level():
            across = axes.axvline if mark.of == "x" else axes.axhline
            across(mark.value, color=GREY, linewidth=1, linestyle="--")
        case Cells():
            axes.pcolormesh(
                mark.x_edges,
                mark.y_edges,
                np.ma.masked_invalid(mark.values),
                norm=None if scale is None else _norm(scale),
                cmap=MAP,
                rasterized=mark.values.size > most_cells,
            )


def _colours(colour: str | float | Floats, scale: Scale | None) -> list[str]:
    """One colour, or those of numbers on the scale."""
    if isinstance(colour, str):
        return [colour]
    return [at_scale(float(value), scale) for value in np.atleast_1d(colour)]


def _norm(scale: Scale) -> Normalize:
    return (LogNorm if scale.log else Normalize)(scale.low, scale.high)
