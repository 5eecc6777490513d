"""The claim of one process to a results folder: nothing foreign, one writer, one plan.

`.lock` is held by whoever makes tables, alone, or by all processes with a part of the work
together; see `shares.py`.
"""

import fcntl
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wdecomp.errors import ResultsError, some
from wdecomp.table import files
from wdecomp.table.parts import SUFFIX
from wdecomp.table.results import INPUTS_FILE, SPECTRA_FILE

TABLES = ("modules.parquet", "facts.parquet", "fits.parquet")
OURS = {"run.json", "parts", "columns", "DONE.json", ".lock", *TABLES, SPECTRA_FILE, INPUTS_FILE}
PART = re.compile(rf"\d{{6,}}-[0-9a-f]{{16}}-[0-9a-f]{{16}}{re.escape(SUFFIX)}")
TEMPORARY = re.compile(r".+\.tmp-\d+-[0-9a-f]{8}")


@contextmanager
def claimed(path: Path, plan: dict[str, Any], restart: bool) -> Iterator[None]:
    """Holds a folder that is new, or that the same plan was interrupted in; see `open_folder`."""
    with writing(path):
        check_ours(path)
        files.make_folder(path)
        with locked(path / ".lock", busy(path)):
            _adopt(path, plan, restart)
            settle_drafts(path)
            _remove_temporary(path)
            remove_rotten(parts_of(path))
            files.sync(path)  # what a killed process had made and not come to flush
            yield


def refuse_busy(path: Path) -> None:
    """That a folder may be written to, as far as can be told at once; `open_folder` makes sure.

    Raises:
        ResultsError: the folder holds something else, or another process is writing to it.
    """
    with writing(path):
        check_ours(path)
        if (path / ".lock").exists():
            with locked(path / ".lock", busy(path)):
                pass


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Says of which folder it was that it cannot be written."""
    try:
        yield
    except OSError as error:
        raise ResultsError(f"{path}: cannot be written ({error.strerror or error}).") from None


def check_ours(path: Path) -> None:
    """That nothing in a folder is foreign.

    Raises:
        ResultsError: something is.
    """
    if not str(path).isprintable():  # Arrow takes no name that is not UTF-8
        raise ResultsError(f"{str(path)!r}: cannot be a folder's name. Choose another with --out.")
    if not path.exists():
        return
    if not path.is_dir():
        raise ResultsError(f"{path}: is a file, expected a folder for the results.")
    names = sorted(child.name for child in path.iterdir())  # before another process adds its plan
    ours = OURS if _is_plan(path / "run.json") else {".lock"}
    foreign = [name for name in names if name not in ours and not TEMPORARY.fullmatch(name)]
    if foreign:
        raise ResultsError(
            f"{path}: holds {some(foreign)}, which is no result of wdecomp. "
            "Choose another folder with --out."
        )


def _is_plan(file: Path) -> bool:
    try:
        plan = json.loads(file.read_bytes())
        return isinstance(plan, dict) and "wdecomp" in plan
    except (OSError, ValueError):
        return False


@contextmanager
def locked(lock: Path, said: str, kind: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Holds a lock, alone or with others; raises `said` where somebody else has it."""
    with lock.open("a+") as held:  # a network file system locks what may be written alone
        try:
            fcntl.flock(held.fileno(), kind | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ResultsError(said) from None
        yield


def busy(path: Path) -> str:
    """What is said where a folder is held."""
    return f"{path}: another wdecomp is writing there."


def _clear(path: Path) -> None:
    """Removes all but the plan: while anything is left, it says that the folder is ours."""
    for child in path.iterdir():
        if child.name in (".lock", "run.json"):
            continue
        if child.is_dir():
            shutil.rmtree(child)
        else:
            child.unlink()
    files.sync(path)  # else a power cut may keep an old DONE.json beside a new plan


def _remove_temporary(path: Path) -> None:
    """What killed processes were writing; whoever holds the folder knows that they are gone."""
    for child in path.rglob("*.tmp-*"):
        if TEMPORARY.fullmatch(child.name):
            child.unlink()


def settle_drafts(path: Path, units: Callable[[int], bool] = lambda _: True) -> None:
    """Parts that killed processes had finished and not come to flush: nothing of them is lost.

    Args:
        path: the results folder.
        units: of which units nobody is at work.
    """
    for draft in sorted((path / "parts").glob("*.tmp-*")):
        name = draft.name.rpartition(".tmp-")[0]
        if PART.fullmatch(name) and TEMPORARY.fullmatch(draft.name) and units(unit_of(draft)):
            if files.is_whole(draft):  # after a power cut it may not be
                files.settle(draft)
            else:
                draft.unlink()


def remove_rotten(parts: Iterable[Path]) -> None:
    """Parts whose content is not what was written: their units are done again."""
    for part in parts:
        if not files.is_whole(part):
            part.unlink()


def parts_of(path: Path) -> list[Path]:
    """The parts that are in a results folder, of whichever plan, in the order of their units."""
    found = (path / "parts").glob(f"*{SUFFIX}")
    return sorted(file for file in found if PART.fullmatch(file.name))


def unit_of(part: Path) -> int:
    """The number of the unit that a part is of."""
    return int(part.name.partition("-")[0])


def _adopt(path: Path, plan: dict[str, Any], restart: bool) -> None:
    """Writes the plan, or finds that it is the one that was written."""
    written = path / "run.json"
    if restart or not written.exists():  # or what a crash left before it had a plan
        _clear(path)
        files.commit_json(written, plan)
        return
    before, after = both(written, plan)
    if before != after:
        keys = [key for key in after if before.get(key) != after[key]]
        raise ResultsError(
            f"{path}: holds results of another run ({some(keys)} differ). "
            "Choose another folder with --out, or --restart to replace them."
        )


def both(written: Path, plan: dict[str, Any]) -> tuple[Any, Any]:
    """The plan that was written, and the one that would be."""
    return json.loads(written.read_bytes()), json.loads(files.canonical(plan))
