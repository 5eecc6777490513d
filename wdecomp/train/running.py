"""`wdecomp train`: a model, a training set and a configuration made into a run.

    out/train.json               what the run is, all defaults resolved
    out/steps.csv                a row for each step: step, loss, gradient_norm, lr
    out/training.svg, .png       its curves, when it is finished
    out/checkpoint-N, out/training.state    as the loop writes them

The same call again goes on where an interrupted one stopped, and ends with the same bytes.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from wdecomp.charts.training import training_curves
from wdecomp.errors import TrainingError, some
from wdecomp.train.config import (
    OF_ADAPTERS,
    PEAK_LR,
    Config,
    adapters_of,
    planned_steps,
    saved_steps,
)
from wdecomp.train.data import Dataset, batches, read_dataset
from wdecomp.train.export import published
from wdecomp.train.learner import Learner, common_targets, load_learner, text_length
from wdecomp.train.loop import Settings, Step, train
from wdecomp.train.tasks import encode, loss_of

RECORD, TABLE = "train.json", "steps.csv"
HEAD = "step,loss,gradient_norm,lr\n"


def run_training(config: Config, progress: bool = True) -> list[Step]:
    """Every step of the run that `config` asks for, which its folder then holds.

    Raises:
        TrainingError: model, data or folder are not what was expected, or the training fails.
    """
    out, folder = Path(config.out), Path(config.model)
    dataset = read_dataset(Path(config.data), config.task)
    _require_partners(config, dataset)
    learner = load_learner(folder, dataset, config.seed)
    length = text_length(learner, config.max_length)
    examples = encode(dataset, learner.tokenizer, length)
    learner.require_known([token for example in examples for token in example.tokens()])
    targets: Sequence[str] = ()
    if config.method != "full":
        targets = config.targets or common_targets(learner.model)
    settings = _settings(config, targets, len(examples), learner, progress)
    claim(out, _record(config, dataset, settings, targets, length))
    order = batches(len(examples), config.batch, config.seed)
    source = ([examples[i] for i in rows] for rows in order)
    loss = loss_of(dataset.task, learner.pad)
    steps = train(learner.model, source, loss, settings, out, rows_writer(out))
    _finish(out, steps, f"{config.method} on {folder.resolve().name}")
    return steps


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
    if set(names) - {RECORD}:  # something has been trained
        _require_same(out, record)
    for draft in (*out.glob(".partial-*"), *out.glob("checkpoint-*/.partial-*")):
        shutil.rmtree(draft)  # of a process that was killed
    with published(out) as new:
        (new / RECORD).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


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


def _finish(out: Path, steps: Sequence[Step], title: str) -> None:
    """The whole table, from the loop's own memory, and its picture."""
    with published(out) as draft:
        (draft / TABLE).write_text(HEAD + "".join(map(_line, steps)))
        table = pd.read_csv(draft / TABLE)
        for suffix in (".svg", ".png"):
            training_curves(table, title, draft / f"training{suffix}")


def _line(step: Step) -> str:
    return f"{step.step},{step.loss!r},{step.gradient_norm!r},{step.lr!r}\n"


def _settings(
    config: Config, targets: Sequence[str], rows: int, learner: Learner, progress: bool
) -> Settings:
    steps = planned_steps(config, rows)
    return Settings(
        method=config.method,
        base_name=str(Path(config.model).resolve()),
        lr=PEAK_LR[config.method] if config.lr is None else config.lr,
        steps=steps,
        save_steps=saved_steps(config, steps),
        adapters=adapters_of(config, targets),
        modules_to_save=() if config.method == "full" else learner.heads,
        weight_decay=config.weight_decay,
        warmup=config.warmup,
        schedule=config.schedule,
        accumulate=config.accumulate,
        clip=config.clip,
        seed=config.seed,
        progress=progress,
    )


def _record(
    config: Config, dataset: Dataset, settings: Settings, targets: Sequence[str], length: int
) -> dict[str, Any]:
    """All that the run depends on; not its folder, which may be moved."""
    unused = {"out", "epochs", *(OF_ADAPTERS if config.method == "full" else ())}
    asked = {key: value for key, value in vars(config).items() if key not in unused}
    found = {
        "model": settings.base_name,
        "data": str(Path(config.data).resolve()),
        "data_sha256": dataset.sha256,
        "rows": len(dataset.rows),
        "task": dataset.task,
        "lr": settings.lr,
        "steps": settings.steps,
        "save_at": settings.save_steps,
        "max_length": length,
    }
    return asked | found | ({"targets": targets} if config.method != "full" else {})


def _require_same(out: Path, record: dict[str, Any]) -> None:
    try:
        before = json.loads((out / RECORD).read_text(encoding="utf-8"))
        unlike = [key for key in {**record, **before} if before.get(key) != record.get(key)]
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise TrainingError(f"{out / RECORD}: cannot be read ({error}).") from None
    if unlike:
        key = unlike[0]
        raise TrainingError(
            f"{out}: holds a run with {key} {before.get(key)!r}, this one has {record.get(key)!r}. "
            "Choose another folder with --out, or remove it to begin anew."
        )


def _require_partners(config: Config, dataset: Dataset) -> None:
    """The other pairs of a batch are what a pair is told from."""
    fewest = min(config.batch, len(dataset.rows))
    if dataset.task == "pairs" and fewest < 2:
        name = "batch" if config.batch < 2 else config.data
        raise TrainingError(f"{name}: is of 1 pair, at least 2 were expected.")
