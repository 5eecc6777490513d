"""From a path to a checkpoint: its tensors, where their bytes are, and the configs beside them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from wdecomp.checkpoint import strict_json
from wdecomp.checkpoint.components import MODEL_INDEX, absent_components, component_folders
from wdecomp.checkpoint.contents import read_contents
from wdecomp.checkpoint.filenames import ADAPTERS, adapter_keys, is_adapter_file
from wdecomp.checkpoint.folders import no_weights, weights_file, weights_of, what_else
from wdecomp.checkpoint.quantized import gather
from wdecomp.checkpoint.record import Checkpoint
from wdecomp.checkpoint.rows import Weight
from wdecomp.checkpoint.steps import named_adapters, readable, steps_of
from wdecomp.errors import CheckpointError, some
from wdecomp.remote import RemotePath

ADAPTER_CONFIG = "adapter_config.json"


def open_checkpoint(path: Path, allow_pickle: bool = False) -> Checkpoint:
    """The checkpoint in a folder, an index or a weights file, from its headers alone.

    Args:
        path: the folder or file.
        allow_pickle: open pickled files too, as tensors alone; their numbers are then mapped.

    Raises:
        CheckpointError: there is none, it is damaged, or it is pickled and that is not allowed.
        MissingExtraError: it is pickled, and torch is not there to open it.
    """
    with readable(path):
        if not path.is_dir():
            wrong = what_else(path)
            if wrong:
                raise CheckpointError(f"{path}: {wrong}. Name a checkpoint's folder or file.")
            return _open(path, path, allow_pickle)
        file = weights_file(path, allow_pickle)
        parts = component_folders(path)
        if file is None:
            return _pipeline(path, parts, allow_pickle) if parts else _none(path, allow_pickle)
        return _beside(_open(path, file, allow_pickle), file, parts)


def is_there(path: Path) -> bool:
    """Whether there is a file or folder; what cannot be one or be looked for is not there."""
    try:
        return path.exists()
    except OSError as error:  # a name too long for a file, a folder that may not be searched
        if isinstance(path, RemotePath):
            raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from None
        return False


def is_adapter(path: Path) -> bool:
    """Whether the weights that would be read at a path are an adapter's, judged by file name."""
    first = steps_of(path)[0][1]
    with readable(first):
        file = weights_file(first, allow_pickle=True) if first.is_dir() else first
    if file is None:
        return bool(named_adapters(first))
    return file.name in ADAPTERS or is_adapter_file(file)


def _open(path: Path, file: Path, allow_pickle: bool) -> Checkpoint:
    """One weights file with the configs beside it."""
    contents = read_contents(file, allow_pickle)
    tensors, config = contents.tensors, _config(file.parent)
    adapter = is_adapter_file(file) or bool(adapter_keys(tensors))
    return Checkpoint(
        path,
        dict(tensors) if adapter else gather(tensors, config, str(path)),
        contents.shards,
        config,
        _adapter_config(file) if adapter else None,
        contents.left_out,
        adapter,
        contents.metadata,
    )


def _pipeline(path: Path, folders: Mapping[str, Path], allow_pickle: bool) -> Checkpoint:
    """The components of a pipeline as one checkpoint, and those that cannot be opened."""
    files = {name: weights_file(folder, allow_pickle) for name, folder in folders.items()}
    parts = {n: _open(path, file, allow_pickle) for n, file in files.items() if file is not None}
    if not parts:
        raise CheckpointError(no_weights(next(iter(folders.values())), allow_pickle))
    pickled = [(name, _only_pickled(folders[name])) for name in files if name not in parts]
    return Checkpoint(
        path,
        {t.name: t for name, part in parts.items() for t in _prefixed(name, part)},
        tuple(shard for part in parts.values() for shard in part.shards),
        left_out=(
            *((f"{n}.{t}", reason) for n, part in parts.items() for t, reason in part.left_out),
            *pickled,
            *absent_components(path),
        ),
        is_adapter=any(part.is_adapter for part in parts.values()),
        components={name: part.config for name, part in parts.items()},
    )


def _prefixed(component: str, part: Checkpoint) -> list[Weight]:
    return [replace(tensor, name=f"{component}.{name}") for name, tensor in part.tensors.items()]


def _only_pickled(folder: Path) -> str:
    names = some(weights_of(folder))
    return f"its weights are pickled ({names}), which --allow-pickle opens if you trust them"


def _beside(opened: Checkpoint, file: Path, parts: Mapping[str, Path]) -> Checkpoint:
    """Components in a folder that has weights of its own too: which are meant?"""
    if opened.is_adapter and parts:
        raise CheckpointError(
            f"{opened.path}: holds an adapter ({file.name}) and a pipeline "
            f"({some([f'{name}/' for name in parts])}). Name the file or folder that is meant."
        )
    reason = f"a component beside {file.name}, which was read: name its folder to compare it"
    beside = tuple((f"{name}/", reason) for name in parts)
    return replace(opened, left_out=(*opened.left_out, *beside))


def _none(path: Path, allow_pickle: bool) -> Checkpoint:
    adapters = named_adapters(path)
    if adapters:
        raise CheckpointError(
            f"{path}: holds adapters in folders of their own ({some(list(adapters))}), expected "
            "one checkpoint. Name the one that is meant."
        )
    if (path / MODEL_INDEX).is_file():
        raise CheckpointError(
            f"{path}: no weights found in the folders that {MODEL_INDEX} lists. "
            "The download is incomplete."
        )
    raise CheckpointError(no_weights(path, allow_pickle))


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"  # has an Infinity in it for Mamba-2 and its kin
    return strict_json.read_object(file, finite=False) if file.exists() else {}


def _adapter_config(file: Path) -> dict[str, Any] | None:
    beside = file.parent / ADAPTER_CONFIG
    if beside.exists():
        return strict_json.read_object(beside)
    if not file.name.startswith("adapter_model."):
        return None
    raise CheckpointError(
        f"{file}: holds an adapter, and there is no {ADAPTER_CONFIG} beside it. "
        "Its scaling is not known without one."
    )
