"""What exactly was computed, from what, and what was left out."""

import contextlib
import json

import pandas as pd
import saying
import sidebar
import streamlit as st

from wdecomp.audit import findings
from wdecomp.errors import ResultsError
from wdecomp.publishing.page import page
from wdecomp.stats import conclusions
from wdecomp.table import Results

choice: sidebar.Choice = st.session_state["choice"]
LONG = ("units", "left_out", "runs")  # of run.json; shown as tables, or of no use to a reader


def html(results: Results) -> bytes:
    """The report of one folder."""
    said = conclusions(results.modules, results.fits)
    return page(results, findings(results), said).encode()


def tables() -> None:
    """The tables, as far as the sidebar leaves them."""
    results = choice.results
    parts = {
        "Matrices": ("modules", "a row per run, step, matrix and axis", results.modules),
        "Statistics": ("fits", "a row per statistic", results.fits),
        "Tensors": ("facts", "a row per compared tensor, 1-D ones included", results.facts),
        "Left out": ("left_out", "tensors that were not compared, and why", results.left_out),
    }
    with contextlib.suppress(ResultsError):  # where none were asked for
        spectra = "a row per run, step and matrix: singular values of the change"
        parts["Spectra"] = ("spectra", spectra, results.spectra)
    for title, (name, said, frame) in parts.items():
        rows = choice.rows(frame)
        st.subheader(f"{title}: {said}")
        saying.table(rows, f"table-{name}", rows=8)
        saying.save_csv(rows, name, f"csv-{name}", f"{title} as CSV ({len(rows):,} rows)")


def folder(name: str, results: Results) -> None:
    """Where one folder's numbers come from."""
    saying.aside(f"{name}: {results.path.resolve()}")
    runs = pd.DataFrame(results.run["runs"], columns=["run", "method", "step", "path"])
    saying.table(runs, f"runs-{name}", rows=6)
    saying.save(
        "Report as one HTML file",
        f"{name}.html",
        lambda: html(results),
        "text/html",
        f"html-{name}",
    )
    with st.expander("run.json, without the long lists"):
        short = {key: value for key, value in results.run.items() if key not in LONG}
        st.code(json.dumps(short, indent=1, ensure_ascii=True), language=None)


st.header("What exactly was computed?")
st.write("The sidebar's choice of runs, steps, layers, module kinds and axis holds here, too.")
tables()
st.subheader("Where it comes from")
for each, found in choice.shown.members.items():
    folder(each, found)
