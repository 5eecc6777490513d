"""A comparison in several processes, a share of its units each; the tables once all are done."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wdecomp.comparison.asked import Asked, prepare, versions
from wdecomp.comparison.running import make_tables, run_here
from wdecomp.decomposition import require_device
from wdecomp.errors import ResultsError, UnfinishedError, some
from wdecomp.table import (
    Results,
    Share,
    folder_of,
    open_results,
    refuse_place,
    share_results,
    shares_of,
)
from wdecomp.table.results import check_schema

NAMED = 12  # parts of many


@dataclass(frozen=True)
class Shared:
    """What is done once a process has gone through its share.

    own: how many units are its own; done: how many of them it has done itself.
    left: the units that others have not done yet, of so many in all.
    """

    own: int
    done: int
    left: tuple[int, ...]
    units: int


def compare_share(
    share: Share, asked: Asked, out: str | Path, workers: int | None = None, progress: bool = False
) -> Shared:
    """Does one process' share of a comparison's units; `finish` makes tables of all.

    Args:
        share: which units; several processes have one each, of the same count.
        asked: the comparison, the same in all of them; `asking` makes it.
        out: the results folder, the same for all of them.
        workers: threads; one for each core if None.
        progress: show bytes, rate and time left on stderr.

    Raises:
        WdecompError: as by `compare`; or another process has this share, or other ones have
            another plan.
    """
    require_device(asked.device)
    refuse_place(out, share)
    ready = prepare(asked, workers)
    own = share.of(range(len(ready.plan.units)))
    with share_results(out, ready.record, share) as folder:
        if folder.is_done():
            return Shared(len(own), 0, (), len(ready.plan.units))
        numbers = share.of(folder.pending())
        run_here(ready, folder, numbers, workers, progress)
        folder.look()
        return Shared(len(own), len(numbers), tuple(folder.pending()), len(ready.plan.units))


def finish(results: str | Path) -> Results:
    """The tables of a comparison whose units are done, from its folder alone.

    Raises:
        ResultsError: the folder holds no comparison, is being written to, or is of other versions.
        UnfinishedError: there are units that are not done.
    """
    path = folder_of(results)
    record = _comparison_in(path)
    here = {name: versions().get(name) for name in record["versions"]}
    other = [name for name, version in record["versions"].items() if version != here[name]]
    if other:
        name = other[0]
        raise ResultsError(
            f"{results}: was compared with {name} {record['versions'][name]}, here is "
            f"{here[name]}. Finish it with the versions that it was begun with."
        )
    with open_results(results, record, restart=False) as folder:
        if folder.is_done():
            folder.discard_parts()
            return folder.results()
        missing = folder.pending()
        if missing:
            raise UnfinishedError(
                f"{results}: {len(missing)} of {len(record['units'])} units of work are not done. "
                f"{_what_to_run(shares_of(path), missing)}, then `wdecomp finish` again."
            )
        return make_tables(folder)


def missing_shares(known: Sequence[Share], missing: Iterable[int]) -> list[Share]:
    """The shares that have something left to do; none if it is not known how it was shared out."""
    counts = {share.count for share in known}
    if len(counts) != 1:
        return []
    (count,) = counts
    return [Share(index, count) for index in sorted({unit % count for unit in missing})]


def _what_to_run(known: Sequence[Share], missing: Iterable[int]) -> str:
    shares = [f"--part {share}" for share in missing_shares(known, missing)]
    return f"Run again: {some(shares, NAMED)}" if shares else "Give the same command again"


def _comparison_in(path: Path) -> dict[str, Any]:
    """The record of the comparison that a folder holds.

    Raises:
        ResultsError: it has none, or one of another schema.
    """
    results = Results(path)
    check_schema(results)
    units, versions_there = results.run.get("units"), results.run.get("versions")
    if not isinstance(units, list) or not units or not isinstance(versions_there, dict):
        raise ResultsError(f"{path}: holds no comparison, expected what `compare --part` leaves.")
    return results.run
