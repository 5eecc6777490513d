"""Which picture of which results: the choices that the commands, the report and the app share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from wdecomp.charts.axes import Kind
from wdecomp.charts.chart import Chart
from wdecomp.charts.columns import columns_chart
from wdecomp.charts.fits import fits_chart
from wdecomp.charts.heatmap import heatmap_chart
from wdecomp.charts.layers import layers_chart
from wdecomp.charts.panels import panels
from wdecomp.charts.scatter import scatter_chart
from wdecomp.charts.table import kind_names, kinds_of, last_steps, methods_of
from wdecomp.charts.trajectories import trajectories_chart
from wdecomp.errors import ResultsError, some
from wdecomp.stats import module_fits
from wdecomp.table import Results
from wdecomp.table.growing import Growing


@dataclass(frozen=True)
class View:
    """What is to be drawn; whatever is left empty is chosen from the results.

    kinds: (stack, module kind).
    runs, steps: only these; all if empty. Where a figure has room for one step, it is each run's
        last among them.
    layers: only those from the first to the last of these two; all if None.
    relative: ΔM/m0 in place of ΔM.
    direction: ΔD in place of ΔM, in a heatmap.
    matrix: the parameter whose columns are drawn; all of the kinds if empty.
    own_axes: each panel of a scatter has its own axes.
    grouping: which statistics: "pooled", or "within_step" (each step's means subtracted).
    """

    figure: str
    kinds: tuple[tuple[str, str], ...] = ()
    axis: str = "output"
    runs: tuple[str, ...] = ()
    steps: tuple[int, ...] = ()
    layers: tuple[int, int] | None = None
    relative: bool = False
    direction: bool = False
    matrix: str = ""
    own_axes: bool = False
    scale: Kind = "auto"
    grouping: str = "pooled"

    @property
    def response(self) -> str:
        """The column of ΔM."""
        return "relative_delta_magnitude" if self.relative else "delta_magnitude"


def chart_of(results: Results, view: View) -> Chart:
    """The chart.

    Raises:
        ResultsError: the results have nothing of what is asked for.
    """
    rows = _rows(results.modules, view)
    if not view.kinds:
        view = replace(view, kinds=_usual_kinds(results, rows, view.figure))
    _check_kinds(results, rows, view)
    if view.figure in ("layers", "heatmap") and rows["layer"].isna().all():
        raise ResultsError(f"{results.place}: no matrix has a layer, so there are none to draw.")
    return FIGURES[view.figure](results, rows, view)


def usual_kind(modules: pd.DataFrame) -> tuple[str, str] | None:
    """The module kind that is shown first: the query, as in the paper, or the first with layers.

    Self-attention comes before the rest. None where no module kind stands in two layers.
    """
    kinds = kinds_of(modules)
    queries = [kind for kind in kinds if kind[1] == "q" and kind[0] != "cross"]
    return next(iter([*queries, *kinds]), None)


def find_kinds(modules: pd.DataFrame, names: tuple[str, ...], stack: str) -> list[tuple[str, str]]:
    """(stack, module kind) for names such as "q" or "encoder.q".

    Args:
        modules: the table of matrices.
        names: module kinds.
        stack: only in this one; the first that has the kind if empty.

    Raises:
        ResultsError: there is none of that name.
    """
    pairs = modules[["stack", "module"]].drop_duplicates()
    known = [(str(s), str(m)) for s, m in pairs.itertuples(index=False)]
    found = []
    for name in names:
        here = [
            kind
            for kind in known
            if (kind[1] == name and stack in ("", kind[0])) or ".".join(kind) == name
        ]
        if not here:
            inside = f" in stack {stack!r}" if stack else ""
            raise ResultsError(
                f"{name!r}: no such module kind{inside}. There are "
                f"{some(sorted('.'.join(kind) for kind in known))}."
            )
        found.append(here[0])
    return found


def _scatter(results: Results, rows: pd.DataFrame, view: View) -> Chart:
    fits = _fits_of(results, rows, view)
    grid = {
        name: panels(rows, fits, module, stack, view.axis, view.response, view.grouping)
        for (stack, module), name in zip(view.kinds, kind_names(view.kinds), strict=True)
    }
    title = f"Magnitude against direction: {_named(view)}"
    return scatter_chart(grid, title, shared=not view.own_axes, scale=view.scale)


def _fits_of(results: Results, rows: pd.DataFrame, view: View) -> pd.DataFrame:
    """The statistics of the points that are drawn; of tables that grow, of these points alone."""
    if view.steps or view.layers or isinstance(results, Growing):
        return module_fits(rows[_of_kinds(rows, view.kinds)])
    return results.fits


def _fits(results: Results, rows: pd.DataFrame, view: View) -> Chart:
    fits = _fits_of(results, rows, view)
    title = f"Correlation and slope: {_named(view)}"
    methods = methods_of(rows)
    return fits_chart(fits, view.kinds, methods, title, view.axis, view.response, view.grouping)


def _layers(results: Results, rows: pd.DataFrame, view: View) -> Chart:
    title = f"Change along the layers: {_named(view)}"
    return layers_chart(rows, view.kinds, title, view.axis, view.response)


def _heatmap(results: Results, rows: pd.DataFrame, view: View) -> Chart:
    figure = "delta_direction" if view.direction else view.response
    title = f"Change by layer and module, {view.axis} axis"
    return heatmap_chart(rows, view.kinds, title, view.axis, figure)


def _trajectories(results: Results, rows: pd.DataFrame, view: View) -> Chart:
    if rows["step"].isna().all():
        raise ResultsError(
            f"{results.place}: has no steps, so nothing to draw against them. "
            "Compare a folder of checkpoint-N/."
        )
    title = f"Change over the steps: {_named(view)}"
    return trajectories_chart(rows, view.kinds, title, view.axis, view.response)


def _columns(results: Results, rows: pd.DataFrame, view: View) -> Chart:
    chosen = last_steps(rows)
    named = chosen["parameter"] == view.matrix if view.matrix else _of_kinds(chosen, view.kinds)
    chosen = chosen[named]
    if chosen.empty:
        raise ResultsError(
            f"{view.matrix!r}: no such matrix, or one that did not change. "
            f"There are {some(list(rows['parameter'].unique()))}."
        )
    tables = {
        str(run): results.columns(
            str(run),
            None if part["step"].isna().all() else int(part["step"].iloc[0]),
            list(part["parameter"]),
            view.axis,
        )
        for run, part in chosen.groupby("run", sort=False)
    }
    title = f"Columns of {view.matrix or _named(view)}"
    return columns_chart(tables, methods_of(results.modules), title)


MOST_NAMED = 8  # module kinds in a title
FIGURES: Mapping[str, Callable[[Results, pd.DataFrame, View], Chart]] = {
    "scatter": _scatter,
    "layers": _layers,
    "heatmap": _heatmap,
    "trajectories": _trajectories,
    "columns": _columns,
    "fits": _fits,
}


def _named(view: View) -> str:
    return f"{some(kind_names(view.kinds), MOST_NAMED)}, {view.axis} axis"


def _rows(modules: pd.DataFrame, view: View) -> pd.DataFrame:
    """The rows of the axis, runs and steps that were asked for."""
    rows = modules[modules["axis"] == view.axis]
    for column, wanted in (("run", view.runs), ("step", view.steps)):
        known = rows[column].dropna().unique().tolist()
        absent = [value for value in wanted if value not in known]
        if absent:
            there = f"There are {some([str(k) for k in known])}." if known else "There are none."
            raise ResultsError(f"{absent[0]!r}: no such {column}. {there}")
        if wanted:
            rows = rows[rows[column].isin(list(wanted))]
    if view.layers:
        rows = rows[rows["layer"].between(*view.layers).fillna(False).astype(bool)]
    return rows


def _usual_kinds(results: Results, rows: pd.DataFrame, figure: str) -> tuple[tuple[str, str], ...]:
    if figure in ("layers", "heatmap", "fits"):
        return tuple(kinds_of(rows))
    usual = usual_kind(rows)
    return () if usual is None else (usual,)


def _check_kinds(results: Results, rows: pd.DataFrame, view: View) -> None:
    if rows.empty:
        raise ResultsError(
            f"{results.place}: has no matrix along the {view.axis} axis{_narrowed(view)}. "
            "Compare with --axis both, or draw the other axis."
        )
    if not view.kinds and not view.matrix:
        raise ResultsError(
            f"{results.place}: no module kind changed in two layers or more, so there is no "
            "relation to draw. Name one with --module."
        )
    if not (view.matrix or _of_kinds(rows, view.kinds).any()):
        raise ResultsError(
            f"{results.place}: no matrix of {some(kind_names(view.kinds))} changed in "
            f"{some([str(run) for run in rows['run'].unique()])}."
        )


def _narrowed(view: View) -> str:
    return " in these runs, steps and layers" if view.runs or view.steps or view.layers else ""


def _of_kinds(rows: pd.DataFrame, kinds: Sequence[tuple[str, str]]) -> "pd.Series[bool]":
    found = pd.MultiIndex.from_frame(rows[["stack", "module"]]).isin(list(kinds))
    return pd.Series(found, index=rows.index)
