"""Axes, headings and the legend of a static picture."""

import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis as MatplotlibAxis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator

from wdecomp.charts.chart import Axis, Band, Cells, Chart, Facet, Labelled, Level, Line, Points
from wdecomp.charts.style import GREY, MARKERS, SQUARE
from wdecomp.charts.words import power, printable, short

LINE = 44  # characters above a facet
MOST_MARKERS = 10  # on a line of many points: shapes tell lines apart, they need not be on each
DASHES = {"solid": "-", "dash": "--", "dot": ":"}


def strokes(mark: Line) -> dict[str, Any]:
    """How a line is drawn, besides its colour."""
    return {
        "linestyle": DASHES[mark.dash],
        "linewidth": mark.width * 0.8,
        "marker": None if mark.marker is None else MARKERS[mark.marker % len(MARKERS)],
        "markersize": 2.4 + mark.width,
        "markevery": max(1, len(mark.x) // MOST_MARKERS),
    }


def dress(axes: Axes, facet: Facet, same: bool) -> None:
    """Axes and heading of one facet."""
    for axis, on, limit in (
        (facet.x, axes.xaxis, axes.set_xlim),
        (facet.y, axes.yaxis, axes.set_ylim),
    ):
        if axis.log:
            (axes.set_xscale if on is axes.xaxis else axes.set_yscale)("log")
        limit(axis.low, axis.high)
        ticks(on, axis)
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


def ticks(on: MatplotlibAxis, axis: Axis) -> None:
    """Where an axis has marks, and what they say; none of it is a formula."""
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


def legend(figure: Figure, chart: Chart) -> None:
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
            drawn = strokes(mark) | {"markevery": 1}
            return axes.plot([], [], color=colour if mark.dash == "solid" else GREY, **drawn)[0]
        case Band():
            return axes.fill_between([], [], color=GREY, alpha=0.3, linewidth=0)
        case Level():
            return axes.plot([], [], color=GREY, linewidth=1, linestyle="--")[0]
