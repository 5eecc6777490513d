"""`wdecomp reproduce` from its folder to its page."""

import os
from pathlib import Path

from wdecomp.demo.encoder import packaged_model
from wdecomp.demo.training import FULL, QUICK
from wdecomp.reproduction.figures import Runs
from wdecomp.reproduction.memory import measured_saving
from wdecomp.reproduction.page import write_page
from wdecomp.reproduction.running import base_scores, run_trials
from wdecomp.reproduction.trials import all_trials


def run_reproduction(
    out: Path, model: Path | None, seeds: int, quick: bool, workers: int | None, progress: bool
) -> Path:
    """Runs what has not been run, and returns the path of the page.

    Args:
        out: the folder, made if it is not there.
        model: a local sentence encoder of the BERT family; the packaged one if None.
        seeds: how many times everything is trained.
        quick: a reduced run, to see that everything works.
        workers: trainings at a time; as many as there are cores if None.
        progress: a bar on stderr.

    Raises:
        WdecompError: the folder holds trials of other settings, or the model cannot be had.
    """
    size, trials = QUICK if quick else FULL, all_trials(range(seeds))
    workers = workers or os.cpu_count() or 1
    done = run_trials(out, model or packaged_model(), trials, size, workers, progress)
    return write_page(out, Runs(done), base_scores(out, size), measured_saving(out / "base"))
