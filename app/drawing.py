"""Charts on a page: drawn by `wdecomp.charts`, kept until the results change."""

from collections.abc import Callable
from typing import Any

import saying
import streamlit as st
from sidebar import Choice
from sources import Stamps

from wdecomp.charts import Chart, View, chart_of
from wdecomp.charts.interactive import CONFIG, figure_of
from wdecomp.table import Results

INK = {"light": "#31333f", "dark": "#e6edf3"}


def draw(choice: Choice, view: View, key: str, on_select: Callable[[], None] | None = None) -> Any:
    """A chart with what its reader has to know, and its file; the event of a selection.

    Raises:
        ResultsError: there is nothing of what is asked for.
    """
    ink = INK["dark" if st.context.theme.type == "dark" else "light"]
    figure, notes, alt = _figure(choice.shown.stamps, view, ink, choice.results)
    event = st.plotly_chart(
        figure,
        key=key,
        theme=None,
        config=CONFIG,
        alt=alt,
        on_select=on_select or "ignore",
        selection_mode=("points", "box"),
    )
    for note in dict.fromkeys(notes):
        saying.aside(note)
    saying.save(
        "Picture as SVG",
        f"{view.figure}.svg",
        lambda: _svg(choice.results, view),
        "image/svg+xml",
        f"{key}-svg",
    )
    return event


@st.cache_resource(max_entries=64, show_spinner=False)
def _figure(
    stamps: Stamps, view: View, ink: str, _results: Results
) -> tuple[Any, tuple[str, ...], str]:
    chart: Chart = chart_of(_results, view)
    figure = figure_of(chart)
    figure.layout.font.color = ink
    return figure, chart.notes, chart.alt


def _svg(results: Results, view: View) -> bytes:
    from wdecomp.charts.static import picture

    return picture(chart_of(results, view), "svg")
