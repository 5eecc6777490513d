"""Which file of a folder holds its weights, or what to say where none does.

A folder is read through its index or its one weights file, never by globbing: repositories ship
the same weights twice, in other layouts, beside the ones that are meant.
"""

import re
import stat
from pathlib import Path

from wdecomp.checkpoint import advice
from wdecomp.checkpoint.filenames import (
    ADAPTERS,
    ADAPTERS_PICKLED,
    FULL,
    FULL_PICKLED,
    PICKLED,
    SHARD,
)
from wdecomp.errors import CheckpointError, some

MOST_LOOKED_AT = 100_000  # files of a folder


def weights_file(folder: Path, allow_pickle: bool) -> Path | None:
    """The file or index to open in a folder, None if nothing in it has a name that is known.

    A single file goes before an index, as in transformers; a plain one before a variant; what is
    safetensors before what is pickled.

    Raises:
        CheckpointError: several are there and none goes before the others.
    """
    full, adapters = full_files(folder, FULL, "safetensors"), _there(folder, ADAPTERS)
    if allow_pickle and not full and not adapters:
        full = full_files(folder, FULL_PICKLED, "bin")
        adapters = _there(folder, ADAPTERS_PICKLED)
    if full and adapters:
        raise CheckpointError(
            f"{folder}: holds a model ({full[0].name}) and an adapter ({adapters[0].name}). "
            "Name the file that is meant."
        )
    if len(full) > 1 or len(adapters) > 1:
        names = [file.name for file in full or adapters]
        raise CheckpointError(
            f"{folder}: holds {' and '.join(names)}. Name the file that is meant."
        )
    return next(iter(full or adapters), None)


def full_files(folder: Path, stems: tuple[str, ...], suffix: str) -> list[Path]:
    """The one file of a full model that goes before all others, or all the variants there are."""
    plain = [f"{stem}.{suffix}{index}" for stem in stems for index in ("", ".index.json")]
    first = _there(folder, tuple(plain))[:1]
    if first or not folder.is_dir():
        return first
    variants: dict[str, Path] = {}
    for stem in stems:
        of_stem = _variants(folder, stem, suffix)
        variants = variants or of_stem
    return [variants[name] for name in sorted(variants)]


def has_weights(folder: Path) -> bool:
    """Whether a full model's weights are in a folder, pickled or not."""
    return bool(full_files(folder, FULL, "safetensors") or full_files(folder, FULL_PICKLED, "bin"))


def adapter_file(folder: Path) -> Path | None:
    """The file of a folder that is a PEFT adapter by its name, pickled or not."""
    names = ("adapter_model.safetensors", "adapter_model.bin")
    return next(iter(_there(folder, names)), None)


def weights_of(folder: Path) -> list[str]:
    """The names of all that would be read in a folder if nothing else were there."""
    full = full_files(folder, FULL, "safetensors") or full_files(folder, FULL_PICKLED, "bin")
    adapters = _there(folder, ADAPTERS) or _there(folder, ADAPTERS_PICKLED)
    return [file.name for file in (*full, *adapters)]


def no_weights(folder: Path, allow_pickle: bool) -> str:
    """Why there is nothing to open in a folder, and what to do about it."""
    names = sorted(child.name for child in folder.iterdir())[:MOST_LOOKED_AT]
    for inner in (folder, *(folder / n for n in names if (folder / n).is_dir())):
        if advice.is_distributed(inner):
            return advice.distributed(folder, inner)
    if advice.is_deepspeed(folder):
        return advice.deepspeed(folder)
    pickled = _pickled(folder, names)
    if pickled and allow_pickle:
        return f"{folder}: no weights of a known name found. To read {pickled}, name the file."
    if pickled:
        return f"{folder}: no weights found that run no code. {advice.pickled(folder / pickled)}"
    return f"{folder}: no weights found. {_looked(folder, names)}"


def what_else(path: Path) -> str | None:
    """What stands under a name if it is no file: a folder, a pipe, a link to nothing."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "is a link to nothing: the download is incomplete" if path.is_symlink() else None
    if stat.S_ISREG(mode):
        return None
    return "is a folder, expected a file" if stat.S_ISDIR(mode) else "is a pipe or device, no file"


def _looked(folder: Path, names: list[str]) -> str:
    for name in (*(f"{stem}.safetensors" for stem in FULL), *ADAPTERS):
        wrong = what_else(folder / name)
        if wrong:
            return f"{name} {wrong}."
    safetensors = [name for name in names if name.endswith(".safetensors")]
    shards = [n for n in names if SHARD.search(n) and n.endswith((".safetensors", *PICKLED))]
    if shards:
        return f"{some(shards)} are shards, and there is no index of them. Fetch it too."
    if safetensors:
        return f"To read {some(safetensors)}, name the file itself."
    stems = ", ".join(f"{stem}[.VARIANT].safetensors" for stem in FULL)
    return f"Looked for {stems}, their index, {', '.join(ADAPTERS)}, and folders of a pipeline."


def _pickled(folder: Path, names: list[str]) -> str | None:
    """The pickled file that most likely holds the weights: one of a known name before others."""
    known = (*full_files(folder, FULL_PICKLED, "bin"), *_there(folder, ADAPTERS_PICKLED))
    others = [n for n in names if n.endswith(PICKLED) and (folder / n).is_file()]
    return next(iter((*(file.name for file in known), *advice.convertible(others))), None)


def _there(folder: Path, names: tuple[str, ...]) -> list[Path]:
    return [folder / name for name in names if (folder / name).is_file()]


def _variants(folder: Path, stem: str, suffix: str) -> dict[str, Path]:
    """By variant, `model.fp16.safetensors`, or `model.safetensors.index.fp16.json`."""
    file = re.compile(rf"{stem}\.([\w-]+)\.{suffix}")
    index = re.compile(
        rf"{stem}\.{suffix}\.index\.([\w-]+)\.json|{stem}\.([\w-]+)\.{suffix}\.index\.json"
    )
    found: dict[str, Path] = {}
    for pattern in (index, file):
        for child in folder.iterdir():
            named = pattern.fullmatch(child.name)
            if named and child.is_file() and not SHARD.search(child.name):
                found[next(filter(None, named.groups()))] = child
    return found
