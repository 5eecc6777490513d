"""What a reader chooses. Every choice stands in the address, on every page.

All of them are here and not on the pages: a choice that only one page has would make an entry of
its own in the browser's history, so that Back would first lose it.
"""

from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal

import pandas as pd
import streamlit as st
from sources import Shown

from wdecomp.charts import View
from wdecomp.charts.table import kind_names, kinds_of
from wdecomp.charts.views import usual_kind
from wdecomp.charts.words import printable
from wdecomp.table import Results

URL: Literal["query-params"] = "query-params"
MOST_KINDS = 8  # module kinds that are drawn where none is chosen
MOST_MATRICES = 3000  # to choose from, each at each step
GROUPINGS = {"pooled": "pooled", "within steps": "within_step"}
Kind = tuple[str, str]
At = tuple[str, int | None]


@dataclass(frozen=True)
class Choice:
    """What is shown, and how.

    kinds: that were chosen; none is the usual ones of a page.
    layers: from, to; None is all.
    at: the matrix whose columns are looked at, and at which step; None is a whole module kind.
    """

    shown: Shown
    results: Results
    kinds: tuple[Kind, ...]
    runs: tuple[str, ...]
    steps: tuple[int, ...]
    layers: tuple[int, int] | None
    axis: str
    relative: bool
    grouping: str
    own_axes: bool
    at: At | None

    def view(self, figure: str, kinds: tuple[Kind, ...], **more: Any) -> View:
        """The choice as a view of one figure."""
        given: dict[str, Any] = {
            "axis": self.axis,
            "runs": self.runs,
            "steps": self.steps,
            "layers": self.layers,
            "relative": self.relative,
            "grouping": self.grouping,
            "own_axes": self.own_axes,
        }
        return View(figure, kinds, **given | more)

    @property
    def first_kind(self) -> tuple[Kind, ...]:
        """The chosen ones, else the query or what comes first."""
        known = usual_kind(self.results.modules) or all_kinds(self.results.modules)[0]
        return self.kinds or (known,)

    @property
    def many_kinds(self) -> tuple[Kind, ...]:
        """The chosen ones, else all that stand in several layers, as many as a page holds."""
        known = kinds_of(self.results.modules) or all_kinds(self.results.modules)
        return self.kinds or tuple(known[:MOST_KINDS])

    def rows(self, table: pd.DataFrame, of_kinds: bool = True) -> pd.DataFrame:
        """What the choice leaves of a table; a column that it has not leaves all."""
        wanted: dict[str, tuple[Any, ...]] = {"run": self.runs, "step": self.steps}
        for column, values in wanted.items():
            if values and column in table:
                table = table[table[column].isin(list(values))]
        if "axis" in table:
            table = table[table["axis"] == self.axis]
        if self.kinds and of_kinds and "module" in table:
            found = pd.MultiIndex.from_frame(table[["stack", "module"]]).isin(list(self.kinds))
            table = table[found]
        if self.layers and "layer" in table:
            table = table[table["layer"].between(*self.layers).fillna(value=False).astype(bool)]
        return table


def wants_example() -> bool:
    """Whether the bundled example is to be shown; a choice like the others."""
    return bool(st.sidebar.toggle("Bundled example", key="example", bind=URL))


def open_example() -> None:
    """What the button on the first page does."""
    st.session_state["example"] = True


def option(parameter: str, step: int | None) -> str:
    """How a matrix at a step is called among the choices, and in the address."""
    return parameter if step is None else f"{parameter} · step {step}"


def all_kinds(modules: pd.DataFrame) -> list[Kind]:
    """(stack, module kind) of every matrix; those in several layers first."""
    found = kinds_of(modules)
    pairs = modules[["stack", "module"]].drop_duplicates().itertuples(index=False)
    return [*found, *((str(s), str(m)) for s, m in pairs if (s, m) not in found)]


