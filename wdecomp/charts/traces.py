"""A chart's marks as plotly's traces, and as what stands for them in the legend."""

from typing import Any

import numpy as np

from wdecomp.charts.chart import Band, Cells, Facet, Labelled, Line, Mark, Points, Scale
from wdecomp.charts.style import GREY, SYMBOLS, at_scale
from wdecomp.charts.words import literal, short

Trace = dict[str, Any]
EDGE = {"width": 0.7, "color": "rgba(128,128,128,0.9)"}


def traces_of(mark: Mark, facet: Facet, scale: Scale | None) -> list[Trace]:
    """What plotly draws; nothing for a `Level`, which is a shape."""
    match mark:
        case Points():
            return [_points(mark) | _hover(mark.hover, facet) | _grouped(mark.label)]
        case Line():
            return [_line(mark, scale) | _hover(mark.hover, facet) | _grouped(mark.label)]
        case Band():
            return [_band(mark) | _grouped(mark.label)]
        case Cells():
            return [_cells(mark, facet, scale)]
        case _:
            return []


def legend_entry(mark: Labelled) -> Trace:
    """A trace without points: grey where the label is not about the colour."""
    entry: Trace = {"x": [None], "y": [None], "hoverinfo": "skip", "mode": "lines"}
    match mark:
        case Points():
            colour = mark.colour if isinstance(mark.colour, str) else GREY
            entry |= {"mode": "markers", "marker": _symbol(mark.marker) | {"color": colour}}
        case Line(dash="solid"):
            colour = mark.colour if isinstance(mark.colour, str) else GREY
            mode = "lines" if mark.marker is None else "lines+markers"
            entry |= {"line": {"color": colour, "width": 2}, "mode": mode}
            entry |= {"marker": _symbol(mark.marker)}
        case Band():
            entry |= {"line": {"color": faded(GREY), "width": 10}}
        case _:
            dash = mark.dash if isinstance(mark, Line) else "dash"
            entry |= {"line": {"color": GREY, "width": 1.3, "dash": dash}}
    return entry | _grouped(mark.label) | {"showlegend": True}


def faded(colour: str) -> str:
    """A colour through which others can be seen.

    >>> faded("#0072B2")
    'rgba(0,114,178,0.18)'
    """
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.18)"


def _points(mark: Points) -> Trace:
    marker = _symbol(mark.marker) | {"size": mark.size, "color": mark.colour, "line": EDGE}
    if not isinstance(mark.colour, str):
        marker["coloraxis"] = "coloraxis"
    keys = {"customdata": [list(key) for key in mark.keys]} if mark.keys else {}
    return {"x": mark.x, "y": mark.y, "mode": "markers", "marker": marker} | keys


def _line(mark: Line, scale: Scale | None) -> Trace:
    colour = mark.colour if isinstance(mark.colour, str) else at_scale(mark.colour, scale)
    return {
        "x": mark.x,
        "y": mark.y,
        "mode": "lines" if mark.marker is None else "lines+markers",
        "line": {"color": colour, "width": mark.width, "dash": mark.dash},
        "marker": _symbol(mark.marker),
    }


def _band(mark: Band) -> Trace:
    return {
        "x": np.concatenate([mark.x, mark.x[::-1]]),
        "y": np.concatenate([mark.low, mark.high[::-1]]),
        "fill": "toself",
        "fillcolor": faded(mark.colour),
        "line": {"width": 0},
        "mode": "lines",
        "hoverinfo": "skip",
    }


def _cells(mark: Cells, facet: Facet, scale: Scale | None) -> Trace:
    log = scale is not None and scale.log
    with np.errstate(divide="ignore"):
        drawn = np.log10(mark.values) if log else mark.values
    places = f"{literal(facet.x.sign)} %{{x:.3g}}<br>{literal(facet.y.sign)} %{{y:.3g}}"
    value = "" if scale is None else literal(scale.title.partition(",")[0])
    named = {"text": [[literal(text) for text in row] for row in mark.hover]} if mark.hover else {}
    return {
        "type": "heatmap",
        "x": mark.x_edges,
        "y": mark.y_edges,
        "z": drawn,
        "coloraxis": "coloraxis",
        "customdata": mark.values,
        "hoverongaps": False,
        "hovertemplate": f"{'%{text}' if named else places}<br>{value} %{{customdata:.3g}}"
        "<extra></extra>",
    } | named


def _hover(said: tuple[str, ...], facet: Facet) -> Trace:
    if not said:
        return {"hoverinfo": "skip"}
    x, y = literal(facet.x.sign), literal(facet.y.sign)
    return {
        "text": [literal(text) for text in said],
        "hovertemplate": f"%{{text}}<br>{x} %{{x:.4g}}<br>{y} %{{y:.4g}}<extra></extra>",
    }


def _symbol(marker: int | None) -> Trace:
    return {} if marker is None else {"symbol": SYMBOLS[marker % len(SYMBOLS)], "size": 6}


def _grouped(label: str) -> Trace:
    name = {"name": literal(short(label)), "legendgroup": literal(label)}
    return name | {"type": "scatter", "showlegend": False}
