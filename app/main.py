"""The app: what a comparison found, in a browser.

    streamlit run app/main.py -- RESULTS...

Every page draws what `wdecomp` computed, through `wdecomp.charts`; nothing is computed here. What a
reader chose stands in the address, so that a link restores the view, and Back goes back.
"""

import sys
from pathlib import Path

import first
import saying
import sidebar
import sources
import streamlit as st

HERE = Path(__file__).parent
PAGES = (
    ("scatter", "ΔM vs ΔD"),
    ("layers", "Layers"),
    ("fits", "Fits"),
    ("columns", "Columns"),
    ("findings", "Findings"),
    ("data", "Data"),
)

# Streamlit's own margins leave a chart two thirds of the width.
LOOK = """<style>
[data-testid=stMainBlockContainer] { padding: 4.6rem 2.4rem 3rem; }
[data-testid=stMain] h2 { font-size: 1.6rem; padding-top: 0; }
[data-testid=stMain] h3 { font-size: 1.2rem; }
</style>"""

st.set_page_config("wdecomp", page_icon=str(HERE / "icon.svg"), layout="wide")
st.html(LOOK)
page = st.navigation(
    [
        st.Page(HERE / "views" / f"{name}.py", title=title, default=name == "scatter")
        for name, title in PAGES
    ],
    position="top",
)
folders = sources.named(sys.argv[1:])
if not folders and sidebar.wants_example():
    folders = {"example": sources.EXAMPLE}
if not folders:
    first.welcome()
else:
    shown = sources.shown(tuple(folders.items()), sources.stamps(folders))
    for name, reason in shown.failures.items():
        saying.problem(reason, f"{name} cannot be shown")
    for progress in shown.progress:
        saying.aside(progress)
    if shown.results is None:
        first.commands()
    elif shown.results.modules.empty:
        saying.problem(first.nothing(shown), "There is nothing to draw yet")
    else:
        st.session_state["choice"] = sidebar.choose(shown)
        with saying.what_fails():
            page.run()
    if shown.progress or shown.failures:
        sources.watch(folders, shown.stamps)
