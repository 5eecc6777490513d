"""Is it every module kind, or the query alone, and how sure is it?"""

import drawing
import pandas as pd
import saying
import sidebar
import streamlit as st
from sources import Stamps

from wdecomp.stats import module_fits

choice: sidebar.Choice = st.session_state["choice"]
Part = tuple[object, ...]


@st.cache_data(max_entries=8, show_spinner="Computing the statistics of these rows")
def statistics(stamps: Stamps, part: Part, _rows: pd.DataFrame) -> pd.DataFrame:
    """Those of a part of the matrices; resampling takes seconds for a large model."""
    return module_fits(_rows)


st.header("How sure is the relation?")
st.write(
    "Pearson's r of ΔM with ΔD and the slope, per run and module kind, with 95 % intervals: by "
    "resampling whole layers where there are enough, else by formula. The star is the paper's r "
    "(VL-BART, query): −0.62 for full fine-tuning, +0.83 for LoRA, −0.31 for DoRA."
)
drawing.draw(choice, choice.view("fits", choice.many_kinds), "fits-chart")

st.subheader("All statistics")
st.write(
    "pooled: over all layers and steps, as the paper. within_step, within_layer: each step's "
    "(layer's) means subtracted first. per_column: over single columns of the last step, where "
    "columns were kept. low, high: by formula; cluster_low, cluster_high: by resampling layers."
)
if choice.steps or choice.layers:
    part = (choice.kinds, choice.runs, choice.steps, choice.layers, choice.axis)
    fits = statistics(choice.shown.stamps, part, choice.rows(choice.results.modules))
else:
    fits = choice.rows(choice.results.fits)
response = "relative_delta_magnitude" if choice.relative else "delta_magnitude"
saying.table(fits[fits["response"] == response], "fits-table")
saying.save_csv(fits, "fits", "fits-csv")
