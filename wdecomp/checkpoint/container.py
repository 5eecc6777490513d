"""From a path to a checkpoint: which files of a folder hold its weights, and what they hold.

A folder is read through its index or its one weights file, never by globbing: repositories ship
the same weights twice, in other layouts, beside the ones that are meant.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

from wdecomp.checkpoint import strict_json
from wdecomp.checkpoint.header import ShardFile, StoredTensor, read_header
from wdecomp.errors import CheckpointError, some

FULL = ("model.safetensors", "diffusion_pytorch_model.safetensors")
ADAPTER = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
INDEX_SUFFIX = ".index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".distcp")
STEP = re.compile(r"checkpoint-([0-9]{1,18})")  # tables hold a step in 64 bits


@dataclass(frozen=True)
class Checkpoint:
    """The weights of one run at one step: an index of stored tensors, nothing read yet."""

    path: Path
    tensors: dict[str, StoredTensor]
    shards: tuple[ShardFile, ...]
    config: dict[str, Any] = field(default_factory=dict)  # the model's config.json
    adapter_config: dict[str, Any] | None = None  # present for an adapter
    left_out: tuple[tuple[str, str], ...] = ()  # (tensor, reason)

    @property
    def model_type(self) -> str | None:
        """What transformers calls the architecture, where a config says so."""
        value = self.config.get("model_type")
        return value if isinstance(value, str) else None


def steps_of(path: Path) -> list[tuple[int | None, Path]]:
    """The checkpoints under a path with their steps; one without a step if it is itself one.

    A folder of `checkpoint-N/` folders, as transformers' Trainer leaves it, is a run whose
    steps are the N. Weights beside those folders belong to no known step and are not read.

    Raises:
        CheckpointError: nothing is there, or two folders are of one step.
    """
    with _readable(path):
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


def weights_beside_steps(path: Path) -> list[str]:
    """Weights files of a run's own folder, which are of no known step and are not read."""
    if steps_of(path)[0][1] == path:
        return []
    return [name for name in (*FULL, *(f + INDEX_SUFFIX for f in FULL), ADAPTER)
            if (path / name).is_file()]  # fmt: skip


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a folder, an index or a safetensors file, from its headers alone.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    with _readable(path):
        file = path if path.is_file() else _weights_file(path)
        return _open(path, file)


def _open(path: Path, file: Path) -> Checkpoint:
    folder = file.parent
    if file.name.endswith(INDEX_SUFFIX):
        tensors, shards, left_out = _read_sharded(file)
    else:
        header = read_header(file)
        tensors, shards, left_out = header.tensors, (header.shard,), ()
    adapter_config = _adapter_config(file) if _is_adapter(tensors, file) else None
    return Checkpoint(path, tensors, shards, _config(folder), adapter_config, left_out)


def is_there(path: Path) -> bool:
    """Whether there is a file or folder; what cannot be one or be looked for is not there."""
    try:
        return path.exists()
    except OSError:  # a name too long for a file, a folder that may not be searched
        return False


def is_adapter(path: Path) -> bool:
    """Whether the weights that would be read at a path are an adapter's, judged by file name."""
    first = steps_of(path)[0][1]
    return (first.name if first.is_file() else _weights_file(first).name) == ADAPTER


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from None


def _is_adapter(tensors: dict[str, StoredTensor], file: Path) -> bool:
    return file.name == ADAPTER or any(".lora_A." in name for name in tensors)


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"  # has an Infinity in it for Mamba-2 and its kin
    return strict_json.read_object(file, finite=False) if file.exists() else {}


def _adapter_config(file: Path) -> dict[str, Any]:
    beside = file.parent / ADAPTER_CONFIG
    if not beside.exists():
        raise CheckpointError(
            f"{file}: holds an adapter, and there is no {ADAPTER_CONFIG} beside it. "
            "Its scaling is not known without one."
        )
    return strict_json.read_object(beside)


def _weights_file(folder: Path) -> Path:
    """The file to open in a folder; a single file goes before an index, as in transformers."""
    full = [folder / name for stem in FULL for name in (stem, stem + INDEX_SUFFIX)]
    here = [file for file in full if file.is_file()]
    adapter = folder / ADAPTER
    if here and adapter.is_file():
        raise CheckpointError(
            f"{folder}: holds a model ({here[0].name}) and an adapter ({ADAPTER}). "
            "Name the file that is meant."
        )
    if adapter.is_file():
        return adapter
    if not here:
        raise CheckpointError(f"{folder}: no weights found. {_what_is_there(folder)}")
    return here[0]


def _what_is_there(folder: Path) -> str:
    looked = f"Looked for {', '.join(FULL)}, their {INDEX_SUFFIX}, and {ADAPTER}."
    names = sorted(child.name for child in folder.iterdir())
    pickled = [name for name in names if name.endswith(PICKLED)]
    if pickled:
        return (
            f"{looked} {some(pickled)} may run code when opened: load the model where you trust "
            "it and save it with save_pretrained(..., safe_serialization=True)."
        )
    safetensors = [name for name in names if name.endswith(".safetensors")]
    if safetensors:
        return f"{looked} To read {some(safetensors)}, name the file itself."
    return looked


def _read_sharded(
    index: Path,
) -> tuple[dict[str, StoredTensor], tuple[ShardFile, ...], tuple[tuple[str, str], ...]]:
    shard_of = _weight_map(index)
    headers = {name: read_header(index.parent / name) for name in sorted(set(shard_of.values()))}
    missing = [t for t, shard in shard_of.items() if t not in headers[shard].tensors]
    if missing:
        raise CheckpointError(
            f"{index}: lists {some(missing)} in {shard_of[missing[0]]}, "
            "which does not hold it. The index belongs to other shards."
        )
    tensors = {name: headers[shard].tensors[name] for name, shard in shard_of.items()}
    left_out = tuple(
        (name, f"in {shard}, but not listed there by {index.name}")
        for shard, header in headers.items()
        for name in header.tensors
        if shard_of.get(name) != shard
    )
    return tensors, tuple(header.shard for header in headers.values()), left_out


def _weight_map(index: Path) -> dict[str, str]:
    shard_of = strict_json.read_object(index).get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of:
        raise CheckpointError(f"{index}: has no weight_map from tensor names to shards.")
    for tensor, shard in shard_of.items():
        inside = isinstance(shard, str) and shard and "\0" not in shard
        parts = PurePosixPath(shard).parts if inside else ("..",)
        if ".." in parts or PurePosixPath(*parts).is_absolute():
            raise CheckpointError(
                f"{index}: tensor {tensor!r} is in {shard!r}, expected a file in {index.parent}."
            )
        if not (index.parent / shard).is_file():
            raise CheckpointError(
                f"{index}: tensor {tensor!r} is in {shard!r}, which is not there. "
                "The download is incomplete."
            )
    return shard_of
