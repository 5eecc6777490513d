"""Words, tables and files. Names come from strangers' checkpoints: here they are only text.

`st.text` and `st.dataframe` take text as it is; nothing else is given a name. Cells that a
spreadsheet would compute have ' before them, in files and in tables that can be saved.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pandas as pd
import streamlit as st

from wdecomp.charts.words import printable
from wdecomp.errors import ResultsError
from wdecomp.publishing import FORMATS
from wdecomp.publishing.formats import FORMULA


def problem(text: str, title: str = "This cannot be shown", todo: str = "") -> None:
    """What is wrong, and what to do."""
    with st.container(border=True):
        st.text(f"⚠ {printable(title)}")
        st.text(printable(text))
        if todo:
            st.text(todo)


def aside(text: str) -> None:
    """A remark; names in it are only text."""
    st.text(printable(text))


@contextmanager
def what_fails(todo: str = "Choose others in the sidebar, or fewer filters.") -> Iterator[None]:
    """Says what there is none of, in place of what cannot be drawn."""
    try:
        yield
    except ResultsError as error:
        problem(str(error), todo=todo)


def inert(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with text that no program obeys."""
    texts = {
        str(name): frame[name].map(_cell, na_action="ignore")
        for name in frame
        if not pd.api.types.is_numeric_dtype(frame[name])
    }
    return frame.assign(**texts)


def table(frame: pd.DataFrame, key: str, rows: int = 12) -> None:
    """A table to sort and search."""
    height = 38 + 35 * min(max(len(frame), 1), rows)
    st.dataframe(inert(frame), key=key, hide_index=True, height=height)


def save(label: str, name: str, make: Callable[[], bytes], kind: str, key: str) -> None:
    """A button that makes a file when it is pressed, and saves it."""
    st.download_button(label, make, name, kind, key=key, on_click="ignore")


def save_csv(frame: pd.DataFrame, name: str, key: str, label: str = "Table as CSV") -> None:
    """A button that saves a table, all its digits."""

    def make() -> bytes:
        stream = io.BytesIO()
        FORMATS["csv"]((frame,), stream, name)
        return stream.getvalue()

    save(label, f"{name}.csv", make, "text/csv", key)


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    shown = printable(value)
    return f"'{shown}" if FORMULA.match(shown) else shown
