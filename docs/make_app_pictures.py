"""The app's pages as a browser shows them, in light and dark, from the bundled example.

    python docs/make_app_pictures.py [RESULTS] [--width 1280] [--out docs/app]

needs playwright and a Chromium; writes docs/app/PAGE-light.png and PAGE-dark.png, of other results
where their folder is named.
"""

import argparse
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

HERE = Path(__file__).parent
MATRIX = "encoder.layer.2.attention.self.query.weight"
PAGES = {
    "scatter": "/?example=true&module=q&module=v",
    "layers": "/layers?example=true",
    "fits": "/fits?example=true",
    "columns": f"/columns?example=true&at={MATRIX}",
    "density": "/columns?example=true",
    "findings": "/findings?example=true",
    "data": "/data?example=true",
    "first": "/",
}
IDLE = "[data-testid=stApp][data-test-script-state=notRunning]"
TALL = 900


def photograph(page: Page, address: str, name: str, file: Path) -> None:
    """One page, from its top."""
    page.goto(address + PAGES[name])
    page.wait_for_selector(IDLE, timeout=60_000)
    if name not in ("findings", "data", "first"):
        page.wait_for_selector(".js-plotly-plot .main-svg", timeout=60_000)
    time.sleep(2)  # tables are painted later than all else
    page.screenshot(path=file)


def main() -> None:
    """Starts the app, visits every page, and stops it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="*")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=TALL)
    parser.add_argument("--out", type=Path, default=HERE / "app")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    command = [sys.executable, "-m", "wdecomp", "view", *given.results, "--no-open"]
    app = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    while True:
        try:
            urllib.request.urlopen(f"{address}/_stcore/health")
            break
        except OSError:
            time.sleep(0.1)
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            size = {"width": given.width, "height": given.height}
            page = browser.new_page(viewport=size, color_scheme=scheme)
            for name in PAGES:
                photograph(page, address, name, given.out / f"{name}-{scheme}.png")
        browser.close()
    app.terminate()
    app.wait()


if __name__ == "__main__":
    main()
