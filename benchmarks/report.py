"""How large a report of 7B size is, and how soon it can be read.

    python benchmarks/report.py FOLDER [--rounds 5]

writes the results of benchmarks/synthetic_results.py and their report into FOLDER, opens it from
its file in headless Chromium (playwright, and a Chromium in the path) without a network, and
prints the file's size and medians: until the first paint, until plotly is there, until the first
figure is drawn by it. Exits with 1 where the file is larger than 2.5 MB, the figure later than
3 s, or anything was requested or said on the console.
"""

import argparse
import shutil
import statistics
import sys
import time
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright
from synthetic_results import write_results

from wdecomp.audit import findings
from wdecomp.publishing import write_report
from wdecomp.stats import conclusions
from wdecomp.table import read_results

MOST_BYTES, MOST_SECONDS = 2_500_000, 3.0
# Milliseconds since the page began to load, when plotly and the first figure were there.
WATCH = """
new MutationObserver(() => {
  if (window.Plotly) window.loaded ??= performance.now();
  if (document.querySelector(".drawn")) window.drawn ??= performance.now();
}).observe(document, { subtree: true, childList: true, attributeFilter: ["class"] });
addEventListener("DOMContentLoaded", () =>
  document.querySelector("[data-figure]").scrollIntoView());
"""
TIMES = """() => [
  performance.getEntriesByName("first-contentful-paint")[0]?.startTime, loaded, drawn
].map((time) => time / 1000)"""


def opened(browser: Browser, file: Path) -> tuple[list[float], list[str]]:
    """Seconds until paint, plotly and the first figure; what was said and asked for."""
    context = browser.new_context(offline=True, viewport={"width": 1280, "height": 900})
    page, heard = context.new_page(), []
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("request", lambda request: heard.append(request.url))
    page.add_init_script(WATCH)
    page.goto(file.as_uri())
    page.wait_for_selector(".drawn .main-svg", timeout=60_000)
    times = page.evaluate(TIMES)
    context.close()
    heard.remove(file.as_uri())
    return times, heard


def main() -> int:
    """Measures, prints, and says whether the limits were kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    results, file = given.folder / "results", (given.folder / "report.html").absolute()
    if not (results / "DONE.json").exists():
        write_results(results, columns=True)
    start = time.perf_counter()
    read = read_results(results)
    write_report(read, file, findings(read), conclusions(read.modules, read.fits))
    print(f"written in {time.perf_counter() - start:.1f} s, {file.stat().st_size:,} bytes")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        rounds = [opened(browser, file) for _ in range(given.rounds)]
        browser.close()
    medians = [statistics.median(times) for times in zip(*(r[0] for r in rounds), strict=True)]
    heard = [line for _, lines in rounds for line in lines]
    for name, seconds in zip(("first paint", "plotly", "first figure"), medians, strict=True):
        print(f"{name:<14}{seconds:.2f} s")
    print(f"heard: {heard or 'nothing'}")
    kept = file.stat().st_size <= MOST_BYTES and medians[2] <= MOST_SECONDS and not heard
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
