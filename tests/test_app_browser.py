"""The app in a real browser: brush, drill down, Back, a link, a file; and not a word to anyone."""

import csv
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import app_folders
import psutil
import pytest
from browsers import CHROMIUM, chromium
from synthetic_tables import small_results

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("streamlit", reason="streamlit is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")

SECONDS = 120_000  # milliseconds: a busy machine is no error
IDLE = "[data-testid=stApp][data-test-script-state=notRunning]"
DRAWN = ".js-plotly-plot .main-svg"
# Of a page below the first, Streamlit asks its own server under a wrong address first.
ALLOWED = re.compile(r"/(scatter|layers|fits|columns|findings|data)/_stcore/")
PAGES = ("layers", "fits", "columns", "findings", "data")


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextmanager
def served(folder: Path, errors: Path) -> Iterator[str]:
    """The app as `wdecomp view` starts it."""
    port = free_port()
    command = [sys.executable, "-m", "wdecomp", "view", str(folder), "--no-open"]
    with errors.open("wb") as log:
        process = subprocess.Popen([*command, "--port", str(port)], stdout=log, stderr=log)
    address, end = f"http://127.0.0.1:{port}", time.monotonic() + 60
    try:
        while not _answers(address):
            assert process.poll() is None, errors.read_text()
            assert time.monotonic() < end, errors.read_text()
            time.sleep(0.1)
        yield address
    finally:
        process.send_signal(signal.SIGINT)  # as Ctrl-C does
        try:
            process.wait(20)
        finally:
            process.kill()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/_stcore/health"):
            return True
    except OSError:
        return False


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("app")
    with served(small_results(folder / "results").path, folder / "log") as found:
        yield found


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("evil")
    results = small_results(folder / "plain")
    with served(app_folders.hostile(folder / "results", results), folder / "log") as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


class Seen:
    """A page, what its console said, and whom it asked."""

    def __init__(self, browser: Any) -> None:
        self.context = browser.new_context(viewport={"width": 1280, "height": 900})
        self.context.set_default_timeout(SECONDS)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("websocket", lambda socket: self.asked.append(socket.url))

    def _heard(self, message: Any) -> None:
        if message.type == "error" and not ALLOWED.search(message.location["url"]):
            self.said.append(f"{message.text} {message.location['url']}")

    def open(self, url: str, drawn: bool = True) -> None:
        self.page.goto(url)
        self.page.wait_for_selector(IDLE)
        if drawn:
            self.page.wait_for_selector(DRAWN)

    def others(self, address: str) -> list[str]:
        """Requests to anyone but the app."""
        host = address.removeprefix("http://")
        own = (f"http://{host}/", f"ws://{host}/", "data:", f"blob:http://{host}/")
        return [url for url in self.asked if not url.startswith(own)]


@pytest.fixture
def seen(browser: Any) -> Iterator[Seen]:
    watched = Seen(browser)
    yield watched
    watched.context.close()


def test_brush_drill_down_back_link_and_download(seen: Seen, address: str) -> None:
    page = seen.page
    seen.open(address)
    assert page.title().startswith("ΔM vs ΔD") or "wdecomp" in page.title()
    _brush(page)
    page.wait_for_selector("text=The matrices of the chosen points")
    page.wait_for_url(re.compile(r"[?&]at=model"))
    chosen = _at(page)
    page.click("text=Columns of the first of them")
    page.wait_for_url(re.compile("/columns"))
    name = chosen.partition(" · ")[0]
    page.wait_for_selector(f"[data-testid=stText]:has-text('{name}')")
    page.wait_for_selector(DRAWN)
    assert _at(page) == chosen
    link = page.url
    page.go_back()
    page.wait_for_selector("text=Do magnitude and direction move together?")
    assert "/columns" not in page.url
    page.wait_for_selector(DRAWN)
    assert _at(page) == chosen
    seen.open(link)
    page.wait_for_selector(f"[data-testid=stText]:has-text('{name}')")
    with page.expect_download() as table:
        page.click("text=All columns as CSV")
    assert Path(table.value.path()).read_text().startswith("parameter,axis,column,")
    with page.expect_download() as svg:
        page.click("text=Picture as SVG")
    assert "<svg" in Path(svg.value.path()).read_text()[:500]
    seen.open(f"{address}/data", drawn=False)
    with page.expect_download() as report:
        page.click("text=Report as one HTML file")
    assert Path(report.value.path()).read_text().startswith("<!doctype html>")
    assert seen.said == []
    assert seen.others(address) == []


