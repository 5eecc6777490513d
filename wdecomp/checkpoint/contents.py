"""What the weights file of a checkpoint holds: one file, or the shards of an index."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from wdecomp.checkpoint import advice, strict_json
from wdecomp.checkpoint.elements import PlainTensor
from wdecomp.checkpoint.filenames import is_index, is_pickled, is_state
from wdecomp.checkpoint.header import ShardFile, read_header
from wdecomp.errors import CheckpointError, some
from wdecomp.remote import RemotePath, at_once

NO_NAME = re.compile(r"[%?#\\:]")  # in the name of a shard that is elsewhere: may lead astray


@dataclass(frozen=True)
class Contents:
    """Tensors by name, the files they are in, what was left out and why, and writers' notes."""

    tensors: dict[str, PlainTensor]
    shards: tuple[ShardFile, ...]
    left_out: tuple[tuple[str, str], ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)


def read_contents(file: Path, allow_pickle: bool) -> Contents:
    """What a weights file or an index of shards holds.

    Raises:
        CheckpointError: it is damaged, or pickled and that is not allowed.
    """

    def read(one: Path) -> Contents:
        return _pickled(one, allow_pickle) if is_pickled(one) else _safetensors(one)

    if not is_index(file):
        return read(file)
    if is_pickled(file) and not allow_pickle:
        raise CheckpointError(advice.pickled(file))
    return _sharded(file, read)


def _safetensors(file: Path) -> Contents:
    header = read_header(file)
    return Contents({**header.tensors}, (header.shard,), (), header.metadata)


def _pickled(file: Path, allow_pickle: bool) -> Contents:
    if is_state(file):
        raise CheckpointError(advice.state(file))
    if file.suffix == ".distcp":
        raise CheckpointError(advice.distributed(file.parent, file.parent))
    if not allow_pickle:
        raise CheckpointError(advice.pickled(file))
    if isinstance(file, RemotePath):
        raise CheckpointError(
            f"{file}: is pickled, and is opened on this disk alone. Download it and name the copy."
        )
    from wdecomp.checkpoint.pickled import load_pickled

    found = load_pickled(file)
    return Contents({**found.tensors}, (found.shard,), found.left_out)


def _sharded(index: Path, read: Callable[[Path], Contents]) -> Contents:
    shard_of = _weight_map(index)
    names = sorted(set(shard_of.values()))
    files = [index.parent / name for name in names]
    far = isinstance(index, RemotePath)
    held = dict(zip(names, at_once(read, files) if far else map(read, files), strict=True))
    missing = [t for t, shard in shard_of.items() if t not in held[shard].tensors]
    if missing:
        raise CheckpointError(
            f"{index}: lists {some(missing)} in {shard_of[missing[0]]}, "
            "which does not hold it. The index belongs to other shards."
        )
    return Contents(
        {name: held[shard].tensors[name] for name, shard in shard_of.items()},
        tuple(file for each in held.values() for file in each.shards),
        _unlisted(index, shard_of, held),
        {key: text for each in held.values() for key, text in each.metadata.items()},
    )


def _unlisted(
    index: Path, shard_of: dict[str, str], held: dict[str, Contents]
) -> tuple[tuple[str, str], ...]:
    unlisted = [
        (name, f"in {shard}, but not listed there by {index.name}")
        for shard, contents in held.items()
        for name in contents.tensors
        if shard_of.get(name) != shard
    ]
    return (*unlisted, *(gone for contents in held.values() for gone in contents.left_out))


def _weight_map(index: Path) -> dict[str, str]:
    shard_of = strict_json.read_object(index).get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of:
        raise CheckpointError(f"{index}: has no weight_map from tensor names to shards.")
    there: dict[str, bool] = {}
    for tensor, shard in shard_of.items():
        inside = isinstance(shard, str) and shard and "\0" not in shard
        inside = inside and not (isinstance(index, RemotePath) and NO_NAME.search(shard))
        parts = PurePosixPath(shard).parts if inside else ("..",)
        if ".." in parts or PurePosixPath(*parts).is_absolute():
            raise CheckpointError(
                f"{index}: tensor {tensor!r} is in {shard!r}, expected a file in {index.parent}."
            )
        there.setdefault(shard, True)
    _ask_for(index.parent, there)
    for tensor, shard in shard_of.items():
        if not there[shard]:
            raise CheckpointError(
                f"{index}: tensor {tensor!r} is in {shard!r}, which is not there. "
                "The download is incomplete."
            )
    return shard_of


def _ask_for(folder: Path, there: dict[str, bool]) -> None:
    """Whether each of these files is there; all at once where asking takes a while."""
    names = list(there)
    files = [folder / name for name in names]
    found = at_once(_is_file, files) if isinstance(folder, RemotePath) else map(_is_file, files)
    there.update(zip(names, found, strict=True))


def _is_file(path: Path) -> bool:
    """Whether there is such a file; one whose name is none is not there."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        if isinstance(path, RemotePath):  # a server that is down says nothing of its files
            raise
        return False
