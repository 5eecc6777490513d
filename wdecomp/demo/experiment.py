"""`wdecomp demo`: train three ways, compare, print what was found, draw it."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

from wdecomp.comparison import compare
from wdecomp.demo.encoder import packaged_model
from wdecomp.demo.findings import draw, findings, findings_text
from wdecomp.demo.training import DECAYS, METHODS, Outcome, fine_tune
from wdecomp.errors import ResultsError, some
from wdecomp.table import Results

MARK = "demo.json"  # what makes a folder the demo's own; at the end it holds the figures


def run_demo(folder: Path, model: Path | None, quick: bool, progress: bool) -> str:
    """Runs the demo in a folder and returns what it found, as text.

        folder/base, folder/decay-{0,1}/{ft,lora,dora}/checkpoint-N    what was trained
        folder/results-decay-{0,1}                                     what compare made of it
        folder/figure-2.{svg,png,html}, folder/demo.json               what came out

    Args:
        folder: made if it is not there; an earlier demo in it is replaced.
        model: a local sentence encoder of the BERT family; the packaged one if None.
        quick: a reduced run, to see that everything works.
        progress: bars on stderr.

    Raises:
        WdecompError: the folder holds something else, or the model cannot be had or trained.
    """
    _claim(folder)
    outcomes = fine_tune(folder, model or packaged_model(), quick, progress)
    results = {decay: _compare(folder, decay, progress) for decay in DECAYS}
    found = findings(results)
    draw(results, folder)
    record = {"outcomes": [_plain(outcome) for outcome in outcomes], "findings": found}
    (folder / MARK).write_text(json.dumps(record, indent=1, allow_nan=True) + "\n")
    return findings_text(outcomes, found, folder)


def _claim(folder: Path) -> None:
    """Makes the folder the demo's, or finds that it is."""
    names = sorted(child.name for child in folder.iterdir()) if folder.is_dir() else []
    if folder.is_file() or (names and MARK not in names):
        raise ResultsError(
            f"{folder}: holds {some(names) or 'a file'}, which is no demo of wdecomp. "
            "Choose another folder with --out."
        )
    for name in names:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).write_text("{}\n")


def _compare(folder: Path, decay: int, progress: bool) -> Results:
    runs = [f"{name}={folder / f'decay-{decay}' / name}" for name, _ in METHODS.values()]
    out = folder / f"results-decay-{decay}"
    return compare(folder / "base", *runs, out=out, columns="both", progress=progress)


def _plain(outcome: Outcome) -> dict[str, object]:
    return asdict(outcome) | {"folder": str(outcome.folder)}