def choose(shown: Shown) -> Choice:
    """Draws the sidebar."""
    assert shown.results is not None
    results, modules = shown.results, shown.results.modules
    kinds = all_kinds(modules)
    by_name = dict(zip(kind_names(kinds), kinds, strict=True))
    steps = sorted(int(step) for step in modules["step"].dropna().unique())
    with st.sidebar:
        _head(shown, modules)
        chosen = st.multiselect(
            "Module kinds", list(by_name), key="module", bind=URL, placeholder="the usual ones"
        )
        runs = st.multiselect(
            "Runs",
            [str(r) for r in modules["run"].unique()],
            key="run",
            bind=URL,
            placeholder="all",
        )
        known: list[int] = (
            st.multiselect("Steps", steps, key="step", bind=URL, placeholder="all") if steps else []
        )
        layers = _layers(modules)
        axis = _axis(modules)
        grouping = st.radio(
            "Correlations and lines",
            list(GROUPINGS),
            key="fit",
            bind=URL,
            horizontal=True,
            help="Pooled: over all layers and steps, as in the DoRA paper. Within steps: each "
            "step's means subtracted first, so that what merely grows with time drops out.",
        )
        relative = st.toggle("ΔM relative to m0", key="relative", bind=URL)
        own = st.toggle("Each run has its own axes", key="own", bind=URL)
        at = _matrix(modules)
    return Choice(
        shown=shown,
        results=results,
        kinds=tuple(by_name[name] for name in chosen),
        runs=tuple(runs),
        steps=tuple(known),
        layers=layers,
        axis=axis,
        relative=relative,
        grouping=GROUPINGS[grouping],
        own_axes=own,
        at=at,
    )


def _head(shown: Shown, modules: pd.DataFrame) -> None:
    """What is looked at: the base, and how much of it."""
    bases = (str(each.run["base"]["path"]) for each in shown.members.values())
    for base in dict.fromkeys("/".join(PurePath(base).parts[-2:]) for base in bases):
        st.text(printable(f"Base: {base}"))
    n = {column: modules[column].nunique() for column in ("run", "layer", "parameter")}
    words = {"run": "run", "layer": "layer", "parameter": "matrix"}
    many = {"run": "runs", "layer": "layers", "parameter": "matrices"}
    st.text(", ".join(f"{n[c]} {words[c] if n[c] == 1 else many[c]}" for c in n))


def _layers(modules: pd.DataFrame) -> tuple[int, int] | None:
    layers = modules["layer"].dropna()
    low, high = (0, 0) if layers.empty else (int(layers.min()), int(layers.max()))
    if low == high:
        return None
    chosen = st.slider("Layers", low, high, (low, high), key="layers", bind=URL)
    return None if chosen == (low, high) else (int(chosen[0]), int(chosen[1]))


def _axis(modules: pd.DataFrame) -> str:
    axes = [axis for axis in ("output", "input") if (modules["axis"] == axis).any()]
    if len(axes) < 2:
        return axes[0] if axes else "output"
    said = "Columns along the output axis: a weight vector per output feature, as PEFT's DoRA has."
    return str(st.radio("Columns along", axes, key="axis", bind=URL, horizontal=True, help=said))


def options(modules: pd.DataFrame) -> dict[str, At]:
    """Every matrix, at each run's last step and at each of the steps; by the name of the choice."""
    names = [str(name) for name in modules["parameter"].unique()]
    steps = sorted((int(step) for step in modules["step"].dropna().unique()), reverse=True)
    at_steps: list[int | None] = [None, *(steps if len(steps) > 1 else [])]
    if len(names) * len(at_steps) > MOST_MATRICES:
        at_steps = at_steps[:1]
    pairs = [(name, step) for name in names for step in at_steps]
    return {option(*pair): pair for pair in pairs[:MOST_MATRICES]}


def _matrix(modules: pd.DataFrame) -> At | None:
    """The matrix whose columns are looked at."""
    known = options(modules)
    chosen = st.selectbox(
        "Matrix, on Columns",
        list(known),
        None,
        key="at",
        bind=URL,
        placeholder="all of the module kind",
    )
    return None if chosen is None else known[chosen]
