"""The pictures of the documentation, from a demo's results.

    wdecomp demo --out DEMO
    python docs/make_pictures.py DEMO

writes docs/figures/: Figs. 2, 3 and 7 of the DoRA paper as the demo has them, the other figures,
and the report as a browser shows it in light and dark (where playwright and a Chromium are there).
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from wdecomp.audit import findings
from wdecomp.charts import View, chart_of
from wdecomp.charts.static import write_picture
from wdecomp.publishing import write_report
from wdecomp.stats import conclusions
from wdecomp.table import Results, read_results

FIGURES = Path(__file__).parent / "figures"
N_LATE = 4  # checkpoints, as the paper has
WIDTH, HEIGHT = 1280, 860


def draw(results: Results) -> None:
    """The figures of one results folder."""
    kinds = results.modules.drop_duplicates(["stack", "module"])
    stack = str(kinds.loc[kinds["module"] == "q", "stack"].iloc[0])
    steps = sorted(int(step) for step in results.modules["step"].dropna().unique())
    late, both = tuple(steps[-N_LATE:]), ((stack, "q"), (stack, "v"))
    views = {
        "figure-2": View("scatter", both[:1], steps=late, own_axes=True),
        "figure-7": View("scatter", both[1:], steps=late, own_axes=True),
        "figure-3": View("layers", both),
        "heatmap": View("heatmap"),
        "trajectories": View("trajectories", both[:1]),
        "columns": View("columns", both[:1]),
    }
    for name, view in views.items():
        write_picture(chart_of(results, view), FIGURES / f"{name}.svg")


def photograph(results: Results) -> None:
    """The report's figures in light and dark."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        chromium = None
    if chromium is None:
        print("No picture of the report: playwright or Chromium is not there.", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        file = Path(folder) / "report.html"
        said = conclusions(results.modules, results.fits)
        write_report(results, file, findings(results), said)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            size = {"width": WIDTH, "height": HEIGHT}
            page = browser.new_page(viewport=size, color_scheme=scheme, offline=True)
            page.goto(file.as_uri())
            page.evaluate("document.getElementById('scatter').scrollIntoView()")
            page.wait_for_selector("#scatter.drawn .main-svg", timeout=60_000)
            time.sleep(1)  # the figure below it is drawn, too
            page.screenshot(path=FIGURES / f"report-{scheme}.png")
        browser.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path, help="what `wdecomp demo --out` made")
    found = read_results(parser.parse_args().demo / "results-decay-1")
    draw(found)
    photograph(found)
