"""How sure is the relation between ΔM and ΔD? Correlations and slopes with their intervals."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from wdecomp.charts.axes import axis_of
from wdecomp.charts.chart import Axis, Chart, Facet, Floats, Level, Line, Mark, Points
from wdecomp.charts.style import GREY, run_colours
from wdecomp.charts.table import FIGURES, intervals, kind_names, numbers

PAPER = {"full": -0.62, "lora": +0.83, "dora": -0.31}  # query, VL-BART; DoRA section 3.2, Fig. 2
FROM_PAPER = "DoRA paper (query, VL-BART)"
SAID = {"pooled": "over all layers and steps", "within_step": "within steps"}
IN_A_FACET = 8  # module kinds
SPREAD = 0.6  # of a kind's height that its runs take


def fits_chart(
    fits: pd.DataFrame,
    kinds: Sequence[tuple[str, str]],
    methods: Mapping[str, str],
    title: str,
    axis: str = "output",
    response: str = "delta_magnitude",
    grouping: str = "pooled",
) -> Chart:
    """Pearson's r beside the slope, a row for each module kind, a mark with its interval per run.

    Intervals (95 %) are by resampling layers where there are enough, else by formula. Where r is
    that of the paper (pooled, of ΔM, on q) the paper's stands beside it as a star.

    Args:
        fits: statistics.
        kinds: (stack, module kind) from top to bottom.
        methods: run → method, in the order of the runs.
        title: above all.
        axis: "output" or "input".
        response: "delta_magnitude" or "relative_delta_magnitude".
        grouping: "pooled" or "within_step".
    """
    here = fits[
        (fits["axis"] == axis) & (fits["response"] == response) & (fits["grouping"] == grouping)
    ]
    slopes = here[here["estimator"] == "slope"]
    of_kinds = pd.MultiIndex.from_frame(slopes[["stack", "module"]]).isin(list(kinds))
    ends = [*intervals(slopes[of_kinds]), numbers(slopes[of_kinds], "value"), np.zeros(1)]
    r_axis = Axis(f"r, Pearson, {SAID[grouping]}", -1.05, 1.05)
    slope_axis = axis_of(f"slope, {FIGURES[response].partition(',')[0]} per ΔD", ends, "linear")
    rows = []
    for start in range(0, len(kinds), IN_A_FACET):
        part = list(kinds[start : start + IN_A_FACET])
        y = Axis("", -0.5, len(part) - 0.5, ticks=tuple(reversed(kind_names(part))))
        facets = []
        for estimator, x in (("pearson", r_axis), ("slope", slope_axis)):
            chosen = here[here["estimator"] == estimator]
            marks = [mark for run in methods for mark in _of_run(chosen, run, part, methods)]
            if (estimator, response, grouping) == ("pearson", "delta_magnitude", "pooled"):
                marks += _paper(part, methods)
            facets.append(Facet(HEADS[estimator], x, y, (Level("x", 0.0), *marks)))
        rows.append(tuple(facets))
    alt = f"{title}. Correlation r and slope of {', '.join(kind_names(kinds))}; "
    return Chart(title, tuple(rows), alt=f"{alt}runs: {', '.join(methods)}.")


HEADS = {"pearson": "Correlation", "slope": "Slope"}


def _of_run(
    fits: pd.DataFrame, run: str, kinds: list[tuple[str, str]], methods: Mapping[str, str]
) -> list[Mark]:
    """A mark for each kind, and one line of all intervals, with gaps between them."""
    rows = fits[fits["run"] == run].set_index(["stack", "module"])
    rows = rows.reindex(pd.MultiIndex.from_tuples(kinds, names=["stack", "module"]))
    value, (low, high) = numbers(rows, "value"), intervals(rows)
    y = _heights(run, len(kinds), list(methods))
    colour = run_colours(methods)[run]
    gaps = np.full(len(kinds), np.nan)
    ends = Line(np.ravel([low, high, gaps], "F"), np.repeat(y, 3), colour)
    hover = tuple(
        f"{run} · {name} · {v:+.3g} [{a:+.3g}, {b:+.3g}] · n = {n:.0f}"
        for name, v, a, b, n in zip(
            kind_names(kinds), value, low, high, numbers(rows, "n"), strict=True
        )
    )
    marker = list(methods).index(run)
    return [ends, Points(value, y, colour, marker, run, 9, hover)]


def _paper(kinds: list[tuple[str, str]], methods: Mapping[str, str]) -> list[Mark]:
    found = [
        (PAPER[method], _heights(run, len(kinds), list(methods))[i], f"{method}, {FROM_PAPER}")
        for run, method in methods.items()
        for i, (_, module) in enumerate(kinds)
        if module == "q" and method in PAPER
    ]
    if not found:
        return []
    x, y, hover = zip(*found, strict=True)
    return [Points(np.array(x), np.array(y), GREY, 7, FROM_PAPER, 11, tuple(hover))]


def _heights(run: str, n_kinds: int, runs: list[str]) -> Floats:
    """Where a run's marks stand: kinds from the top, and in each the runs from the top."""
    place = (len(runs) - 1) / 2 - runs.index(run)
    return np.arange(n_kinds, dtype=np.float64)[::-1] + SPREAD * place / max(len(runs), 2)
