"""Both renderers draw what a chart holds, and obey no name in it."""

import base64
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from wdecomp.charts import Chart
from wdecomp.charts.chart import Axis, Band, Cells, Facet, Level, Line, Points, Scale, wrapped
from wdecomp.charts.interactive import CONFIG, figure_of
from wdecomp.charts.static import picture, write_picture
from wdecomp.charts.style import BY_LAYER, MARKERS, SYMBOLS, run_colours
from wdecomp.errors import ResultsError

HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "<a href='http://host/x'>q</a>",
    "![x](http://host/x.png)",
    r"$\frac{1}{",
    "_hidden",
    "%{x}<extra></extra>",
    "a\u202eb\x1b[2J\nc",
    "=HYPERLINK(1)",
    "&lt;b&gt;",
    "\u6f22\u5b57",
)
LAYERS = np.array([0.0, 2.0, np.nan])
LAYER = Scale("layer", 0.0, 4.0, whole=True)


def _chart(name: str = "lora", log: bool = False) -> Chart:
    x = Axis("ΔD, mean 1 − cos", 0.01, 10.0, log)
    y = Axis("ΔM, mean |m − m0|", 0.01, 20.0, log)
    at = np.array([0.1, 1.0, 5.0])
    marks = (
        Band(at, at, at * 3, "#0072B2", "band"),
        Line(at, at * 2, "#0072B2", "solid", "fit"),
        Line(at, at, 2.0, "dot", "by layer", 1, (name,) * 3),
        Level("y", 0.5, "floor"),
        Points(
            at, at, np.array([0.0, 2.0, np.nan]), 1, "step 1", 8, (name,) * 3, ((name, 1, name),)
        ),
        Points(at, at / 2, "#D55E00", 2, name, 8),
    )
    facet = Facet(name, x, y, marks, "r = +1.00", "#0072B2")
    return Chart(name, ((facet, facet), (facet,)), LAYER, (name,), name)


def _heatmap(name: str = "q", log: bool = False) -> Chart:
    values = np.array([[1.0, 10.0], [100.0, np.nan]])
    edges = np.array([-0.5, 0.5, 1.5])
    cells = Cells(edges, edges, values, ((name, name), (name, name)))
    x, y = Axis("layer", -0.5, 1.5, whole=True), Axis("", -0.5, 1.5, ticks=(name, "v"))
    facet = Facet(name, x, y, (cells,))
    return Chart(name, ((facet,),), Scale("ΔM, mean", 1.0, 100.0, log))


def _numbers(value: Any) -> list[float]:
    """What plotly packed."""
    if isinstance(value, dict):
        return np.frombuffer(base64.b64decode(value["bdata"]), value["dtype"]).tolist()
    return list(value)


def test_a_figure_has_the_marks_with_their_colours_shapes_and_words() -> None:
    figure = figure_of(_chart()).to_plotly_json()
    drawn = [trace for trace in figure["data"] if trace.get("text")]
    assert len(drawn) == 3 * 2
    points = next(trace for trace in drawn if trace["mode"] == "markers")
    assert _numbers(points["x"]) == [0.1, 1.0, 5.0]
    assert points["marker"]["symbol"] == SYMBOLS[1]
    assert points["marker"]["coloraxis"] == "coloraxis"
    assert points["customdata"] == [["lora", 1, "lora"]]
    line = next(trace for trace in drawn if trace["mode"] == "lines+markers")
    assert line["line"]["color"] == BY_LAYER[3]  # layer 2 of 0 to 4
    assert figure["layout"]["coloraxis"]["cmax"] == 4.0
    entries = [trace["name"] for trace in figure["data"] if trace["showlegend"]]
    assert entries == ["step 1", "lora", "by layer", "fit", "band", "floor"]


def test_facets_with_the_same_axes_are_zoomed_together() -> None:
    layout = figure_of(_chart(log=True)).to_plotly_json()["layout"]
    assert [layout[f"xaxis{n}"].get("matches") for n in ("", "2", "3")] == [None, "x", "x"]
    assert layout["yaxis"]["range"] == pytest.approx((-2.0, np.log10(20)))
    ticks = [layout[f"yaxis{n}"].get("showticklabels", True) for n in ("", "2", "3")]
    assert ticks == [True, False, True]