def test_every_page_is_there_in_the_dark(browser: Any, address: str) -> None:
    seen = Seen(browser)
    seen.page.emulate_media(color_scheme="dark")
    for name in PAGES:
        seen.open(f"{address}/{name}", drawn=name not in ("findings", "data"))
        assert seen.page.locator("[data-testid=stException]").count() == 0
        assert seen.page.locator("h2").count() >= 1
    ink = seen.page.evaluate("getComputedStyle(document.body).colorScheme")
    seen.open(f"{address}/fits")
    text = seen.page.locator(".js-plotly-plot .xtick text").first
    assert text.evaluate("node => getComputedStyle(node).fill") == "rgb(230, 237, 243)", ink
    assert seen.said == []
    assert seen.others(address) == []
    seen.context.close()


def test_no_hostile_name_runs_or_is_fetched_or_is_a_link(seen: Seen, evil: str) -> None:
    page = seen.page
    for name in ("", *PAGES):
        seen.open(f"{evil}/{name}", drawn=name in ("", "layers", "fits"))
        if name == "":
            _brush(page)
            page.wait_for_selector("text=The matrices of the chosen points")
        time.sleep(0.5)
        assert page.title() != "taken"
        links = page.evaluate("[...document.querySelectorAll('a')].map((a) => a.href)")
        assert [link for link in links if link and not link.startswith(evil)] == []
        images = page.evaluate("[...document.querySelectorAll('img')].map((i) => i.src)")
        assert [src for src in images if not src.startswith((evil, "data:"))] == []
    with page.expect_download() as file:
        page.click("text=Tensors as CSV")
    rows = list(csv.reader(Path(file.value.path()).read_text().splitlines()))
    assert any("HYPERLINK" in cell for row in rows for cell in row)
    assert not [cell for row in rows for cell in row if cell[:1] in tuple("=@\t\r")]
    for label in ("Module kinds", "Runs", "Matrix, on Columns"):
        page.get_by_label(label).first.click()
        time.sleep(0.5)
        page.keyboard.press("Escape")
    assert page.title() != "taken"
    assert seen.others(evil) == []


def test_a_folder_that_grows_is_drawn_again_by_itself(seen: Seen, tmp_path: Path) -> None:
    folder = app_folders.unfinished(tmp_path / "r", units=1)
    with served(folder, tmp_path / "log") as address:
        seen.open(address)
        seen.page.wait_for_selector("text=1 of 4 units of work are done")
        app_folders.unfinished(folder, units=3)
        seen.page.wait_for_selector("text=3 of 4 units of work are done")
        seen.page.wait_for_selector("text=n = 12")
    assert seen.said == []


def test_it_listens_on_this_machine_alone(address: str) -> None:
    port = int(address.rpartition(":")[2])
    sockets = [each.laddr for each in psutil.net_connections("tcp") if each.status == "LISTEN"]
    assert {place.ip for place in sockets if place.port == port} == {"127.0.0.1"}


def _at(page: Any) -> str:
    """The matrix that the sidebar shows."""
    return str(page.get_by_label("Matrix, on Columns").first.input_value())


def _brush(page: Any) -> None:
    """Drags a box over the whole first facet."""
    page.locator(".modebar-btn[data-val=select]").first.dispatch_event("click")
    box = page.locator(".js-plotly-plot .nsewdrag").first.bounding_box()
    page.mouse.move(box["x"] + 2, box["y"] + 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 2, box["y"] + box["height"] - 2, steps=8)
    page.mouse.up()
