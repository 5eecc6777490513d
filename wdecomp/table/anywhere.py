"""Results on this disk or elsewhere, by what the user has named."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wdecomp.remote.urls import is_url
from wdecomp.table.claim import refuse_busy
from wdecomp.table.folder import ResultsFolder, join_folder, open_folder, share_folder
from wdecomp.table.shares import Share, refuse_taken


def are_results(path: str | Path) -> bool:
    """Whether what a path or a URL names is results, finished or not."""
    if is_url(str(path)):
        from wdecomp.table.fetched import away_at

        return away_at(str(path)).entry("run.json") is not None
    return (Path(path) / "run.json").is_file()


def folder_of(results: str | Path) -> Path:
    """The folder of results, finished or not; of those elsewhere, one here with their run.json.

    Raises:
        ResultsError: those elsewhere are none.
    """
    if is_url(str(results)):
        from wdecomp.table.fetched import fetch_plan

        return fetch_plan(str(results))
    return Path(results)


def copy_of(results: str | Path) -> Path:
    """The folder of results, finished or not; of those elsewhere, one here with all their files.

    Raises:
        ResultsError: those elsewhere are none, or cannot be read.
    """
    if is_url(str(results)):
        from wdecomp.table.fetched import fetch_folder

        return fetch_folder(str(results))
    return Path(results)


@contextmanager
def open_results(out: str | Path, plan: dict[str, Any], restart: bool) -> Iterator[ResultsFolder]:
    """The results folder of a plan, by `open_folder` or in a bucket; arguments as there."""
    if is_url(str(out)):
        from wdecomp.table.away import open_away

        with open_away(str(out), plan, restart) as away:
            yield away
        return
    with open_folder(Path(out), plan, restart) as folder:
        yield folder


@contextmanager
def share_results(out: str | Path, plan: dict[str, Any], share: Share) -> Iterator[ResultsFolder]:
    """The results folder of a plan for one share of its parts; in a bucket nothing is locked."""
    if is_url(str(out)):
        from wdecomp.table.away import open_away

        with open_away(str(out), plan, restart=False) as away:
            yield away
        return
    with share_folder(Path(out), plan, share) as folder:
        yield folder


def join_results(out: str | Path, plan: dict[str, Any]) -> ResultsFolder:
    """The results folder that another process has begun."""
    if is_url(str(out)):
        from wdecomp.table.away import join_away

        return join_away(str(out), plan)
    return join_folder(Path(out), plan)


def refuse_place(out: str | Path, share: Share | None = None) -> None:
    """That results may be written there, as far as can be told at once.

    Raises:
        ResultsError: they may not.
    """
    if is_url(str(out)):
        from wdecomp.table.away import refuse_foreign

        refuse_foreign(str(out))
    elif share is None:
        refuse_busy(Path(out))
    else:
        refuse_taken(Path(out), share)