def test_a_logarithmic_scale_of_colours_says_the_numbers_themselves() -> None:
    figure = figure_of(_heatmap(log=True)).to_plotly_json()
    (trace,) = figure["data"]
    assert _numbers(trace["z"])[:3] == [0.0, 1.0, 2.0]
    assert _numbers(trace["customdata"])[:3] == [1.0, 10.0, 100.0]
    bar = figure["layout"]["coloraxis"]["colorbar"]
    assert dict(zip(bar["tickvals"], bar["ticktext"], strict=True))[2.0] == "100"


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_is_markup_in_a_figure(name: str) -> None:
    for chart in (_chart(name), _heatmap(name)):
        figure = json.loads(figure_of(chart).to_json())
        for text in _shown_texts(figure):
            mark = r'<span style="color:#[0-9A-F]{6}">■</span>'
            own = re.sub(rf"{mark}|</?b>|<br>|<extra></extra>|&(?:amp|lt|gt|#34|#39);", "", text)
            assert not set(own) & {"<", ">", "\x1b", "\u202e", "\n"}, text
        for trace in figure["data"]:
            assert "HYPERLINK" not in str(trace.get("hovertemplate"))


def _shown_texts(figure: dict[str, Any]) -> list[str]:
    layout = figure["layout"]
    found = [note["text"] for note in layout["annotations"]]
    found += [str(axis.get("ticktext")) for key, axis in layout.items() if "axis" in key]
    for trace in figure["data"]:
        found += [trace.get("name", ""), trace.get("hovertemplate", "")]
        found += [str(trace["text"])] if "text" in trace else []
    return found


def test_no_name_is_markup_or_a_formula_in_a_picture() -> None:
    facets = [facet for name in HOSTILE for facet in _chart(name).rows[1]]
    chart = Chart(HOSTILE[0], tuple(wrapped(facets, 4)), LAYER, HOSTILE)
    root = ElementTree.fromstring(picture(chart, "svg", settings={"svg.fonttype": "none"}))
    tags = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert not tags & {"a", "script", "foreignObject", "img"}
    links = [value for e in root.iter() for key, value in e.items() if key.endswith("href")]
    assert all(link.startswith(("#", "data:image/png;")) for link in links)
    texts = [element.text or "" for element in root.iter()]
    for name in HOSTILE:
        shown = name.replace("\u202e", "\\u202e").replace("\x1b", "\\x1b").replace("\n", "\\n")
        assert sum(shown in text for text in texts) >= 3, name  # heading, legend, note


def test_the_legend_of_a_picture_has_every_label() -> None:
    drawn = picture(_chart("_run"), "svg", settings={"svg.fonttype": "none"}).decode()
    for word in ("step 1", "fit", "band", "by layer", "floor", "_run", "r = +1.00", "layer"):
        assert word in drawn


@pytest.mark.parametrize("form", ["svg", "pdf", "png"])
def test_a_picture_is_the_same_whenever_it_is_drawn(form: str) -> None:
    starts = {"svg": b"<?xml", "pdf": b"%PDF", "png": b"\x89PNG"}
    first = picture(_heatmap(), form)
    assert first.startswith(starts[form])
    assert first == picture(_heatmap(), form)


def test_a_picture_of_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"a\.gif: the name must end in one of \.svg, \.pdf"):
        write_picture(_chart(), tmp_path / "a.gif")
    with pytest.raises(ResultsError, match="cannot be written"):
        write_picture(_heatmap(), Path("/proc/none/a.svg"))


def test_plotly_is_told_to_upload_nothing() -> None:
    assert CONFIG["showSendToCloud"] is False
    assert CONFIG["displaylogo"] is False


def test_runs_of_one_method_have_colours_of_their_own() -> None:
    colours = run_colours({f"r{n}": "lora" for n in range(9)} | {"d": "dora"})
    assert colours["r0"] == "#D55E00"
    assert len({colours[f"r{n}"] for n in range(5)} | {colours["d"]}) == 6
    assert len(MARKERS) == len(SYMBOLS) == len(set(MARKERS)) == len(set(SYMBOLS))
