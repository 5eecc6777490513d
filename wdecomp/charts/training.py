"""How a training went: loss and learning rate over its steps, as a picture in a file."""

from pathlib import Path

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from wdecomp.charts.style import RESOLUTION

LOSS_COLOUR, LR_COLOUR = "#0072B2", "#D55E00"
SMOOTHED = 20  # of this many parts of the run, each is averaged: single batches scatter


def training_curves(steps: pd.DataFrame, title: str, file: Path) -> None:
    """Writes the curves of one run; the file's suffix decides the format.

    Args:
        steps: columns step, loss and lr, a row for each step.
        title: above them.
        file: .svg, .png or another of matplotlib's.
    """
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    figure.suptitle(title)
    alone = {"marker": "o", "markersize": 3} if len(steps) == 1 else {}
    upper.plot(steps["step"], steps["loss"], color=LOSS_COLOUR, alpha=0.35, label="a step", **alone)
    window = max(1, len(steps) // SMOOTHED)
    if window > 1:
        mean = steps["loss"].rolling(window, min_periods=1).mean()
        upper.plot(steps["step"], mean, color=LOSS_COLOUR, label=f"mean of {window} steps")
        upper.legend(fontsize=8)
    lower.plot(steps["step"], steps["lr"], color=LR_COLOUR, **alone)
    upper.set_ylabel("loss")
    lower.set_ylabel("learning rate")
    lower.set_xlabel("step")
    lower.ticklabel_format(style="sci", axis="y", scilimits=(-2, 3))
    # One table gives one file, whenever it is drawn.
    dated = {"Date": None} if file.suffix == ".svg" else None
    with rc_context({"svg.hashsalt": "training"}):
        figure.savefig(file, dpi=RESOLUTION, metadata=dated)
