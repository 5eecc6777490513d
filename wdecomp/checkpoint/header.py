"""The header of one safetensors file, read strictly and without opening the file twice.

The format: 8 bytes of little-endian length, that many bytes of JSON, then the tensors' bytes,
which cover the rest of the file without holes or overlaps.
"""

import hashlib
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wdecomp.checkpoint import strict_json
from wdecomp.dtypes import BITS
from wdecomp.errors import CheckpointError
from wdecomp.remote import RemotePath, remember

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
FIRST_BYTES = 128 << 10  # of a file that is elsewhere: most headers are in them
TENSOR_KEYS = {"dtype", "shape", "data_offsets"}

# What people rename to .safetensors, by its first bytes.
IMPOSTORS = (
    (b"version https://git-lfs", "a git-lfs pointer: run `git lfs pull`"),
    (b"GGUF", "a GGUF file, which wdecomp does not read"),
    (b"PK\x03\x04", "a zip, as torch.save writes it: save it as safetensors"),
    (b"\x80", "a pickle, which wdecomp does not open: save it as safetensors"),
    (b"<", "a web page: the download failed"),
)


@dataclass(frozen=True)
class StoredTensor:
    """One tensor on disk: where its bytes are and how they are to be read."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int  # of the first byte, from the start of the file
    nbytes: int


@dataclass(frozen=True)
class ShardFile:
    """One file of weights as it was when it was opened.

    ctime_ns: when its content, its name or its mode last changed, which nobody can set.
    etag: of a file that is elsewhere, where times are 0: what tells its content from another.
    """

    path: Path
    size: int
    mtime_ns: int
    header_sha256: str
    ctime_ns: int
    etag: str = ""


@dataclass(frozen=True)
class Header:
    """What one safetensors file says it holds."""

    shard: ShardFile
    tensors: dict[str, StoredTensor]
    metadata: dict[str, str] = field(default_factory=dict)  # what its writer noted


def read_header(file: Path) -> Header:
    """Every tensor of a safetensors file, from its header alone.

    Raises:
        CheckpointError: the file cannot be read or breaks a rule of the format; the message
            names the file, and the tensor where there is one.
    """
    text, shard = _far_header(file) if isinstance(file, RemotePath) else _near_header(file)
    if not text.startswith(b"{"):
        raise CheckpointError(f"{file}: the header starts with {text[:1]!r}, expected '{{'.")
    entries = strict_json.parse(text, f"{file}: header")
    metadata = _metadata(entries.pop("__metadata__", {}), file)
    data_start = 8 + len(text)
    tensors = {name: _tensor(name, entry, file, data_start) for name, entry in entries.items()}
    _check_coverage(list(tensors.values()), file, data_start, shard.size)
    if isinstance(file, RemotePath):
        remember(file, [(each.offset, each.offset + each.nbytes) for each in tensors.values()])
    return Header(shard, tensors, metadata)


def _near_header(file: Path) -> tuple[bytes, ShardFile]:
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{file}: is not a regular file.")
        with file.open("rb") as stream:
            start = stream.read(8)
            length = int.from_bytes(start, "little")
            if not _is_length(start, length, status.st_size):
                raise _no_header(file, start + stream.read(32), length, status.st_size)
            text = stream.read(length)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror}).") from None
    if len(text) < length:
        raise CheckpointError(f"{file}: ends inside its header.")
    digest, times = _digest(text), (status.st_mtime_ns, status.st_ctime_ns)
    return text, ShardFile(file, status.st_size, times[0], digest, times[1])


def _far_header(file: RemotePath) -> tuple[bytes, ShardFile]:
    """One request in most cases, a second for a long header."""
    try:
        entry = file.entry()
        start = file.fetch(0, min(entry.size, FIRST_BYTES))
        length = int.from_bytes(start[:8], "little")
        if not _is_length(start[:8], length, entry.size):
            raise _no_header(file, start, length, entry.size)
        text = start[8 : 8 + length] + file.fetch(len(start), 8 + length)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror}).") from None
    return text, ShardFile(file, entry.size, 0, _digest(text), 0, entry.etag)


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def _is_length(start: bytes, length: int, size: int) -> bool:
    return len(start) == 8 and 0 < length <= min(MAX_HEADER_BYTES, size - 8)


def _no_header(file: Path, first: bytes, length: int, size: int) -> CheckpointError:
    for magic, what in IMPOSTORS:
        if first.startswith(magic):
            return CheckpointError(f"{file}: is not safetensors but {what}.")
    return CheckpointError(
        f"{file}: has {size:,} bytes and a header length of {length:,}, expected at most "
        f"{min(MAX_HEADER_BYTES, max(size - 8, 0)):,}. The file is truncated or not safetensors."
    )


def _metadata(metadata: Any, file: Path) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"{file}: __metadata__ is not a map of strings to strings.")
    return metadata


def _tensor(name: str, entry: Any, file: Path, data_start: int) -> StoredTensor:
    where = f"{file}: tensor {name!r}"
    if not isinstance(entry, dict) or entry.keys() != TENSOR_KEYS:
        raise CheckpointError(f"{where}: expected exactly the keys dtype, shape, data_offsets.")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise CheckpointError(f"{where}: dtype is {dtype!r}, expected one of {', '.join(BITS)}.")
    if not _are_sizes(shape):
        raise CheckpointError(f"{where}: shape is {shape!r}, expected a list of sizes.")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{where}: data_offsets is {offsets!r}, expected [begin, end].")
    bits, nbytes = _bits(shape, dtype, where), offsets[1] - offsets[0]
    if bits != 8 * nbytes:
        raise CheckpointError(
            f"{where}: {dtype} of shape {tuple(shape)} has {bits / 8:,.0f} bytes, "
            f"data_offsets give {nbytes:,}."
        )
    return StoredTensor(name, dtype, tuple(shape), file, data_start + offsets[0], nbytes)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _bits(shape: list[int], dtype: str, where: str) -> int:
    """The size of a tensor; no product on the way to it may overflow, even if a 0 comes last."""
    bits = BITS[dtype]
    for size in shape:
        bits *= size
        if bits >= 2**64:
            raise CheckpointError(f"{where}: its sizes multiply to more than 64 bits can count.")
    return bits


def _check_coverage(tensors: list[StoredTensor], file: Path, start: int, size: int) -> None:
    end = start
    for tensor in sorted(tensors, key=lambda t: (t.offset, t.nbytes)):
        if tensor.offset != end:
            raise CheckpointError(
                f"{file}: tensor {tensor.name!r} begins at byte {tensor.offset:,}, expected "
                f"{end:,}: tensors neither overlap nor leave holes."
            )
        end += tensor.nbytes
    if end != size:
        raise CheckpointError(
            f"{file}: has {size:,} bytes, its header describes {end:,}. "
            "The file is truncated or was changed: fetch it again."
        )
