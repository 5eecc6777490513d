"""A chart for plotly, as the app and the report show it: hover, zoom, a legend that switches.

The colour of text is the page's to set, lines are half-transparent grey: one figure suits light
and dark. Names are escaped, for in plotly every text is markup.
"""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from wdecomp.charts.chart import Axis, Cells, Chart, Facet, Level, Mark, Scale
from wdecomp.charts.style import BY_LAYER, FAINT, GREY, SQUARE
from wdecomp.charts.traces import legend_entry, traces_of
from wdecomp.charts.words import literal, power, short

if TYPE_CHECKING:  # the report needs none of plotly's Python
    from plotly.graph_objects import Figure

CONFIG = {
    "displaylogo": False,
    "showSendToCloud": False,  # else plotly offers to upload the figure
    "toImageButtonOptions": {"format": "svg"},
    "responsive": True,
}
ROW, ABOVE, BELOW = 240, 76, 56  # pixels: a facet, what is above it, what is below the last
GAP, GAP_OF_TICKS = 0.16, 0.24  # of the width, between facets, in all; where each has own numbers
HEADING = (32, 24)  # characters of a name above a facet; where more than three stand in a row
LEGEND_LINE, LEGEND_WIDTH = 22, 900
CLEAR, OUTLINE = "rgba(0,0,0,0)", "rgba(128,128,128,0.6)"
Spec = dict[str, Any]


def figure_of(chart: Chart) -> "Figure":
    """The chart as plotly's own object, checked by it; `spec_of` says what is in it."""
    from plotly.graph_objects import Figure

    return Figure(spec_of(chart)).update_layout(template="none")


def spec_of(chart: Chart) -> Spec:
    """The chart as plotly's JSON, with arrays, and without a title of its own.

    `chart.title` and `chart.alt` go beside it. A point's `customdata` is its run, step and
    parameter.
    """
    data: list[Spec] = []
    entries = chart.labelled()
    below = BELOW + _legend_height([mark.label for mark in entries])
    layout: Spec = _look(chart, below) | {"annotations": [], "shapes": []}
    seen: dict[tuple[str, Axis], str] = {}
    for number, (row, column, facet) in enumerate(_placed(chart), start=1):
        x, y = (letter if number == 1 else f"{letter}{number}" for letter in "xy")
        data += [trace | {"xaxis": x, "yaxis": y} for trace in _traces(facet, chart.scale)]
        bare = any(isinstance(mark, Cells) for mark in facet.marks)
        across = _axis(facet.x, x, seen, bare) | {"domain": _width(chart, column), "anchor": y}
        up = _axis(facet.y, y, seen, bare) | {"domain": _height(chart, row), "anchor": x}
        first = chart.rows[row][0].y
        if column > 0 and facet.y.title == first.title:
            up |= {"title": {"text": ""}, "showticklabels": facet.y != first}
        if chart.n_columns > 2 and not facet.x.log:
            across["nticks"] = 5  # else they are set at an angle
        if _has_facet_below(chart, row, column):
            across |= {"title": {"text": ""}}
        layout[f"xaxis{x[1:]}"], layout[f"yaxis{y[1:]}"] = across, up
        layout["annotations"].append(_head(facet, x, y, HEADING[chart.n_columns > 3]))
        layout["shapes"] += [_level(mark, x, y) for mark in facet.marks if isinstance(mark, Level)]
    data += [legend_entry(mark) | {"xaxis": "x", "yaxis": "y"} for mark in entries]
    return {"data": data, "layout": layout}


def _placed(chart: Chart) -> Iterator[tuple[int, int, Facet]]:
    for i, row in enumerate(chart.rows):
        for j, facet in enumerate(row):
            yield i, j, facet


def _has_facet_below(chart: Chart, row: int, column: int) -> bool:
    """Whether the next one shows the same quantity, so that one title is enough."""
    under = chart.rows[row + 1] if row + 1 < len(chart.rows) else ()
    return column < len(under) and under[column].x.title == chart.rows[row][column].x.title


def _traces(facet: Facet, scale: Scale | None) -> Iterator[Spec]:
    for mark in facet.marks:
        yield from traces_of(mark, facet, scale)
    if scale is not None and not any(_is_on_scale(mark) for mark in facet.marks):
        # Nothing to see, but so the colours of lines have their bar, too.
        marker = {"color": [scale.low], "coloraxis": "coloraxis"}
        empty = {"type": "scatter", "x": [None], "y": [None], "mode": "markers"}
        yield empty | {"marker": marker, "showlegend": False, "hoverinfo": "skip"}


def _is_on_scale(mark: Mark) -> bool:
    return isinstance(mark, Cells) or not isinstance(getattr(mark, "colour", ""), str | float)


