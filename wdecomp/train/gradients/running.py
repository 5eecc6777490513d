"""`wdecomp gradients`: section 4.2 of a model on rows of data, read as `wdecomp train` reads them.

out/modules.parquet, columns.parquet        of `gradient_report`
out/covariance-modules.parquet, -columns    of `covariance_report`, where it was asked for
out/gradients.svg, .png                     the picture of `charts/gradients.py`
out/gradients.json                          what was measured, and the sentences
"""

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm
from transformers import PreTrainedModel

from wdecomp.charts.gradients import gradient_scatter
from wdecomp.errors import TrainingError, some
from wdecomp.train.data import Dataset, Task, batches, read_dataset
from wdecomp.train.export import published
from wdecomp.train.gradients.covariance import FEWEST, covariance_report
from wdecomp.train.gradients.equations import gradient_report
from wdecomp.train.gradients.measuring import Axis, Report
from wdecomp.train.gradients.telling import Measured, record_of
from wdecomp.train.learner import common_targets, load_learner, text_length
from wdecomp.train.loading import load_adapter
from wdecomp.train.tasks import Example, Loss, encode, loss_of

RECORD = "gradients.json"
BATCHES = 32  # where nothing else is asked for; a covariance of fewer is rough


@dataclass(frozen=True)
class Question:
    """What is to be measured. Each field is a flag of the command.

    Attributes:
        model, data, task, max_length, seed: as in `Config` of `wdecomp.train.config`.
        adapter: a folder that `load_adapter` reads, or None.
        targets: last names of modules; none for the adapter's, else the queries and values.
        batches: how many are averaged, each of other rows; None for 32, or all there are.
        batch: rows in each.
        axis: of layers that have no magnitude of their own.
        covariance: whether `covariance_report` is asked for, too.
        columns: of a matrix, that it looks at.
    """

    model: str
    data: str
    adapter: str | None = None
    task: Task | Literal["auto"] = "auto"
    targets: tuple[str, ...] = ()
    batches: int | None = None
    batch: int = 16
    axis: Axis = "output"
    covariance: bool = False
    columns: int = 32
    max_length: int | None = None
    seed: int = 0


def measure(asked: Question, out: str | Path | None = None, progress: bool = False) -> Measured:
    """The reports that are asked for, which `out` then holds.

    Raises:
        WdecompError: model, data, adapter or folder are not what was expected, or there is nothing
            to measure.
    """
    _require_ranges(asked)
    folder = None if out is None else Path(out)
    if folder is not None:
        _require_own(folder)
    dataset = read_dataset(Path(asked.data), asked.task)
    chosen = _chosen(asked, dataset)
    learner = load_learner(Path(asked.model), dataset, asked.seed)
    length = text_length(learner, asked.max_length)
    examples = encode(dataset, learner.tokenizer, length)
    learner.require_known([token for example in examples for token in example.tokens()])
    targets = asked.targets or None
    if asked.adapter is not None:
        load_adapter(learner.model, Path(asked.adapter))
    elif targets is None:
        targets = common_targets(learner.model)
    source = [[examples[i] for i in rows] for rows in chosen]
    loss = loss_of(dataset.task, learner.pad)
    reports = _reports(replace(asked, targets=targets or ()), learner.model, loss, source, progress)
    found = Measured(_record(asked, dataset, targets, len(source), length), *reports)
    if folder is not None:
        _write(folder, found, f"{Path(asked.model).resolve().name} on {Path(asked.data).name}")
    return found


def _reports(
    asked: Question, model: PreTrainedModel, loss: Loss, source: list[list[Example]], progress: bool
) -> tuple[Report, Report | None]:
    """Of the model without dropout; the second one if it is asked for."""
    targets = asked.targets or None
    model.eval()  # type: ignore[no-untyped-call]

    def shown(label: str) -> Iterable[list[Example]]:
        return tqdm(source, label, disable=not progress, leave=False, file=sys.stderr, unit="batch")

    gradients = gradient_report(model, loss, shown("gradients"), targets, asked.axis)
    if not asked.covariance:
        return gradients, None
    again = shown("covariance")
    return gradients, covariance_report(model, loss, again, targets, asked.axis, asked.columns)


def _record(
    asked: Question, dataset: Dataset, targets: Sequence[str] | None, count: int, length: int
) -> dict[str, Any]:
    """What was asked, all defaults resolved."""
    return vars(asked) | {
        "model": str(Path(asked.model).resolve()),
        "adapter": None if asked.adapter is None else str(Path(asked.adapter).resolve()),
        "data": str(Path(asked.data).resolve()),
        "data_sha256": dataset.sha256,
        "task": dataset.task,
        "targets": targets,
        "batches": count,
        "max_length": length,
    }


def _chosen(asked: Question, dataset: Dataset) -> list[list[int]]:
    """Row numbers of each batch; no row is in two of them.

    Raises:
        TrainingError: the data has too few rows for what was asked.
    """
    rows = len(dataset.rows)
    most = -(-rows // asked.batch)
    count = min(BATCHES, most) if asked.batches is None else asked.batches
    fewest = FEWEST if asked.covariance else 1
    advice = f"{asked.data} has {rows} rows: lower --batch or take more of them."
    if count > most:
        raise TrainingError(f"batches: is {count}, at most {most} was expected. {advice}")
    if count < fewest:
        raise TrainingError(
            f"batches: is {count}, at least {fewest} was expected for a covariance. {advice}"
        )
    if dataset.task == "pairs" and rows // most < 2:
        name = "batch" if asked.batch < 2 or rows > 1 else asked.data
        raise TrainingError(f"{name}: leaves 1 pair in a batch, at least 2 were expected.")
    return list(islice(batches(rows, asked.batch, asked.seed), count))


def _require_ranges(asked: Question) -> None:
    lowest = {"batches": 1, "batch": 1, "columns": 1, "max_length": 2, "seed": 0}
    for name, least in lowest.items():
        value = getattr(asked, name)
        if value is not None and value < least:
            raise TrainingError(f"{name}: is {value}, at least {least} was expected.")


def _require_own(folder: Path) -> None:
    """That what is written replaces nothing but what an earlier call wrote.

    Raises:
        TrainingError: the folder holds something else.
    """
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    names = [name for name in names if not name.startswith(".partial-")]
    if (folder.exists() and not folder.is_dir()) or (names and RECORD not in names):
        raise TrainingError(
            f"{folder}: holds {some(names) or 'a file'}, a new folder or one of wdecomp gradients "
            "was expected. Choose another with --out."
        )


def _write(folder: Path, found: Measured, title: str) -> None:
    tables = {"": found.gradients} | (
        {"covariance-": found.covariance} if found.covariance is not None else {}
    )
    with published(folder) as draft:
        for start, report in tables.items():
            report.modules.to_parquet(draft / f"{start}modules.parquet")
            report.columns.to_parquet(draft / f"{start}columns.parquet")
        for suffix in (".svg", ".png"):
            gradient_scatter(found.gradients.columns, title, draft / f"gradients{suffix}")
        text = json.dumps(record_of(found), indent=1) + "\n"
        (draft / RECORD).write_text(text, encoding="utf-8")
        for file in folder.glob("covariance-*.parquet"):
            file.unlink()  # of an earlier call
