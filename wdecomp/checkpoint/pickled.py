"""Tensors out of a pickled file that the user trusted, by torch's loader of tensors alone."""

import hashlib
import re
import stat
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wdecomp.checkpoint.elements import LoadedTensor
from wdecomp.checkpoint.header import ShardFile
from wdecomp.checkpoint.unpickled import NESTED, tensors_in
from wdecomp.errors import CheckpointError, MissingExtraError

OLDEST = (2, 6)  # before it, the loader of tensors alone could be made to run code
ZIP = b"PK\x03\x04"
OTHER_OBJECT = re.compile(r"GLOBAL ([\w.]+) was not")


@dataclass(frozen=True)
class Pickled:
    """The tensors of one pickled file, and whatever else stands in it."""

    tensors: dict[str, LoadedTensor]
    shard: ShardFile
    left_out: tuple[tuple[str, str], ...]


def load_pickled(file: Path) -> Pickled:
    """The tensors of a `torch.save` file, flat or one level down; nothing else is built.

    Raises:
        CheckpointError: it cannot be loaded as tensors, or holds none.
        MissingExtraError: torch is not installed, or is too old to be trusted with this.
    """
    torch = _torch(file)
    status = _regular(file)
    value = _load(torch, file)
    if not isinstance(value, Mapping):
        raise CheckpointError(
            f"{file}: holds a {type(value).__name__}, expected tensors by name, "
            f"or such under {', '.join(NESTED)}. Save the model's state_dict."
        )
    tensors, left_out = tensors_in(torch, file, value)
    if not tensors:
        raise CheckpointError(
            f"{file}: holds no tensors by name that can be read, neither at the top nor under "
            f"{', '.join(NESTED)}. Save the model's state_dict."
        )
    described = repr([(t.name, t.dtype, t.shape) for t in tensors.values()])
    digest = hashlib.sha256(described.encode("utf-8", "surrogatepass")).hexdigest()
    shard = ShardFile(file, status.st_size, status.st_mtime_ns, digest, status.st_ctime_ns)
    return Pickled(tensors, shard, tuple(left_out))


def _torch(file: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise MissingExtraError(
            f"{file}: is pickled, and torch is not installed. Install it: pip install 'torch>=2.6'"
        ) from None
    if tuple(int(n) for n in re.findall(r"\d+", torch.__version__)[:2]) < OLDEST:
        raise MissingExtraError(
            f"{file}: is pickled, and torch is {torch.__version__}, whose loader of tensors alone "
            "can be made to run code. Install torch>=2.6."
        )
    return torch


def _regular(file: Path) -> Any:
    try:
        status = file.stat()
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror}).") from None
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{file}: is not a regular file.")
    return status


def _load(torch: Any, file: Path) -> Any:
    try:
        with file.open("rb") as stream:
            is_zip = stream.read(4) == ZIP
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(str(file), map_location="cpu", weights_only=True, mmap=is_zip)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror or error}).") from None
    except Exception as error:  # noqa: BLE001  # a stranger's bytes fail in any way
        raise CheckpointError(f"{file}: {_what_failed(error)}") from None


def _what_failed(error: Exception) -> str:
    """One line of our own: torch's says how to run whatever code is in the file."""
    if "TorchScript" in str(error):
        return "is a TorchScript archive, expected a state_dict. Save the model's state_dict."
    other = OTHER_OBJECT.search(str(error))
    if other:
        return (
            f"holds a {other[1]} beside its tensors, which may run code and was not loaded. "
            "Save only the tensors, as safetensors, where you trust the file."
        )
    return (
        f"cannot be loaded as tensors alone ({type(error).__name__}). "
        "It is damaged, or no file of torch.save: fetch it again."
    )
