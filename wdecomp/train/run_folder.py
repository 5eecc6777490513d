"""The folder of a run: whose it is, what is in its table, and what it was begun with."""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd

from wdecomp.charts.training import training_curves
from wdecomp.checkpoint import open_checkpoint
from wdecomp.errors import TrainingError, some
from wdecomp.table.files import sha256
from wdecomp.train.export import published
from wdecomp.train.holding import BASE
from wdecomp.train.loop import Step

RECORD, TABLE, LIVE = "train.json", "steps.csv", "live"
HEAD = "step,loss,gradient_norm,lr\n"
WEIGHTS = "model_sha256"  # in the record


def claim(out: Path, record: dict[str, Any]) -> None:
    """Makes the folder this run's, or finds that it is.

    Raises:
        TrainingError: it holds another run, or something else.
    """
    present = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    names = [name for name in present if not name.startswith(".partial-")]
    if out.is_file() or (names and RECORD not in names):
        raise TrainingError(
            f"{out}: holds {some(names) or 'a file'}, a new folder or a run of wdecomp train was "
            "expected. Choose another with --out."
        )
    record = json.loads(json.dumps(record))
    if set(names) - {RECORD, BASE, LIVE}:  # something has been trained
        _require_same(out, record)
    else:
        for name in (BASE, LIVE):
            shutil.rmtree(out / name, ignore_errors=True)
    for draft in (*out.glob(".partial-*"), *out.glob("*/.partial-*")):
        shutil.rmtree(draft)  # of a process that was killed
    with published(out) as new:
        (new / RECORD).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


def weights_sha256(folder: Path) -> str:
    """Digest of a model's weights files: of the one there is, else of their digests in order.

    Every byte is read once more: what is trained on other weights is another run.
    """
    files = sorted(shard.path for shard in open_checkpoint(folder).shards)
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(sha256, files))
    joined = "".join(digests).encode()
    return digests[0] if len(digests) == 1 else hashlib.sha256(joined).hexdigest()


def rows_writer(out: Path) -> Callable[[Step], None]:
    """Appends a row to the table for each step, after dropping rows of steps that come again."""
    file = out / TABLE
    begun = False

    def write(step: Step) -> None:
        nonlocal begun
        if not begun:
            lines = file.read_text().splitlines(keepends=True) if file.exists() else []
            with published(out) as draft:
                (draft / TABLE).write_text("".join(lines[: step.step]) or HEAD)
            begun = True
        with file.open("a") as table:
            table.write(_line(step))

    return write


def finish(out: Path, steps: Sequence[Step], title: str) -> None:
    """The whole table, from the loop's own memory, and its picture."""
    with published(out) as draft:
        (draft / TABLE).write_text(HEAD + "".join(map(_line, steps)))
        table = pd.read_csv(draft / TABLE)
        for suffix in (".svg", ".png"):
            training_curves(table, title, draft / f"training{suffix}")


def _line(step: Step) -> str:
    return f"{step.step},{step.loss!r},{step.gradient_norm!r},{step.lr!r}\n"


def _require_same(out: Path, record: dict[str, Any]) -> None:
    try:
        before = json.loads((out / RECORD).read_text(encoding="utf-8"))
        unlike = [key for key in {**record, **before} if before.get(key) != record.get(key)]
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise TrainingError(f"{out / RECORD}: cannot be read ({error}).") from None
    if unlike == [WEIGHTS]:
        raise TrainingError(
            f"{record['model']}: has other weights than when {out} was begun. "
            "Put those back, choose another folder with --out, or remove it to begin anew."
        )
    if unlike:
        key = unlike[0]
        raise TrainingError(
            f"{out}: holds a run with {key} {before.get(key)!r}, this one has {record.get(key)!r}. "
            "Choose another folder with --out, or remove it to begin anew."
        )
