"""The claim of several processes to one results folder, each to its share of the units.

All hold `.lock` together, so that nobody makes tables meanwhile; each holds a lock of its own in
parts/, which goes with that folder. The first one writes the plan, the others have to find theirs.
"""

import fcntl
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wdecomp.errors import ResultsError, some
from wdecomp.table import files
from wdecomp.table.claim import (
    both,
    busy,
    check_ours,
    locked,
    parts_of,
    remove_rotten,
    settle_drafts,
    unit_of,
    writing,
)

LOCK = re.compile(r"\.lock-(\d+)-of-(\d+)")


@dataclass(frozen=True)
class Share:
    """The units of work of one process among several: unit k is the index's where k mod count is.

    >>> Share(1, 3).of(range(7)), str(Share(1, 3))
    ([1, 4], '1/3')
    """

    index: int
    count: int

    def of(self, units: Iterable[int]) -> list[int]:
        """Those that are its own."""
        return [unit for unit in units if unit % self.count == self.index]

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


@contextmanager
def shared(path: Path, plan: dict[str, Any], share: Share) -> Iterator[None]:
    """Holds a share of a folder's units, beside other processes with other shares of this plan.

    What others are writing, and parts that are not its own, are left as they are.
    """
    with writing(path):
        check_ours(path)
        files.make_folder(path)
        with locked(path / ".lock", busy(path), fcntl.LOCK_SH):
            _adopt_together(path, plan)
            files.make_folder(path / "parts")
            with locked(_lock_of(path, share), _taken(path, share)):
                settle_drafts(path, lambda unit: bool(share.of([unit])))
                remove_rotten(part for part in parts_of(path) if share.of([unit_of(part)]))
                files.sync(path)
                yield


def refuse_taken(path: Path, share: Share) -> None:
    """That a share may be begun, as far as can be told at once; `share_folder` makes sure.

    Raises:
        ResultsError: the folder holds something else, or another process has it or this share.
    """
    with writing(path):
        check_ours(path)
        own = _lock_of(path, share)
        for lock, said, kind in (
            (path / ".lock", busy(path), fcntl.LOCK_SH),
            (own, _taken(path, share), fcntl.LOCK_EX),
        ):
            if lock.exists():
                with locked(lock, said, kind):
                    pass


def shares_of(path: Path) -> list[Share]:
    """The shares that a folder's units were ever done in."""
    found = (LOCK.fullmatch(file.name) for file in (path / "parts").glob(".lock-*"))
    return sorted((Share(int(m[1]), int(m[2])) for m in found if m), key=lambda s: s.index)


def _lock_of(path: Path, share: Share) -> Path:
    return path / "parts" / f".lock-{share.index}-of-{share.count}"


def _taken(path: Path, share: Share) -> str:
    return f"{path}: another wdecomp is doing --part {share} there."


def _adopt_together(path: Path, plan: dict[str, Any]) -> None:
    """Writes the plan, or finds that whoever came first has written the same."""
    written = path / "run.json"
    if not written.exists():
        draft = path / f"run.json.tmp-{os.getpid()}-{os.urandom(4).hex()}"
        files.commit_json(draft, plan)
        try:
            os.link(draft, written)  # unlike a rename it never replaces another's
        except FileExistsError:
            pass
        except OSError:  # a file system without links; the marks of parts tell plans apart
            draft.replace(written)
        finally:
            draft.unlink(missing_ok=True)
        files.sync(path)
    before, after = both(written, plan)
    if before != after:
        raise ResultsError(
            f"{path}: other parts have another plan ({some(differences(before, after))}). All "
            "parts need the same arguments, paths, files and versions; else choose another --out."
        )


def differences(there: Any, here: Any, name: str = "") -> list[str]:
    """Where two records differ, with both values.

    >>> differences({"base": {"path": "/a"}}, {"base": {"path": "/b"}})
    ["base.path is '/a' there and '/b' here"]
    """
    if there == here:
        return []
    if isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        there, here = dict(enumerate(there)), dict(enumerate(here))
    if not isinstance(there, dict) or not isinstance(here, dict):
        return [f"{name} is {_short(there)} there and {_short(here)} here"]
    below = f"{name}." if name else ""
    return [
        line
        for key in sorted(there.keys() | here.keys())
        for line in differences(there.get(key), here.get(key), f"{below}{key}")
    ]


def _short(value: Any) -> str:
    if isinstance(value, list | dict):
        return f"{len(value)} entries"
    said = repr(value)
    return said if len(said) < 80 else f"{said[:38]}…{said[-38:]}"
