"""What the user named on the command line or in a call: labelled paths and filters."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from wdecomp.checkpoint import is_there, steps_of, weights_beside_steps
from wdecomp.errors import CheckpointError, PairingError
from wdecomp.names import Place

MOST_LAYERS = 10_000
LABEL = re.compile(r"[\w+@-][\w.+@ -]{0,79}")
LABELLED = re.compile(r"(?P<name>[^:=/]+)(?::(?P<method>[^:=/]+))?=(?P<path>.+)")


@dataclass(frozen=True)
class Tuned:
    """One run as the user named it.

    name: its label in the tables; the folder's name unless the user gave one.
    method: how it was tuned, if the user says so: "full", "lora", "dora", ….
    steps: its checkpoints with their steps; one without a step if it is a single checkpoint.
    unread: weights files beside its checkpoints, of no known step.
    """

    name: str
    method: str | None
    steps: list[tuple[int | None, Path]]
    unread: list[str]


def parse_tuned(text: str) -> Tuned:
    """The run that `PATH`, `NAME=PATH` or `NAME:METHOD=PATH` names.

    Raises:
        CheckpointError: there is no such path, or its name cannot be a label.
    """
    labelled = None if is_there(Path(text)) else LABELLED.fullmatch(text)
    path = Path(labelled["path"] if labelled else text)
    steps = steps_of(path)
    name = labelled["name"] if labelled else _label(path, steps)
    if not LABEL.fullmatch(name):
        raise CheckpointError(
            f"{path}: {name!r} cannot be a run's name (letters, digits and ._+@- can). "
            "Give it one: NAME=PATH."
        )
    return Tuned(name, labelled and labelled["method"], steps, weights_beside_steps(path))


def check_names(runs: Iterable[Tuned]) -> None:
    """Two runs of one name could not be told apart.

    Raises:
        PairingError: there are two.
    """
    seen: dict[str, Path] = {}
    for run in runs:
        path = run.steps[0][1]
        if run.name in seen:
            raise PairingError(
                f"{path} and {seen[run.name]} would both be run {run.name!r}. Name them: NAME=PATH."
            )
        seen[run.name] = path


def _label(path: Path, steps: list[tuple[int | None, Path]]) -> str:
    """The folder's name; that of the run's folder for a single `checkpoint-N/`."""
    folder = path.resolve()
    single_step = len(steps) == 1 and steps[0] == (steps[0][0], path) and steps[0][0] is not None
    return folder.parent.name if single_step else folder.name.removesuffix(".safetensors")


def parse_layers(text: str) -> frozenset[int]:
    """The layers of `0-3,8`.

    >>> sorted(parse_layers("0-3,8"))
    [0, 1, 2, 3, 8]

    Raises:
        ValueError: it is not written that way.
    """
    layers: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        low, high = int(first), int(last or first)
        if not 0 <= low <= high < MOST_LAYERS:
            raise ValueError(f"{part!r} is no range of layers below {MOST_LAYERS}")
        layers.update(range(low, high + 1))
    return frozenset(layers)


def place_filter(
    modules: Iterable[str] | None, layers: Iterable[int] | None
) -> Callable[[Place], bool]:
    """Whether a place is wanted: of one of these module kinds and in one of these layers."""
    kinds = None if modules is None else frozenset(modules)
    indices = None if layers is None else frozenset(layers)
    return lambda at: (
        (kinds is None or at.module in kinds) and (indices is None or at.layer in indices)
    )