def _width(chart: Chart, column: int) -> list[float]:
    n = chart.n_columns
    own = any(facet.y != row[0].y for row in chart.rows for facet in row)
    gap = (GAP_OF_TICKS if own else GAP) / n if n > 1 else 0.0
    wide = (1 - gap * (n - 1)) / n
    return [column * (wide + gap), column * (wide + gap) + wide]


def _height(chart: Chart, row: int) -> list[float]:
    whole = len(chart.rows) * (ROW + ABOVE) - ABOVE
    top = row * (ROW + ABOVE)
    return [max(0.0, 1 - (top + ROW) / whole), 1 - top / whole]


def _axis(axis: Axis, name: str, seen: dict[tuple[str, Axis], str], bare: bool) -> Spec:
    """An axis; those that show the same are zoomed together."""
    first = seen.setdefault((name[0], axis), name)
    ends = [math.log10(axis.low), math.log10(axis.high)] if axis.log else [axis.low, axis.high]
    look: Spec = {
        "title": {"text": literal(axis.title), "standoff": 6},
        "type": "log" if axis.log else "linear",
        "range": ends,
        "showgrid": not bare,
        "gridcolor": FAINT,
        "zeroline": False,
        "showline": True,
        "linecolor": OUTLINE,
        "ticks": "outside",
        "tickcolor": OUTLINE,
        "exponentformat": "power",
        "automargin": True,
        "nticks": 4 if axis.log else 7,  # of a logarithmic axis, per decade 1, 2 and 5 at most
    }
    if first != name:
        look["matches"] = first
    if axis.whole and axis.high - axis.low < 8:
        look["dtick"] = 1
    if axis.ticks:
        words = [literal(short(word, 18)) for word in axis.ticks]
        look |= {"tickvals": list(range(len(words))), "ticktext": words}
    return look


def _head(facet: Facet, x: str, y: str, most: int) -> Spec:
    square = f'<span style="color:{facet.colour}">{SQUARE}</span> ' if facet.colour else ""
    heading = f"{square}<b>{literal(short(facet.heading, most))}</b>"
    place = {"xref": f"{x} domain", "yref": f"{y} domain", "x": 0, "y": 1}
    return {
        **place,
        "text": f"{heading}<br>{literal(facet.remark)}" if facet.remark else heading,
        "xanchor": "left",
        "yanchor": "bottom",
        "align": "left",
        "showarrow": False,
    }


def _level(mark: Level, x: str, y: str) -> Spec:
    """A line from edge to edge."""
    at, along = ("x", "y") if mark.of == "x" else ("y", "x")
    names = {"x": x, "y": y}
    return {
        "type": "line",
        "line": {"color": GREY, "width": 1.3, "dash": "dash"},
        **{f"{at}ref": names[at], f"{at}0": mark.value, f"{at}1": mark.value},
        **{f"{along}ref": f"{names[along]} domain", f"{along}0": 0, f"{along}1": 1},
    }


def _look(chart: Chart, below: int) -> Spec:
    look: Spec = {
        "height": len(chart.rows) * (ROW + ABOVE) - 24 + below,
        "margin": {"l": 70, "r": 12, "t": ABOVE - 24, "b": below},
        "legend": {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0},
        "paper_bgcolor": CLEAR,
        "plot_bgcolor": CLEAR,
        "font": {"size": 12, "color": "#555555"},
        "hovermode": "closest",
    }
    return look | ({} if chart.scale is None else {"coloraxis": _coloraxis(chart.scale)})


def _coloraxis(scale: Scale) -> Spec:
    step = 1 / (len(BY_LAYER) - 1)
    side = "top" if len(scale.title) < 8 else "right"
    title = {"text": literal(scale.title), "side": side}
    bar: Spec = {"title": title, "thickness": 12, "outlinewidth": 0, "exponentformat": "power"}
    low, high = scale.low, scale.high
    if scale.log:
        low, high = math.log10(low), math.log10(high)
        ticks = [t / 2 for t in range(math.ceil(2 * low), math.floor(2 * high) + 1)]
        bar |= {"tickvals": ticks, "ticktext": [power(10**t) for t in ticks]}
    if scale.whole and high - low < 8:
        bar["dtick"] = 1
    colours = [[i * step, colour] for i, colour in enumerate(BY_LAYER)]
    return {"colorscale": colours, "cmin": low, "cmax": high, "colorbar": bar}


def _legend_height(labels: list[str]) -> int:
    """Pixels that the legend takes below, at the width of a page."""
    wide = sum(60 + 7 * len(short(label)) for label in labels)
    return LEGEND_LINE * math.ceil(wide / LEGEND_WIDTH)
