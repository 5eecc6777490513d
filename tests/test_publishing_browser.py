"""The report in a real browser, from a file, without a network."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsers import CHROMIUM, chromium
from synthetic_tables import small_results

from wdecomp.audit import Finding, Rule
from wdecomp.publishing import write_report
from wdecomp.stats import Conclusion

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")

EVIL = "<img src=x onerror=\"document.title='taken'\"><a href='http://host/x'>q</a>"
FINDING = Finding(Rule("frozen", EVIL, EVIL), "error", EVIL, (), EVIL, {}, (EVIL,))
CONCLUSION = Conclusion(EVIL, EVIL, EVIL, "output", ("rises",), EVIL)
SECONDS = 120_000  # milliseconds: a busy machine is no error


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    write_report(
        small_results(folder / "results", EVIL), folder / "report.html", [FINDING], [CONCLUSION]
    )
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def seen(browser: Any, report: Path) -> Iterator[tuple[Any, list[str], list[str]]]:
    """The page, what its console said, and what it asked for."""
    context = browser.new_context(
        offline=True, color_scheme="dark", viewport={"width": 1280, "height": 900}
    )
    context.set_default_timeout(SECONDS)
    page, said, asked = context.new_page(), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report.as_uri())
    _until(page, "window.Plotly !== undefined")
    yield page, said, asked
    context.close()


def _until(page: Any, holds: str) -> None:
    """Waits; the page's policy forbids playwright's own way, which evaluates text in the page."""
    end = time.monotonic() + SECONDS / 1000
    while not page.evaluate(holds):
        assert time.monotonic() < end, holds
        time.sleep(0.05)


def _draw(page: Any, figure: str) -> None:
    page.evaluate(f"document.getElementById('{figure}').scrollIntoView()")
    page.wait_for_selector(f"#{figure}.drawn .main-svg")


def test_every_figure_is_drawn_without_a_word_on_the_console(
    seen: tuple[Any, list[str], list[str]], report: Path
) -> None:
    page, said, asked = seen
    for figure in ("scatter", "layers", "heatmap", "trajectories", "columns"):
        _draw(page, figure)
    assert said == []
    assert asked == [report.as_uri()]
    assert page.title().startswith("What fine-tuning did")  # no name was obeyed
    assert page.evaluate("document.querySelectorAll('img, a:not([href^=\"#\"])').length") <= 1
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_reader_chooses_and_zooms(seen: tuple[Any, list[str], list[str]]) -> None:
    page, said, _ = seen
    _draw(page, "scatter")
    first = page.evaluate("document.querySelector('#scatter .live').data[3].y[0]")
    page.select_option("#scatter select[name=module]", "v")
    _until(page, f"document.querySelector('#scatter .live').data[3].y[0] !== {first}")
    layout = "document.querySelector('#scatter .live').layout"
    ranges = f"['xaxis', 'xaxis2'].map((axis) => {layout}[axis].range)"
    same = page.evaluate(ranges)
    assert same[0] == same[1]
    page.check("#scatter input[name=own]")
    _until(page, f"String(({ranges})[0]) !== String(({ranges})[1])")
    assert said == []


def test_text_is_readable_in_light_and_dark(seen: tuple[Any, list[str], list[str]]) -> None:
    page = seen[0]
    _draw(page, "layers")
    colour = "document.querySelector('#layers .live').layout.font.color"
    dark = page.evaluate(colour)
    page.emulate_media(color_scheme="light")
    _until(page, f"{colour} !== '{dark}'")
    assert (dark, page.evaluate(colour)) == ("rgb(230, 237, 243)", "rgb(27, 31, 36)")
