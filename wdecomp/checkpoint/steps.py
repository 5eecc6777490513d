"""The checkpoints under a path: steps of a run, and adapters in folders of their own."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from wdecomp.checkpoint import strict_json
from wdecomp.checkpoint.components import component_folders
from wdecomp.checkpoint.folders import adapter_file, weights_of
from wdecomp.errors import CheckpointError

STEP = re.compile(r"checkpoint-([0-9]{1,18})")  # tables hold a step in 64 bits
# In an adapter_config.json: the same adapter is in the folder above, in another format.
COPY = {"wdecomp_copy_of": ".."}


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Errors of the file system, as errors about a path."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from None


def steps_of(path: Path) -> list[tuple[int | None, Path]]:
    """The checkpoints under a path with their steps; one without a step if it is itself one.

    A folder of `checkpoint-N/` folders, as transformers' Trainer leaves it, is a run whose
    steps are the N. Weights beside those folders belong to no known step and are not read.

    Raises:
        CheckpointError: nothing is there, or two folders are of one step.
    """
    with readable(path):
        if not path.exists():
            raise CheckpointError(f"{path}: there is no such file or folder.")
        if not path.is_dir():
            return [(None, path)]
        found = ((STEP.fullmatch(child.name), child) for child in path.iterdir())
        steps = sorted((int(m[1]), child) for m, child in found if m and child.is_dir())
        for (step, one), (next_step, other) in pairwise(steps):
            if step == next_step:
                raise CheckpointError(
                    f"{path}: {one.name} and {other.name} are both step {step}. Rename one."
                )
        if steps:
            return [*steps]
        named = STEP.fullmatch(path.name)
        return [(int(named[1]) if named else None, path)]


def named_adapters(path: Path) -> dict[str, Path]:
    """PEFT adapters with a name, each in a folder of that name, as `save_pretrained` leaves them.

    A copy of the folder's own adapter is none: DVoRA's `compact/`, which its own path opens.

    Raises:
        CheckpointError: the folder cannot be read.
    """
    with readable(path):
        if not path.is_dir():
            return {}
        own = adapter_file(path)
        children = sorted(child for child in path.iterdir() if not STEP.fullmatch(child.name))
        adapters = [child for child in children if child.is_dir() and adapter_file(child)]
        return {child.name: child for child in adapters if not (own and _is_copy(child))}


def runs_under(path: Path) -> dict[str, list[tuple[int | None, Path]]]:
    """The runs in a folder with their steps: its own under "", named adapters' under their names.

    Raises:
        CheckpointError: nothing is there, or two folders are of one step.
    """
    runs: dict[str, list[tuple[int | None, Path]]] = {}
    for step, folder in steps_of(path):
        adapters = named_adapters(folder)
        with readable(folder):
            if not adapters or weights_of(folder) or component_folders(folder):
                runs.setdefault("", []).append((step, folder))
        for name, own in adapters.items():
            runs.setdefault(name, []).append((step, own))
    return runs


def weights_beside_steps(path: Path) -> list[str]:
    """Weights files of a run's own folder, which are of no known step and are not read."""
    if steps_of(path)[0][1] == path:
        return []
    with readable(path):
        folders = (*component_folders(path), *named_adapters(path))
        return [*weights_of(path), *(f"{name}/" for name in folders)]


def _is_copy(folder: Path) -> bool:
    config = folder / "adapter_config.json"
    return config.is_file() and COPY.items() <= strict_json.read_object(config).items()
