"""The report's figures: every choice that a reader has, and the picture for those who have none."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from wdecomp.charts import Chart, View, chart_of
from wdecomp.charts.interactive import spec_of
from wdecomp.charts.table import kind_names, kinds_of
from wdecomp.charts.views import usual_kind
from wdecomp.charts.words import printable
from wdecomp.publishing.html import text
from wdecomp.publishing.inline import Pictures
from wdecomp.table import Results

MOST_KINDS = 24  # module kinds to choose from; `wdecomp plot` draws the others
MOST_STILL = 4  # module kinds of the static picture along the layers
DIGITS = 4  # of a number in an interactive figure: more than a screen has pixels

SAID = {
    "scatter": (
        "Magnitude against direction",
        "One point per layer and step: how far the columns' lengths moved (ΔM) against how far "
        "their directions turned (ΔD), as in Figs. 2 and 7 of the DoRA paper. The line is fitted "
        "through all points of a run.",
    ),
    "layers": (
        "Along the layers",
        "ΔM and ΔD at each run's last step, as in Fig. 3 of the DoRA paper.",
    ),
    "heatmap": ("By layer and module", "Where in the model the change is, at the last step."),
    "trajectories": ("Over the steps", "How ΔM and ΔD grow during the training, by layer."),
    "columns": (
        "Columns",
        "Every weight column of a module kind, at the last step: is the mean carried by a few?",
    ),
}


@dataclass(frozen=True)
class Variant:
    """One choice of a figure's reader, and the view that shows it."""

    choice: Mapping[str, str]
    view: View


def variants(results: Results) -> dict[str, list[Variant]]:
    """Name of a figure → its variants, the first of which is shown; only what there is to draw."""
    modules = results.modules
    usual = kinds_of(modules)[:MOST_KINDS]
    kinds = sorted(usual, key=lambda kind: kind != usual_kind(modules))
    axes = [axis for axis in ("output", "input") if (modules["axis"] == axis).any()]
    by_kind = [
        ({"module": name, "axis": axis}, {"kinds": (kind,), "axis": axis})
        for kind, name in zip(kinds, kind_names(kinds), strict=True)
        for axis in axes
    ]
    by_axis = [({"axis": axis}, {"axis": axis, "kinds": tuple(usual)}) for axis in axes]
    sizes = [("ΔM", {}), ("ΔM/m0", {"relative": True}), ("ΔD", {"direction": True})]
    cells = [({"figure": n} | c, s | v) for n, s in sizes for c, v in by_axis]
    # Densities are large: along one axis alone.
    kept_axes = [axis for axis in axes if axis in results.run["options"]["columns"]][:1]
    kept = [(choice, view) for choice, view in by_kind if view["axis"] in kept_axes]
    stepwise = by_kind if modules["step"].nunique() > 1 else []
    offered: dict[str, list[tuple[Any, Any]]] = {
        "scatter": by_kind,
        "layers": by_axis if kinds else [],
        "heatmap": cells if kinds else [],
        "trajectories": stepwise,
        "columns": kept,
    }
    return {
        figure: [Variant(choice, View(figure, **view)) for choice, view in found]
        for figure, found in offered.items()
        if found
    }


def drawn(results: Results, offered: Mapping[str, list[Variant]]) -> "Drawn":
    """All variants as plotly's figures, and the first of each figure as a static picture."""
    payload: dict[str, list[dict[str, Any]]] = {}
    bodies: dict[str, str] = {}
    words: dict[str, int] = {}
    pictures = Pictures()
    for figure, found in offered.items():
        payload[figure] = []
        for variant in found:
            chart = chart_of(results, variant.view)
            choice = {name: printable(value) for name, value in variant.choice.items()}
            payload[figure].append({"choice": choice} | _interactive(chart, words))
        still = chart_of(results, _for_a_still(found[0].view))
        bodies[figure] = _body(figure, still, pictures.svg(still))
    return Drawn({"words": list(words), "figures": payload}, bodies, pictures.styles)


@dataclass(frozen=True)
class Drawn:
    """What the page needs of all figures.

    payload: for the script: figures (name → variants), and the words that their texts number.
    bodies: figure → its part of the page.
    styles: of the static pictures.
    """

    payload: dict[str, Any]
    bodies: dict[str, str]
    styles: str


def _interactive(chart: Chart, words: dict[str, int]) -> dict[str, Any]:
    spec = spec_of(chart)
    return {
        "data": [_plain(_counted(trace, words)) for trace in spec["data"]],
        "layout": _plain(spec["layout"]),
        "notes": [printable(note) for note in dict.fromkeys(chart.notes)],
        "alt": printable(chart.alt),
    }


def _for_a_still(view: View) -> View:
    """The view that a static picture has room for."""
    return replace(view, kinds=view.kinds[:MOST_STILL]) if view.figure == "layers" else view


def _counted(trace: Mapping[str, Any], words: dict[str, int]) -> dict[str, Any]:
    """A trace whose texts are numbers of words: a matrix has one name in many figures.

    The keys of points go; nobody asks for them here.
    """

    def number(text: Any) -> Any:
        if isinstance(text, list | tuple | np.ndarray):
            return [number(each) for each in text]
        return words.setdefault(str(text), len(words))

    kept = {k: v for k, v in trace.items() if k != "customdata" or trace["type"] == "heatmap"}
    return kept | ({"text": number(trace["text"])} if trace.get("text") is not None else {})


def _body(figure: str, chart: Chart, svg: str) -> str:
    how = SAID[figure][1]
    notes = text(" ".join(dict.fromkeys(chart.notes)))
    return (
        f"<p>{text(how)}</p><div class=controls></div><figure>"
        f'<div class=still role=img aria-label="{text(chart.alt)}">{svg}</div>'
        f"<div class=live role=img></div><figcaption>{notes}</figcaption></figure>"
    )


def _plain(value: Any) -> Any:
    """Numbers with few digits, arrays as lists, and null for NaN."""
    match value:
        case Mapping():
            return {key: _plain(inner) for key, inner in value.items()}
        case list() | tuple() | np.ndarray():
            return list(_each(value))
        case float():
            return _rounded(value)
        case _:
            return value


def _each(values: Any) -> Iterator[Any]:
    for value in values:
        yield _plain(float(value) if isinstance(value, np.floating) else value)


def _rounded(value: float) -> float | int | None:
    if not np.isfinite(value):
        return None
    short = float(f"{value:.{DIGITS}g}")
    return int(short) if short.is_integer() else short
