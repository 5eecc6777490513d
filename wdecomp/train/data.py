"""What a training set on disk holds, row by row, and the order in which a run sees it. No torch.

    .txt     lm: every line that is not blank is a text of its own
    .jsonl   an object in every line that is not blank
    .json    one list of objects, or lines as in .jsonl

An object has the fields of one task; others beside them are left alone:

    pairs     anchor and positive, query and document, text1 and text2, or sentence1 and sentence2
    classify  text and label (a text or a whole number)
    lm        text; or prompt and completion, where the loss is of the completion only
"""

import hashlib
import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal

from wdecomp.errors import TrainingError, some

Task = Literal["pairs", "classify", "lm"]

# In each task, the fields that a row must have, in the order in which they are looked for.
FIELDS: dict[Task, tuple[tuple[str, ...], ...]] = {
    "classify": (("text", "label"),),
    "pairs": (
        *(("anchor", "positive"), ("query", "document")),
        *(("text1", "text2"), ("sentence1", "sentence2")),
    ),
    "lm": (("prompt", "completion"), ("text",)),
}
SUFFIXES = (".txt", ".jsonl", ".json")


@dataclass(frozen=True)
class Row:
    """One row of the training set.

    Attributes:
        where: its file and line, for messages.
        texts: two of pairs, one to classify, a text or a prompt and its completion for lm.
        label: of `classify`, as a text.
    """

    where: str
    texts: tuple[str, ...]
    label: str | None = None


@dataclass(frozen=True)
class Dataset:
    """All rows of a file.

    Attributes:
        task: what is learnt from them.
        rows: in the file's order.
        labels: of `classify`, in the order of the model's outputs.
        sha256: of the file.
    """

    task: Task
    rows: list[Row]
    labels: tuple[str, ...]
    sha256: str


def read_dataset(file: Path, task: Task | Literal["auto"] = "auto") -> Dataset:
    """The rows of a training set.

    Raises:
        TrainingError: the file is none, is empty, or a row has not what its task needs.
    """
    content = _content(file)
    objects = list(_objects(file, content))
    if not objects:
        raise TrainingError(f"{file}: has no rows, one at least was expected.")
    chosen = _task_of(*objects[0]) if task == "auto" else task
    rows = [_row(where, value, chosen) for where, value in objects]
    labels = _labels(file, rows) if chosen == "classify" else ()
    return Dataset(chosen, rows, labels, hashlib.sha256(content).hexdigest())


def batches(rows: int, batch: int, seed: int) -> Iterator[list[int]]:
    """Row numbers, a batch at a time and epoch after epoch, without an end.

    The order is a function of the seed and the epoch alone. An epoch has ⌈rows/batch⌉ batches,
    whose sizes differ by 1 at most: in a small last one, rows would weigh more than in others.
    """
    parts = math.ceil(rows / batch)
    for epoch in count():
        order = epoch_order(rows, seed, epoch)
        for i in range(parts):
            yield order[i * rows // parts : (i + 1) * rows // parts]


def epoch_order(rows: int, seed: int, epoch: int) -> list[int]:
    """The row numbers in the order in which one epoch sees them."""
    order = list(range(rows))
    random.Random(f"{seed} {epoch}").shuffle(order)
    return order


def _content(file: Path) -> bytes:
    if file.suffix not in SUFFIXES:
        raise TrainingError(
            f"{file}: is a {file.suffix or 'nameless'} file, {' or '.join(SUFFIXES)} was expected."
        )
    try:
        return file.read_bytes()
    except OSError as error:
        raise TrainingError(f"{file}: cannot be read ({error.strerror}).") from None


def _objects(file: Path, content: bytes) -> Iterator[tuple[str, Any]]:
    """Where each row stands, and what stands there."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise TrainingError(
            f"{file}:{number}: is not UTF-8 (byte {content[error.start]:#04x}). Convert the file."
        ) from None
    if file.suffix == ".json" and text.lstrip().startswith("["):
        yield from _list(file, text)
        return
    # Not splitlines: JSON may hold other line separators within a text.
    for number, line in enumerate(text.split("\n"), 1):
        where = f"{file}:{number}"
        if line.strip():
            plain = file.suffix == ".txt"
            yield where, {"text": line.strip()} if plain else _parsed(where, line.strip())


def _list(file: Path, text: str) -> Iterator[tuple[str, Any]]:
    """The items of a JSON list with their lines, which json.loads would not tell."""
    value = _parsed(str(file), text)
    decoder, at, line = json.JSONDecoder(), text.index("[") + 1, 1
    seen = 0
    for _ in value:
        while text[at] in " \t\r\n,":
            at += 1
        line += text.count("\n", seen, at)
        seen = at
        item, at = decoder.raw_decode(text, at)
        yield f"{file}:{line}", item


def _parsed(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f", line {error.lineno}" if error.lineno > 1 else ""
        raise TrainingError(f"{where}: is not JSON ({error.msg}{line}, {error.colno}).") from None
    except (ValueError, RecursionError) as error:
        raise TrainingError(f"{where}: is not JSON ({error}).") from None


def _task_of(where: str, value: Any) -> Task:
    """The task that the fields of the first row are for."""
    keys = set(value) if isinstance(value, dict) else set()
    found: list[Task] = [
        task for task, sets in FIELDS.items() if any(keys.issuperset(each) for each in sets)
    ]
    # A label beside a pair may say that its texts do not belong together.
    if not found or (found[0] == "pairs" and "label" in keys):
        raise TrainingError(
            f"{where}: has {_fields(value)}, expected {_wanted(*FIELDS)}. "
            "Rename the fields, or choose one with --task."
        )
    return found[0]


def _row(where: str, value: Any, task: Task) -> Row:
    keys = set(value) if isinstance(value, dict) else set()
    names = next((each for each in FIELDS[task] if keys.issuperset(each)), None)
    if names is None:
        raise TrainingError(f"{where}: has {_fields(value)}, expected {_wanted(task)} ({task}).")
    texts = tuple(_text(where, name, value[name]) for name in names if name != "label")
    label = _label(where, value["label"]) if task == "classify" else None
    return Row(where, texts, label)


def _text(where: str, name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise TrainingError(f"{where}: {name} is {_short(value)}, a text was expected.")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise TrainingError(f"{where}: {name} has half a surrogate pair, a text was expected.")
    return value


def _label(where: str, value: Any) -> str:
    if not isinstance(value, (str, int)) or value == "":
        raise TrainingError(
            f"{where}: label is {_short(value)}, a text or a whole number was expected."
        )
    return str(value)


def _labels(file: Path, rows: list[Row]) -> tuple[str, ...]:
    """Every label once: numbers in their order, else texts in theirs."""
    found = {row.label for row in rows if row.label is not None}
    if len(found) < 2:
        raise TrainingError(
            f"{file}: has the label {some(sorted(found))} alone, two at least were expected."
        )
    if all(label.isdecimal() for label in found):
        return tuple(sorted(found, key=int))
    return tuple(sorted(found))


def _fields(value: Any) -> str:
    if not isinstance(value, dict):
        return f"a {type(value).__name__}"
    return f"the fields {some(list(value), 5)}" if value else "no fields"


def _wanted(*tasks: Task) -> str:
    return " or ".join(" and ".join(names) for task in tasks for names in FIELDS[task])


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else f"{shown[:40]}…"
