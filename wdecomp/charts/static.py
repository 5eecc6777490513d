"""A chart as a picture for a paper or a page: SVG, PDF or PNG by matplotlib, no browser."""

import io
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis as MatplotlibAxis
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator

from wdecomp.charts.chart import (
    Axis,
    Band,
    Cells,
    Chart,
    Facet,
    Labelled,
    Level,
    Line,
    Mark,
    Points,
    Scale,
)
from wdecomp.charts.files import commit_bytes
from wdecomp.charts.style import BY_LAYER, GREY, MARKERS, RESOLUTION, SQUARE, at_scale
from wdecomp.charts.words import power, printable, short
from wdecomp.errors import ResultsError

FORMATS = ("svg", "pdf", "png")
WIDTH, HEIGHT = 3.5, 2.8  # inches of a facet
DASHES = {"solid": "-", "dash": "--", "dot": ":"}
LINE = 44  # characters above a facet
MOST_MARKERS = 10  # on a line of many points: shapes tell lines apart, they need not be on each
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
            _dress(axes, facet, same=facet is not facets[0] and facet.y == facets[0].y)
        for axes in axes_row[len(facets) :]:
            axes.set_axis_off()
    if chart.scale is not None:
        bar = figure.colorbar(ScalarMappable(_norm(chart.scale), MAP), ax=grid, aspect=40)
        bar.set_label(printable(chart.scale.title))
        bar.ax.set_facecolor("none")
        low, high = chart.scale.low, chart.scale.high
        _ticks(bar.ax.yaxis, Axis("", low, high, chart.scale.log, whole=chart.scale.whole))
    _legend(figure, chart)
    return figure


def _draw(axes: Axes, mark: Mark, scale: Scale | None, most_cells: int) -> None:
    match mark:
        case Points():
            by_value = not isinstance(mark.colour, str)
            axes.scatter(
                mark.x,
                mark.y,
                s=mark.size**2 / 2.4,
                c=mark.colour,
                norm=_norm(scale) if by_value and scale else None,
                cmap=MAP if by_value else None,
                marker=MARKERS[mark.marker % len(MARKERS)],
                edgecolors=GREY,
                linewidths=0.4,
                plotnonfinite=True,
            )
        case Line():
            axes.plot(mark.x, mark.y, color=_colour(mark, scale), **_strokes(mark))
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


def _colour(mark: Line, scale: Scale | None) -> str:
    return mark.colour if isinstance(mark.colour, str) else at_scale(mark.colour, scale)


def _strokes(mark: Line) -> dict[str, Any]:
    return {
        "linestyle": DASHES[mark.dash],
        "linewidth": mark.width * 0.8,
        "marker": None if mark.marker is None else MARKERS[mark.marker % len(MARKERS)],
        "markersize": 2.4 + mark.width,
        "markevery": max(1, len(mark.x) // MOST_MARKERS),
    }


def _dress(axes: Axes, facet: Facet, same: bool) -> None:
    """Axes and heading of one facet."""
    for axis, on, limit in (
        (facet.x, axes.xaxis, axes.set_xlim),
        (facet.y, axes.yaxis, axes.set_ylim),
    ):
        if axis.log:
            (axes.set_xscale if on is axes.xaxis else axes.set_yscale)("log")
        limit(axis.low, axis.high)
        _ticks(on, axis)
    axes.set_facecolor("none")
    axes.set_xlabel(printable(facet.x.title))
    axes.set_ylabel("" if same else printable(facet.y.title))
    if not any(isinstance(mark, Cells) for mark in facet.marks):
        axes.grid(visible=True)
        axes.set_axisbelow(True)
    if same:
        axes.tick_params(labelleft=False, which="both")
    lines = [line for line in (short(facet.heading), printable(facet.remark)) if line]
    _head(axes, ": ".join(lines) if len("".join(lines)) <= LINE else "\n".join(lines), facet.colour)


def _head(axes: Axes, heading: str, colour: str) -> None:
    """The facet's heading; a square before it says which colour is the run's."""
    above: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}
    above |= {"fontsize": 9, "va": "bottom"}
    if colour:
        square = SQUARE + "\n " * heading.count("\n")
        axes.annotate(square, (0, 1), (0, 3), color=colour, **above)
    axes.annotate(heading, (0, 1), (11 if colour else 0, 3), **above)


def _ticks(on: MatplotlibAxis, axis: Axis) -> None:
    on.set_major_locator(MaxNLocator(5, integer=axis.whole, steps=[1, 2, 5, 10]))
    on.set_major_formatter(lambda value, _: f"{value:.4g}".replace("-", "\N{MINUS SIGN}"))
    if axis.log:
        several = axis.high >= 100 * axis.low
        on.set_major_locator(LogLocator(subs=(1.0,) if several else (1.0, 2.0, 5.0), numticks=6))
        on.set_major_formatter(lambda value, _: power(value))
        on.set_minor_locator(LogLocator(subs=(2.0, 5.0)) if several else NullLocator())
        on.set_minor_formatter(NullFormatter())
    if axis.ticks:
        on.set_ticks(range(len(axis.ticks)), [short(word, 18) for word in axis.ticks])
    on.set_tick_params(color=GREY, labelsize=8, which="both")


def _legend(figure: Figure, chart: Chart) -> None:
    """Below all: one entry for each label."""
    axes = Figure().subplots()
    entries = {mark.label: _sample(axes, mark) for mark in chart.labelled()}
    notes = [printable(note) for note in dict.fromkeys(chart.notes)]
    if entries:
        # A label that begins with _ is one that matplotlib leaves out.
        labels = [f" {short(label)}" for label in entries]
        inches = sum(0.5 + 0.075 * len(label) for label in labels)
        lines = math.ceil(inches / figure.get_figwidth())
        figure.legend(
            list(entries.values()),
            labels,
            loc="outside lower center",
            ncols=math.ceil(len(labels) / lines),
            fontsize=8,
            frameon=False,
        )
    if notes:
        figure.supxlabel("\n".join(notes), fontsize=8)


def _sample(axes: Axes, mark: Labelled) -> Any:
    colour = getattr(mark, "colour", GREY)
    colour = colour if isinstance(colour, str) else GREY
    match mark:
        case Points():
            shape = MARKERS[mark.marker % len(MARKERS)]
            return axes.plot([], [], color=colour, marker=shape, linestyle="", markersize=5)[0]
        case Line():
            strokes = _strokes(mark) | {"markevery": 1}
            return axes.plot([], [], color=colour if mark.dash == "solid" else GREY, **strokes)[0]
        case Band():
            return axes.fill_between([], [], color=GREY, alpha=0.3, linewidth=0)
        case Level():
            return axes.plot([], [], color=GREY, linewidth=1, linestyle="--")[0]


def _norm(scale: Scale) -> Normalize:
    return (LogNorm if scale.log else Normalize)(scale.low, scale.high)
