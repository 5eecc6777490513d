"""Is a matrix's mean carried by a few columns?"""

import drawing
import pandas as pd
import saying
import sidebar
import streamlit as st

from wdecomp.charts.columns import largest_columns
from wdecomp.charts.table import last_steps
from wdecomp.errors import ResultsError

choice: sidebar.Choice = st.session_state["choice"]
MOST = 20  # columns of a run in the table
ASKED = f"--columns {choice.axis}, or --columns both"


def matrix(parameter: str, step: int | None) -> None:
    """One matrix, side by side in all runs that have it."""
    saying.aside(f"{parameter}, " + ("each run's last step" if step is None else f"step {step}"))
    steps = choice.steps if step is None else (step,)
    view = choice.view("columns", (), matrix=parameter, steps=steps, layers=None)
    drawing.draw(choice, view, "columns-chart")
    modules = choice.results.modules
    rows = modules[(modules["parameter"] == parameter) & (modules["axis"] == choice.axis)]
    for column, values in (("run", choice.runs), ("step", steps)):
        rows = rows[rows[column].isin(list(values))] if values else rows
    rows = last_steps(rows)
    tables = {
        str(run): choice.results.columns(
            str(run), None if at is None else int(at), [parameter], choice.axis
        )
        for run, at in rows[["run", "step"]].astype(object).replace({pd.NA: None}).to_numpy()
    }
    st.subheader(f"The {MOST} columns of each run whose length changed most")
    largest = [
        largest_columns(table, MOST).assign(run=run)[["run", *table.columns[2:]]]
        for run, table in tables.items()
    ]
    saying.table(pd.concat(largest, ignore_index=True), "largest")
    every = [table.assign(run=run) for run, table in tables.items()]
    saying.save_csv(pd.concat(every), "columns", "columns-csv", "All columns as CSV")


def module_kind() -> None:
    """All matrices of the module kinds together."""
    st.write(
        "All matrices of the module kind together, at each run's last step. Choose one in the "
        "sidebar, or click a point on ΔM vs ΔD, to see its columns alone."
    )
    drawing.draw(choice, choice.view("columns", choice.first_kind), "columns-chart")


st.header("Is the mean carried by a few columns?")
kept = choice.results.run["options"]["columns"]
if choice.axis not in kept:
    again = "Compare again with"
    if any("live" in results.run for results in choice.shown.members.values()):
        again = "The recording of a training keeps none: compare its checkpoints with"
    raise ResultsError(f"No columns were kept along the {choice.axis} axis. {again} {ASKED}.")
if choice.at is None:
    module_kind()
else:
    matrix(*choice.at)
