"""The results folders that the app was started with; no other is ever read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streamlit as st

from wdecomp.errors import ResultsError
from wdecomp.stats import module_fits
from wdecomp.table import Results
from wdecomp.table.growing import Growing, read_growing, stamp
from wdecomp.table.schema import MODULES
from wdecomp.table.together import together

EXAMPLE = Path(__file__).parent / "example" / "results"
SECONDS = 3.0  # between looks at a folder that grows
Stamps = tuple[Any, ...]


@dataclass(frozen=True)
class Shown:
    """What there is to show.

    results: of all folders that can be read, together; none if there is no such folder.
    members: each of them by name.
    failures: name of a folder → why it cannot be read.
    progress: of those that are not finished, how far they are.
    stamps: what changes when a folder does.
    """

    results: Results | None
    members: Mapping[str, Results]
    failures: Mapping[str, str]
    progress: tuple[str, ...]
    stamps: Stamps


def named(arguments: Sequence[str]) -> dict[str, Path]:
    """Short name → folder; two folders of one name get a number."""
    found: dict[str, Path] = {}
    for argument in dict.fromkeys(arguments):
        name = Path(argument).resolve().name or argument
        alike = sum(known == name or known.startswith(f"{name} (") for known in found)
        found[f"{name} ({alike + 1})" if alike else name] = Path(argument)
    return found


def stamps(folders: Mapping[str, Path]) -> Stamps:
    """What changes when one of the folders does."""
    return tuple(stamp(folder) for folder in folders.values())


@st.cache_resource(max_entries=3, show_spinner="Reading the tables")
def shown(folders: tuple[tuple[str, Path], ...], stamps: Stamps) -> Shown:
    """The folders as they are now; read once for all sessions, until they change."""
    members: dict[str, Results] = {}
    failures: dict[str, str] = {}
    for name, folder in folders:
        try:
            members[name] = _read(folder)
        except ResultsError as error:
            failures[name] = str(error)
    progress = tuple(each.progress for each in members.values() if isinstance(each, Growing))
    results = together(members) if members else None
    return Shown(results, members, failures, progress, stamps)


@st.fragment(run_every=SECONDS)
def watch(folders: Mapping[str, Path], seen: Stamps) -> None:
    """Draws everything again when a folder has changed since it was read."""
    if stamps(folders) != seen:
        st.rerun()


def _read(folder: Path) -> Results:
    """The results, after a look at what every page needs.

    Raises:
        ResultsError: they cannot be read.
    """
    results = read_growing(folder, module_fits)
    try:
        run = results.run
        _needed = (run["options"]["columns"], run["base"]["path"], run["notes"], run["units"])
        _steps = [(each["run"], each["step"], each["method"]) for each in run["runs"]]
        _columns = [results.modules[name] for name in MODULES.names]
        _tables = results.facts["parameter"], results.left_out
    except (LookupError, TypeError, ValueError) as error:
        raise ResultsError(
            f"{folder}: its tables are not those of a comparison ({type(error).__name__}: "
            f"{error}). Compare again, or name another folder."
        ) from None
    return results
