"""Do magnitude and direction move together? Figs. 2 and 7 of the DoRA paper."""

from typing import Any

import drawing
import pandas as pd
import saying
import sidebar
import streamlit as st

choice: sidebar.Choice = st.session_state["choice"]
KEY = "scatter"
SHOWN = ["run", "step", "layer", "parameter", "delta_magnitude", "delta_direction"]
SHOWN += ["signed_delta_magnitude", "relative_delta_magnitude", "growth_ratio", "n_columns"]


def keys(event: Any) -> list[tuple[str, int | None, str]]:
    """Run, step and parameter of the points that were chosen."""
    points = event["selection"]["points"] if event else []
    found = (point.get("customdata") for point in points)
    several = (list(key.values()) if isinstance(key, dict) else key for key in found if key)
    return [(run, step, parameter) for run, step, parameter in several]


def brushed() -> None:
    """The first matrix that was chosen becomes the one on Columns."""
    known = sidebar.options(choice.results.modules)
    for _, step, parameter in keys(st.session_state[KEY])[:1]:
        names = (sidebar.option(parameter, step), sidebar.option(parameter, None))
        st.session_state["at"] = next((name for name in names if name in known), None)


st.header("Do magnitude and direction move together?")
st.write(
    "A point per layer and step: how far the columns' lengths moved (ΔM) against how far their "
    "directions turned (ΔD), as in Figs. 2 and 7 of the DoRA paper."
)
event = drawing.draw(choice, choice.view("scatter", choice.first_kind), KEY, brushed)
chosen = keys(event)
modules = choice.rows(choice.results.modules, of_kinds=False)
if chosen:
    where = pd.MultiIndex.from_frame(modules[["run", "step", "parameter"]].astype(object))
    rows = modules[where.isin([(r, pd.NA if s is None else s, p) for r, s, p in chosen])]
    st.subheader("The matrices of the chosen points")
    saying.table(rows[SHOWN], "brushed", rows=8)
    st.page_link("views/columns.py", label="Columns of the first of them →")
else:
    st.write(
        "Click a point, or drag a box around several, and their matrices are listed here; the "
        "first becomes the one on Columns. By keyboard: choose a matrix in the sidebar."
    )
of_kinds = modules[modules["module"].isin([module for _, module in choice.first_kind])]
saying.save_csv(of_kinds, "points", "points-csv", "Points as CSV")
