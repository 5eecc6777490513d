"""How soon the app answers, for results of 7B size, and how much memory its server takes.

    python benchmarks/app.py FOLDER [--rounds 5]

writes the results of benchmarks/synthetic_results.py with all columns (0.6 GB) into FOLDER, opens
them by `wdecomp view` in headless Chromium (playwright, and a Chromium in the path) and prints
medians of seconds from click to painted: the chart that is waited for has been drawn, the script
has ended, and the browser has shown two more frames.

- first view, cold: a new server, a new browser; warm: the page loaded again; in a new tab: without
  the scripts that the first tab had compiled
- another module kind; another page; from a brushed point to the columns of its matrix

Exits with 1 where a limit is not kept.
"""

import argparse
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from playwright.sync_api import Browser, Page, sync_playwright
from synthetic_results import write_results

LIMITS = {
    "first view, cold": 5.0,
    "first view, warm": 2.0,
    "first view, new tab": None,
    "module change": 1.0,
    "page change": 1.5,
    "drill-down": 1.5,
}
MOST_BYTES = 1_000_000_000
# Charts that are drawn and were not there before: a figure that is drawn anew is a new element.
SEEN = "() => document.querySelectorAll('.js-plotly-plot').forEach((each) => (each.seen = true))"
NEW = """[...document.querySelectorAll(".js-plotly-plot")]
  .filter((each) => !each.seen && each.querySelector(".main-svg")).length"""
PAINTED = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
IDLE = "document.querySelector('[data-testid=stApp]')?.dataset.testScriptState === 'notRunning'"


@contextmanager
def server(results: Path) -> Iterator[tuple[str, psutil.Process]]:
    """The app, ready to be asked."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    command = [sys.executable, "-m", "wdecomp", "view", str(results), "--no-open"]
    process = subprocess.Popen(
        [*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{port}"
    while True:
        try:
            urllib.request.urlopen(f"{address}/_stcore/health")
            break
        except OSError:
            time.sleep(0.05)
    try:
        yield address, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def timed(page: Page, act: Callable[[], Any], text: str, charts: int = 1) -> float:
    """Seconds from an act until so many charts are drawn anew, the text is there, all is quiet."""
    page.evaluate(SEEN)
    start = time.perf_counter()
    act()
    page.wait_for_selector(f"text={text}", timeout=60_000)
    painted(page, charts)
    return time.perf_counter() - start


def first(page: Page, address: str) -> float:
    """Seconds until the opening view is painted."""
    start = time.perf_counter()
    page.goto(address)
    painted(page, 1)
    return time.perf_counter() - start


def painted(page: Page, charts: int) -> None:
    """Waits until so many new charts have been drawn, the script has ended, and two frames more."""
    page.wait_for_function(f"{NEW} >= {charts} && {IDLE}", timeout=60_000, polling=10)
    page.evaluate(PAINTED)


def fresh(browser: Browser) -> Page:
    """A page of a browser that has seen nothing."""
    return browser.new_context(viewport={"width": 1280, "height": 900}).new_page()


def only(page: Page, kind: str) -> float:
    """Seconds until another module kind is drawn in place of the last one."""
    page.get_by_role("combobox", name="Module kinds").fill(kind)
    option = page.get_by_role("option", name=kind, exact=True)
    option.wait_for()
    seconds = timed(page, option.click, "Do magnitude and direction move together?")
    page.keyboard.press("Escape")  # closes the list
    return seconds


def to(page: Page, title: str) -> Callable[[], Any]:
    """A click on another page's name."""
    return page.get_by_test_id("stTopNavLink").filter(has_text=title).click


def brush(page: Page) -> None:
    """Drags a box around the points of the first facet."""
    page.locator(".modebar-btn[data-val=select]").first.dispatch_event("click")
    box = page.locator(".js-plotly-plot .nsewdrag").first.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 2, box["y"] + 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 2, box["y"] + box["height"] - 2, steps=4)
    page.mouse.up()
    page.wait_for_selector("text=Columns of the first of them", timeout=60_000)


def round_of(address: str, browser: Browser, number: int) -> dict[str, float]:
    """One of everything, on a server that has just been started."""
    page = fresh(browser)
    times = {"first view, cold": first(page, address)}
    times["first view, warm"] = first(page, address)
    tab = page.context.new_page()
    times["first view, new tab"] = first(tab, address)
    tab.close()
    times["module change"] = only(page, ("v", "k", "o", "up", "down")[number % 5])
    times["page change"] = timed(page, to(page, "Layers"), "Where in the depth of the model?", 4)
    timed(page, to(page, "ΔM vs ΔD"), "Do magnitude and direction move together?")
    brush(page)
    link = page.locator("text=Columns of the first of them")
    times["drill-down"] = timed(page, link.click, "columns of each run whose length changed most")
    for name in ("Fits", "Findings", "Data"):
        to(page, name)()
        page.wait_for_function(IDLE, timeout=60_000, polling=10)
        time.sleep(0.3)
    page.context.close()
    return times


def main() -> int:
    """Measures, prints, and says whether the limits were kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    results = given.folder / "results-columns"
    if not (results / "DONE.json").exists():
        write_results(results, columns=True)
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    rounds, memory = [], []
    with sync_playwright() as playwright:
        for number in range(given.rounds):
            with server(results) as (address, process):
                launched = playwright.chromium.launch(
                    executable_path=chromium, args=["--no-sandbox"]
                )
                rounds.append(round_of(address, launched, number))
                memory.append(process.memory_info().rss)
                launched.close()
    kept = statistics.median(memory) <= MOST_BYTES
    for name, limit in LIMITS.items():
        seconds = [times[name] for times in rounds]
        middle = statistics.median(seconds)
        kept &= limit is None or middle <= limit
        said = "no limit" if limit is None else f"limit {limit} s"
        every = " ".join(f"{each:.2f}" for each in seconds)
        print(f"{name:<20}{middle:6.2f} s  ({said}; {every})")
    print(f"{'server memory':<20}{statistics.median(memory) / 1e6:6.0f} MB (limit 1000 MB)")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
