"""What Fig. 3 of the DoRA paper shows: ΔM and ΔD along the layers, methods over each other."""

from collections.abc import Mapping, Sequence

import pandas as pd

from wdecomp.charts.axes import axis_of, whole_axis
from wdecomp.charts.chart import Axis, Band, Chart, Facet, Line, Mark
from wdecomp.charts.style import run_colours
from wdecomp.charts.table import FIGURES, kind_names, last_steps, methods_of, numbers

IN_A_ROW = 4


def layers_chart(
    modules: pd.DataFrame,
    kinds: Sequence[tuple[str, str]],
    title: str,
    axis: str = "output",
    response: str = "delta_magnitude",
) -> Chart:
    """ΔM above ΔD for each module kind, a line per run, at each run's last step in the table.

    A layer with several matrices of a kind (experts) has their mean, and a band from the smallest
    to the largest. Dotted: what random updates of the same size would give, where that is known.

    Args:
        modules: the table of matrices, or part of it.
        kinds: (stack, module kind) in the order in which they are drawn.
        title: above all.
        axis: "output" or "input".
        response: "delta_magnitude" or "relative_delta_magnitude".
    """
    here = last_steps(modules[(modules["axis"] == axis) & modules["layer"].notna()])
    colours = run_colours(methods_of(modules))
    parts = {kind: here[(here["stack"] == kind[0]) & (here["module"] == kind[1])] for kind in kinds}
    x = whole_axis("layer", [numbers(here, "layer")])
    rows: list[tuple[Facet, ...]] = []
    for start in range(0, len(kinds), IN_A_ROW):
        for figure in (response, "delta_direction"):
            shown = [name for name in (figure, f"null_{figure}") if name in here]
            values = [numbers(part, name) for part in parts.values() for name in shown]
            y = axis_of(FIGURES[figure], values)
            rows.append(
                tuple(
                    Facet(name, x, y, _marks(parts[kind], figure, y, colours))
                    for kind, name in zip(kinds, kind_names(kinds), strict=True)
                    if kind in kinds[start : start + IN_A_ROW]
                )
            )
    drawn = ", ".join(kind_names(kinds))
    alt = f"{title}. ΔM and ΔD against the layer for {drawn}; runs: {', '.join(colours)}."
    return Chart(title, tuple(rows), alt=alt)


def _marks(
    part: pd.DataFrame, figure: str, y: Axis, colours: Mapping[str, str]
) -> tuple[Mark, ...]:
    marks: list[Mark] = []
    for i, (run, colour) in enumerate(colours.items()):
        rows = part[part["run"] == run]
        if rows.empty:
            continue
        by_layer = rows.groupby("layer")[figure].agg(["mean", "min", "max"])
        at = by_layer.index.to_numpy(float)
        mean, low, high = (by_layer[name].to_numpy(float) for name in ("mean", "min", "max"))
        if len(rows) > len(by_layer):
            marks.append(Band(at, low.clip(y.low), high, colour, "all matrices of the layer"))
        null = f"null_{figure}"
        if null in rows and rows[null].notna().any():
            middle = rows.groupby("layer")[null].mean().to_numpy(float)
            marks.append(Line(at, middle, colour, "dot", "random update of the same size"))
        hover = _hover(run, rows)
        # Later ones are narrower: of two that coincide, both are seen.
        width = 1.4 + (len(colours) - 1 - i) * min(1.0, 4 / len(colours))
        marks.append(Line(at, mean, colour, "solid", run, i, hover, width))
    return tuple(marks)


def _hover(run: str, rows: pd.DataFrame) -> tuple[str, ...]:
    step = rows["step"].iloc[0]
    at_step = "" if pd.isna(step) else f" · step {step}"
    return tuple(
        f"{run}{at_step} · layer {layer} · "
        + (str(names.iloc[0]) if len(names) == 1 else f"mean of {len(names)} matrices")
        for layer, names in rows.groupby("layer")["parameter"]
    )
