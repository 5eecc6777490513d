"""wdecomp view"""  # noqa: D415

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import click

import wdecomp
from wdecomp.errors import MissingExtraError, ResultsError

HOST = "127.0.0.1"
HOME = Path(wdecomp.__file__).parent
PLACES = (HOME / "app", HOME.parent / "app")  # in an installed package, in a checkout


@click.command()
@click.argument("results", metavar="[RESULTS]...", nargs=-1)
@click.option("--port", type=click.IntRange(1, 65535), help="[default: 8501, or the next free one]")
@click.option("--no-open", is_flag=True, help="Do not open a browser; the address is printed.")
def view(results: tuple[str, ...], port: int | None, no_open: bool) -> None:
    """Look at RESULTS in a browser: an app on this machine alone, until Ctrl-C.

    Several folders are shown side by side; one that is still being written is shown as far as it
    is. Without any, the app says how to make results, and has a small example.
    """
    from wdecomp.table import Results, copy_of
    from wdecomp.table.results import check_schema

    folders = [copy_of(folder) for folder in results]
    for folder in folders:
        check_schema(Results(folder))
    if find_spec("streamlit") is None:
        raise MissingExtraError(
            "streamlit: is not installed, the app needs it. Run `pip install 'wdecomp[app]'`."
        )
    options = {"server.address": HOST, "browser.gatherUsageStats": "false"}
    options |= {"server.headless": "true" if no_open else "false"}
    options |= {} if port is None else {"server.port": str(port)}
    given = [f"--{name}={value}" for name, value in options.items()]
    named = [*given, "--", *map(str, folders)]
    command = [sys.executable, "-m", "streamlit", "run", str(_main()), *named]
    os.execv(sys.executable, command)  # so that the terminal's Ctrl-C is the app's


def _main() -> Path:
    """Where the app is."""
    for place in PLACES:
        if (place / "main.py").is_file():
            return place / "main.py"
    raise ResultsError(f"{PLACES[0]}: holds no app, one was expected. Install wdecomp again.")
