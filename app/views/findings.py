"""What is wrong with the checkpoints, and what the numbers allow to be said."""

import saying
import sidebar
import streamlit as st
from sources import Stamps

from wdecomp import report
from wdecomp.audit import Finding, findings
from wdecomp.charts.table import kind_names
from wdecomp.errors import some
from wdecomp.stats import Conclusion, conclusions
from wdecomp.table import Results

choice: sidebar.Choice = st.session_state["choice"]
MOST_TENSORS = 5
COLOURS = {"error": "red", "warning": "orange", "note": "blue"}


@st.cache_resource(max_entries=8, show_spinner="Looking through the tables")
def told(
    stamps: Stamps, name: str, axis: str, _results: Results
) -> tuple[list[Finding], list[Conclusion], list[str]]:
    """What one folder's tables tell."""
    said = conclusions(_results.modules, _results.fits, axis)
    return findings(_results), said, report.notes(_results)


def one(finding: Finding) -> None:
    """How bad, where, what, and what to do."""
    with st.container(border=True):
        st.badge(finding.severity, color=COLOURS[finding.severity])  # type: ignore[arg-type]
        saying.aside(f"{finding.where} · {finding.rule.title}")
        saying.aside(finding.message)
        if finding.evidence:
            pairs = (f"{key} {value}" for key, value in finding.evidence.items())
            saying.aside(", ".join(pairs))
        if finding.tensors:
            named = some(finding.tensors, MOST_TENSORS)
            saying.aside(f"Tensors ({len(finding.tensors)}): {named}")
        saying.aside(f"What to do: {finding.rule.advice}")


def folder(name: str, results: Results) -> None:
    """Everything about one results folder."""
    found, said, notes = told(choice.shown.stamps, name, choice.axis, results)
    own = [run.removeprefix(f"{name}/") for run in choice.runs]
    found = [each for each in found if not own or each.run in own]
    said = [each for each in said if not own or each.run in own]
    said = [each for each in said if not choice.kinds or (each.stack, each.module) in choice.kinds]
    st.subheader("What can be said")
    for run in dict.fromkeys(each.run for each in said):
        of_run = [each for each in said if each.run == run]
        names = kind_names([(each.stack, each.module) for each in of_run])
        with st.container(border=True):
            saying.aside(f"Run {run}")
            for kind, each in zip(names, of_run, strict=True):
                saying.aside(f"{kind}: {each.text}")
    if not said:
        st.write("No module kind that is chosen changed in two layers or more.")
    st.subheader("What the audit found")
    for finding in found:
        one(finding)
    if not found:
        st.write("Nothing that it looks for.")
    if notes:
        st.subheader("To be known")
        for note in notes:
            saying.aside(note)


st.header("What can be said, and what is wrong")
for name, results in choice.shown.members.items():
    if len(choice.shown.members) > 1:
        saying.aside(f"Folder {name}")
    with saying.what_fails("Compare again, then look here."):
        folder(name, results)
