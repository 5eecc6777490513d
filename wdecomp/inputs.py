"""What the user named on the command line or in a call: labelled paths and filters."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from wdecomp.checkpoint import STEP, is_there, runs_under, weights_beside_steps
from wdecomp.errors import CheckpointError, PairingError, WdecompError
from wdecomp.names import Place
from wdecomp.remote import RemotePath, is_hub_id, is_url, remote_path

MOST_LAYERS = 10_000
LABEL = re.compile(r"[\w+@-][\w.+@ -]{0,79}")
LABELLED = re.compile(r"(?P<name>[^:=/]+)(?::(?P<method>[^:=/]+))?=(?P<path>.+)", re.DOTALL)


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


def named_path(text: str) -> Path:
    """The path that a text names: here, by a URL elsewhere, or by its name on the hub.

    An empty text names none, not the folder one is in.

    Raises:
        CheckpointError: the text is empty, or a URL that is not understood or cannot be reached.
        MissingExtraError: the packages for the protocol of a URL are not there.
    """
    path = new_path(text)
    if is_url(text):
        return remote_path(text)
    if not is_hub_id(text) or is_there(path) or is_there(path.parent):
        return path
    return _on_hub(text)


def new_path(text: str) -> Path:
    """The path of what is to be made, from a text that is no URL.

    Raises:
        CheckpointError: the text is empty.
    """
    if not text:
        raise CheckpointError(
            "'': is an empty path, expected a folder or file. Name one ('.' is where you are)."
        )
    return Path(text)


def base_path(text: str) -> Path | None:
    """Where the base is that an adapter's config names; None if that is nowhere.

    Raises:
        CheckpointError: it is the name of a model on the hub, and that cannot be read.
        MissingExtraError: it is one, and the package for the hub is not there.
    """
    if "\0" in text or is_url(text):  # a stranger's config does not say where to go
        return None
    if is_there(Path(text)):
        return Path(text)
    if not is_hub_id(text):
        return None
    try:
        return _on_hub(text)
    except WdecompError as error:
        raise type(error)(
            f"{error} It is what an adapter's config names. Name the base first: "
            "wdecomp compare BASE TUNED…"
        ) from None


_said: set[str] = set()


def _on_hub(text: str) -> Path:
    try:
        path = remote_path(f"hf://{text}")
    except WdecompError as error:
        said = f"{text}: there is no such file or folder here, and on the hub: {error}"
        raise type(error)(said) from None
    if text not in _said:
        from wdecomp.progress import aside

        _said.add(text)
        aside(f"{text}: no such folder here, so the hub's is read: {path}", shown=True)
    return path


def parse_tuned(text: str) -> list[Tuned]:
    """The runs that `PATH`, `NAME=PATH` or `NAME:METHOD=PATH` names: one, or one for each adapter.

    Raises:
        CheckpointError: there is no such path, or its name cannot be a label.
    """
    here = is_url(text) or is_there(new_path(text))
    labelled = None if here else LABELLED.fullmatch(text)
    path = named_path(labelled["path"] if labelled else text)
    label, method = (labelled["name"], labelled["method"]) if labelled else (None, None)
    runs, unread = runs_under(path), weights_beside_steps(path)
    tuned = []
    for own, steps in runs.items():
        name = own or _label(path, steps)  # of an adapter that has one, its own
        if label is not None:
            name = label if len(runs) == 1 or not own else f"{label}.{own}"
        tuned.append(Tuned(_checked(name, path), method, steps, unread))
    return tuned


def joined(runs: Iterable[Tuned]) -> list[Tuned]:
    """The runs, steps of one run that were named one by one as that run; no two of one name.

    Raises:
        PairingError: two runs of one name could not be told apart.
    """
    seen: dict[str, Tuned] = {}
    for run in runs:
        other = seen.get(run.name)
        if other and not _one_run(other, run):
            raise PairingError(
                f"{run.steps[0][1]} and {other.steps[0][1]} would both be run {run.name!r}. "
                "Name them: NAME=PATH."
            )
        steps = sorted((*(other.steps if other else ()), *run.steps), key=lambda s: s[0] or 0)
        seen[run.name] = replace(run, steps=steps)
    return list(seen.values())


def _one_run(one: Tuned, other: Tuned) -> bool:
    """Whether two are different steps of one run: checkpoint-N folders of one folder."""
    steps = [*one.steps, *other.steps]
    return (
        len({step for step, _ in steps} - {None}) == len(steps)
        and len({_run_folder(path) for _, path in steps}) == 1
        and one.method == other.method
    )


def _run_folder(path: Path) -> tuple[Path, str]:
    """The folder that has the checkpoint-N, and the adapter's name below it."""
    full = path.resolve()
    below = "" if STEP.fullmatch(full.name) else full.name
    return (full.parent if below == "" else full.parent.parent), below


def _checked(name: str, path: Path) -> str:
    if LABEL.fullmatch(name):
        return name
    raise CheckpointError(
        f"{path}: {name!r} cannot be a run's name (letters, digits and ._+@- can). "
        "Give it one: NAME=PATH."
    )


def _label(path: Path, steps: list[tuple[int | None, Path]]) -> str:
    """The folder's name; that of the run's folder for a single `checkpoint-N/`."""
    folder = path.resolve()
    single_step = len(steps) == 1 and steps[0] == (steps[0][0], path) and steps[0][0] is not None
    named = folder.parent if single_step else folder
    if isinstance(named, RemotePath) and not named.place.name:  # a repository, with its commit
        return named.name.partition("@")[0]
    return named.name.removesuffix(".safetensors")


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
