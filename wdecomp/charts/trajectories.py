"""How ΔM and ΔD grow over the steps of a training: a line per layer, or per module kind."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from wdecomp.charts.axes import axis_of, whole_axis
from wdecomp.charts.chart import Chart, Facet, Line, Mark
from wdecomp.charts.scale import layer_scale
from wdecomp.charts.style import GREY, SYMBOLS, kind_colours, run_colours
from wdecomp.charts.table import FIGURES, kind_names, methods_of, numbers

IN_A_ROW = 4
MOST_MARKED = 8  # lines of a facet whose points are marked


def trajectories_chart(
    modules: pd.DataFrame,
    kinds: Sequence[tuple[str, str]],
    title: str,
    axis: str = "output",
    response: str = "delta_magnitude",
) -> Chart:
    """ΔM above ΔD, a facet per run: of one module kind a line per layer, of several one per kind.

    Several matrices on one line have their mean. Rows without a step are no part of it.

    Args:
        modules: the table of matrices, or part of it.
        kinds: (stack, module kind) that are drawn.
        title: above all.
        axis: "output" or "input".
        response: "delta_magnitude" or "relative_delta_magnitude".
    """
    here = modules[(modules["axis"] == axis) & modules["step"].notna()]
    here = here[pd.MultiIndex.from_frame(here[["stack", "module"]]).isin(list(kinds))]
    runs = run_colours(methods_of(here))
    lines = ["layer"] if len(kinds) == 1 else ["stack", "module"]
    means = here.groupby(["run", *lines, "step"], sort=False, dropna=False)[
        [response, "delta_direction"]
    ].mean()
    x = whole_axis("step", [numbers(here, "step")])
    rows = []
    for start in range(0, len(runs), IN_A_ROW):
        for figure in (response, "delta_direction"):
            y = axis_of(FIGURES[figure], [means[figure].to_numpy(float)])
            facets = [
                Facet(run, x, y, _marks(means, run, figure, kinds), colour=runs[run])
                for run in list(runs)[start : start + IN_A_ROW]
            ]
            rows.append(tuple(facets))
    scale = layer_scale([here["layer"]]) if len(kinds) == 1 else None
    alt = f"{title}. ΔM and ΔD against the step; runs: {', '.join(runs)}."
    return Chart(title, tuple(rows), scale, alt=alt)


def _marks(
    means: pd.DataFrame, run: str, figure: str, kinds: Sequence[tuple[str, str]]
) -> tuple[Mark, ...]:
    if run not in means.index.get_level_values("run"):
        return ()
    table = means.xs(run, level="run")[figure].reset_index()
    if len(kinds) == 1:
        groups = [(key, part) for key, part in table.groupby("layer", dropna=False)]
        shape = 0 if len(groups) <= MOST_MARKED else None
        return tuple(_of_layer(run, key, part, figure, shape) for key, part in groups)
    names = kind_names(kinds)
    colours = kind_colours(names)
    return tuple(
        _line(
            table[(table["stack"] == stack) & (table["module"] == module)],
            figure,
            colours[name],
            f"{run} · {name}",
            i % len(SYMBOLS),
            name,
        )
        for i, ((stack, module), name) in enumerate(zip(kinds, names, strict=True))
    )


def _of_layer(run: str, layer: Any, part: pd.DataFrame, figure: str, shape: int | None) -> Line:
    if pd.isna(layer):
        return _line(part, figure, GREY, run, shape)
    return _line(part, figure, float(layer), f"{run} · layer {layer}", shape)


def _line(
    part: pd.DataFrame,
    figure: str,
    colour: str | float,
    said: str,
    marker: int | None,
    label: str = "",
) -> Line:
    ordered = part.sort_values("step")
    hover = tuple(f"{said} · step {step}" for step in ordered["step"])
    x, y = numbers(ordered, "step"), numbers(ordered, figure)
    return Line(x, y, colour, label=label, marker=marker, hover=hover)
