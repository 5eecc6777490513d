"""The claim of one process to a results folder: nothing foreign, one writer, one plan."""

import fcntl
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wdecomp.errors import ResultsError, some
from wdecomp.table import files
from wdecomp.table.results import INPUTS_FILE, SPECTRA_FILE

TABLES = ("modules.parquet", "facts.parquet", "fits.parquet")
OURS = {"run.json", "parts", "columns", "DONE.json", ".lock", *TABLES, SPECTRA_FILE, INPUTS_FILE}
PART = re.compile(r"\d{6,}-[0-9a-f]{16}-[0-9a-f]{16}\.parquet")
TEMPORARY = re.compile(r".+\.tmp-\d+-[0-9a-f]{8}")


@contextmanager
def claimed(path: Path, plan: dict[str, Any], restart: bool) -> Iterator[None]:
    """Holds a folder that is new, or that the same plan was interrupted in; see `open_folder`."""
    with _writing(path):
        _check_ours(path)
        files.make_folder(path)
        with (path / ".lock").open("w") as lock:
            _hold(lock.fileno(), path)
            _adopt(path, plan, restart)
            _remove_temporary(path)
            _remove_rotten(path)
            files.sync(path)  # what a killed process had made and not come to flush
            yield


def refuse_busy(path: Path) -> None:
    """That a folder may be written to, as far as can be told at once; `open_folder` makes sure.

    Raises:
        ResultsError: the folder holds something else, or another process is writing to it.
    """
    with _writing(path):
        _check_ours(path)
        if (path / ".lock").exists():
            with (path / ".lock").open("rb") as lock:
                _hold(lock.fileno(), path)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ResultsError(f"{path}: cannot be written ({error.strerror or error}).") from None


def _check_ours(path: Path) -> None:
    if not str(path).isprintable():  # Arrow takes no name that is not UTF-8
        raise ResultsError(f"{str(path)!r}: cannot be a folder's name. Choose another with --out.")
    if not path.exists():
        return
    if not path.is_dir():
        raise ResultsError(f"{path}: is a file, expected a folder for the results.")
    ours = OURS if _is_plan(path / "run.json") else {".lock"}
    names = sorted(child.name for child in path.iterdir())
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


def _hold(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ResultsError(f"{path}: another wdecomp is writing there.") from None


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


def _remove_rotten(path: Path) -> None:
    """Parts whose content is not what was written: their units are done again."""
    for part in parts_of(path):
        if not files.is_whole(part):
            part.unlink()


def parts_of(path: Path) -> list[Path]:
    """The parts that are in a results folder, of whichever plan, in the order of their units."""
    found = (path / "parts").glob("*.parquet")
    return sorted(file for file in found if PART.fullmatch(file.name))


def _adopt(path: Path, plan: dict[str, Any], restart: bool) -> None:
    """Writes the plan, or finds that it is the one that was written."""
    written = path / "run.json"
    if restart or not written.exists():  # or what a crash left before it had a plan
        _clear(path)
        files.commit_json(written, plan)
        return
    before = json.loads(written.read_bytes())
    after = json.loads(files.canonical(plan))
    if before != after:
        keys = [key for key in after if before.get(key) != after[key]]
        raise ResultsError(
            f"{path}: holds results of another run ({some(keys)} differ). "
            "Choose another folder with --out, or --restart to replace them."
        )
