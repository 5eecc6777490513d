"""Before there is anything to show: how to make results, and an example."""

import streamlit as st
from sidebar import open_example
from sources import Shown

HOW = """
wdecomp compare base/ ft/ lora/ dora/ --columns output   # tables in wdecomp-results/
wdecomp view wdecomp-results/                            # this app, with them
""".strip()


def welcome() -> None:
    """The first page of who gave no folder."""
    st.title("What did fine-tuning do to the weights?")
    st.write(
        "wdecomp splits every weight column of a base model and of its fine-tuned checkpoints into "
        "magnitude and direction, and measures how far each moved: ΔM and ΔD, per layer, module "
        "and step. This app shows the results of a comparison; it was started without any."
    )
    commands()
    st.write(
        "Or look at a small real one first: a sentence encoder, fine-tuned in full, with LoRA and "
        "with DoRA by `wdecomp demo`."
    )
    st.button("Open the bundled example", type="primary", on_click=open_example)


def commands() -> None:
    """How to make results and look at them."""
    st.write("Make results, then start the app with their folder, or with several:")
    st.code(HOW, language="bash")


def nothing(shown: Shown) -> str:
    """Why there are no rows."""
    if shown.progress:
        return "No matrix has been compared so far. This page fills as soon as one is."
    return (
        "No matrix changed, or none was compared. `wdecomp inspect BASE TUNED` says what pairs "
        "and what is left out, and why."
    )
