"""Names from checkpoints are data in the app: never markup, never a formula, never a path."""

import html
import json
import sys
from pathlib import Path
from typing import Any

import app_folders
import pytest
from app_folders import HOSTILE
from synthetic_tables import small_results

from wdecomp.charts.words import printable

testing = pytest.importorskip("streamlit.testing.v1", reason="streamlit is not installed")

MAIN = Path(__file__).parents[1] / "app" / "main.py"
PAGES = ("scatter", "layers", "fits", "columns", "findings", "data")
# Elements whose text Streamlit reads as Markdown.
MARKUP = ("markdown", "caption", "title", "header", "subheader", "button", "error", "warning")
MARKUP += ("info", "success", "expander", "tabs", "metric", "latex")
SIGNS = ("host.invalid", "<script", "onerror", "HYPERLINK", "material/", "javascript:", "\x1b")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("names")
    return app_folders.hostile(place / "r", small_results(place / "plain"))


@pytest.fixture
def opened(request: Any, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Any:
    monkeypatch.setattr(sys, "argv", [str(MAIN), str(folder)])
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])  # the app becomes it
    at = testing.AppTest.from_file(str(MAIN), default_timeout=120).run()
    if request.param != "scatter":
        at.switch_page(f"views/{request.param}.py").run()
    assert not at.exception, at.exception
    return at


def elements(at: Any) -> list[Any]:
    """Everything on the page and in the sidebar."""
    return [element for element in at._tree if hasattr(element, "proto") and element.proto]


def drawn(chart: Any) -> list[str]:
    """Every text of a figure; `customdata` of points says which they are, and is not drawn."""
    found: list[str] = []

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(inner if key != "customdata" else None)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)
        elif isinstance(value, str):
            found.append(value)

    walk(json.loads(chart.proto.spec))
    return found


@pytest.mark.parametrize("opened", PAGES, indirect=True)
def test_no_name_is_markup(opened: Any) -> None:
    labels = [str(getattr(each, "label", "")) for each in elements(opened)]
    texts = [str(getattr(each, "value", "")) for each in elements(opened) if each.type in MARKUP]
    assert texts
    assert labels
    for text in labels + texts:
        assert not [sign for sign in SIGNS if sign in text], text


@pytest.mark.parametrize("opened", PAGES, indirect=True)
def test_no_name_is_markup_in_a_figure(opened: Any) -> None:
    for chart in opened.get("plotly_chart"):
        texts = drawn(chart)
        assert texts
        for sign in ("<script", "<img", "<a ", "\x1b", "\u202e"):
            assert not [text for text in texts if sign in text]


@pytest.mark.parametrize("opened", PAGES, indirect=True)
def test_control_and_direction_characters_are_shown_not_obeyed(opened: Any) -> None:
    for text in (text.value for text in opened.text):
        assert text == "".join(printable(line) for line in text.splitlines())
        assert "\u202e" not in text


@pytest.mark.parametrize("opened", ["data"], indirect=True)
def test_no_cell_is_a_formula(opened: Any) -> None:
    texts = [
        str(cell)
        for frame in opened.dataframe
        for name in frame.value
        for cell in frame.value[name]
        if isinstance(cell, str)
    ]
    assert any("HYPERLINK" in cell for cell in texts)
    assert not [cell for cell in texts if cell[0] in "=+-@\t\r"]
    assert not [cell for cell in texts if cell != printable(cell)]


@pytest.mark.parametrize("opened", ["scatter"], indirect=True)
def test_every_name_is_there_to_be_read(opened: Any) -> None:
    shown = " ".join(opened.multiselect(key="run").options)
    texts = html.unescape(" ".join(drawn(opened.get("plotly_chart")[0])))
    for name in HOSTILE[:3]:
        assert name in shown
        assert name[:10] in texts
