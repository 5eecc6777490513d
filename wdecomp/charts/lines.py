"""A figure over ranks, sizes or layers: a line for each method, with the spread of its seeds."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from wdecomp.charts.style import COLOURS, MARKERS, OTHER_COLOUR, RESOLUTION

ABREAST = 2


def static_lines(
    panels: Mapping[str, pd.DataFrame], x: str, title: str, file: Path, log: bool = False
) -> None:
    """Writes panels, two in a row; the file's suffix decides the format.

    Args:
        panels: title of the ordinate → columns `x`, method, mean and, if there is a spread, low
            and high.
        x: the abscissa's column; its name, with spaces, is the title.
        title: above them.
        file: .svg, .png or another of matplotlib's.
        log: the abscissa grows by factors.
    """
    columns = min(len(panels), ABREAST)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.4 * rows), layout="constrained")
    figure.suptitle(title)
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for axes, (name, table) in zip(grid, panels.items(), strict=False):
        for marker, (method, part) in zip(
            MARKERS, table.groupby("method", sort=False), strict=False
        ):
            colour = COLOURS.get(str(method), OTHER_COLOUR)
            axes.plot(part[x], part["mean"], marker + "-", color=colour, label=str(method))
            if "low" in part:
                axes.fill_between(part[x], part["low"], part["high"], color=colour, alpha=0.2)
        if log:
            axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(table[x].unique()), [f"{v:g}" for v in sorted(table[x].unique())])
        axes.set_xlabel(x.replace("_", " "))
        axes.set_ylabel(name)
        axes.legend(fontsize=8)
    figure.savefig(file, dpi=RESOLUTION)
