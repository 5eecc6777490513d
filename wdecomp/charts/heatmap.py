"""Where in the model the change is: a cell per layer and module kind."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from wdecomp.charts.chart import Axis, Cells, Chart, Facet, Floats, wrapped
from wdecomp.charts.scale import value_scale
from wdecomp.charts.style import run_colours
from wdecomp.charts.table import FIGURES, kind_names, last_steps, methods_of, numbers

IN_A_ROW = 3


def heatmap_chart(
    modules: pd.DataFrame,
    kinds: Sequence[tuple[str, str]],
    title: str,
    axis: str = "output",
    figure: str = "delta_magnitude",
) -> Chart:
    """A facet per run, a row of cells per module kind, at each run's last step in the table.

    Several matrices of a kind in one layer (experts) share a cell, which has their mean.

    Args:
        modules: the table of matrices, or part of it.
        kinds: (stack, module kind) from top to bottom.
        title: above all.
        axis: "output" or "input".
        figure: "delta_magnitude", "relative_delta_magnitude" or "delta_direction".
    """
    here = last_steps(modules[(modules["axis"] == axis) & modules["layer"].notna()])
    means = here.groupby(["run", "stack", "module", "layer"], sort=False)[figure].mean()
    layers = numbers(here, "layer")
    count = int(layers.max() - layers.min()) + 1
    edges = np.arange(count + 1, dtype=np.float64) + (layers.min() - 0.5)
    x = Axis("layer", float(edges[0]), float(edges[-1]), whole=True)
    names = tuple(reversed(kind_names(kinds)))
    y = Axis("", -0.5, len(kinds) - 0.5, ticks=names)
    colours = run_colours(methods_of(modules))
    rows = np.arange(len(kinds) + 1, dtype=np.float64) - 0.5
    facets = []
    for run, colour in colours.items():
        values = _values(means, run, list(reversed(kinds)), edges[:-1] + 0.5)
        hover = _hover(run, names, edges[:-1] + 0.5)
        cells = Cells(edges, rows, values, hover)
        facets.append(Facet(run, x, y, (cells,), colour=colour))
    scale = value_scale(FIGURES[figure], means.to_numpy(float))
    alt = f"{title}. {FIGURES[figure]} by layer and module kind; runs: {', '.join(colours)}."
    return Chart(title, tuple(wrapped(facets, IN_A_ROW)), scale, alt=alt)


def _values(
    means: "pd.Series[float]", run: str, kinds: Sequence[tuple[str, str]], layers: Floats
) -> Floats:
    table = means.to_dict()
    return np.array(
        [[table.get((run, *kind, int(layer)), np.nan) for layer in layers] for kind in kinds]
    ).reshape(len(kinds), len(layers))


def _hover(run: str, names: Sequence[str], layers: Floats) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(f"{run} · {name} · layer {int(n)}" for n in layers) for name in names)
