"""One safetensors file, written by position into a file of its final size.

The format: 8 bytes of little-endian length, that many bytes of JSON (spaces at its end to a
multiple of 8), then the tensors' bytes without holes.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from wdecomp.checkpoint import LoadedTensor, PlainTensor, QuantizedTensor, open_elements
from wdecomp.dtypes import BITS, Array
from wdecomp.errors import CheckpointError
from wdecomp.merging.records import Rounding, Written
from wdecomp.merging.weights import Block, merged_blocks
from wdecomp.remote import RemotePath

COPIED = 4 << 20  # bytes of a tensor that is copied, at a time
ALIGNED = 8

OnBytes = Callable[[int], None]


def write_tensors(path: Path, items: Iterable[Written], on_bytes: OnBytes) -> Rounding:
    """Writes a new file and flushes it to the disk; what rounding did to its weights.

    Tensors of wide dtypes come first, so that each lies at a multiple of its element's size.

    Raises:
        OSError: it cannot be written.
        CheckpointError: what it is made of cannot be read.
        AdapterError: what it is made of is not finite.
    """
    ordered = sorted(items, key=lambda item: -BITS[item.dtype])
    header = header_of(ordered)
    ends = list(accumulate((item.nbytes for item in ordered), initial=len(header)))
    rounding = Rounding()
    with _new_file(path, ends[-1]) as descriptor:
        _put(descriptor, header, 0)
        for item, start in zip(ordered, ends, strict=False):
            if item.is_copy:
                _copy(descriptor, item.source, start, on_bytes)
            else:
                rounding += _form(descriptor, item, start, on_bytes)
        os.fsync(descriptor)
    return rounding


def header_of(items: Iterable[Written]) -> bytes:
    """The length and the JSON before the tensors, which follow one another in this order."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for item in items:
        start, end = end, end + item.nbytes
        shape = list(item.shape)
        entries[item.name] = {"dtype": item.dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNED)
    return len(text).to_bytes(8, "little") + text


@contextmanager
def _new_file(path: Path, size: int) -> Iterator[int]:
    """A file whose room on the disk is there before anything is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size)
        else:
            os.ftruncate(descriptor, size)
        yield descriptor
    finally:
        os.close(descriptor)


def _form(descriptor: int, item: Written, start: int, on_bytes: OnBytes) -> Rounding:
    total = Rounding()
    for block in merged_blocks(item):
        total += block.rounding
        _put_block(descriptor, block, start, item.turned)
        on_bytes(block.rows.nbytes)
    return total


def _put_block(descriptor: int, block: Block, start: int, turned: bool) -> None:
    height, columns = block.rows.shape
    size = block.rows.itemsize
    start += block.plane * block.size * columns * size
    if not turned:
        _put(descriptor, _bytes(block.rows), start + block.first * columns * size)
        return
    across = _bytes(block.rows.T).reshape(columns, height * size)
    for column in range(columns):
        _put(descriptor, across[column], start + (column * block.size + block.first) * size)


def _bytes(numbers: Array) -> Array:
    return np.ascontiguousarray(numbers).reshape(-1).view(np.uint8)


def _put(descriptor: int, data: bytes | Array, at: int) -> None:
    left = np.frombuffer(data, np.uint8).data
    while left:
        done = os.pwrite(descriptor, left, at)
        left, at = left[done:], at + done


def _copy(descriptor: int, tensor: Any, start: int, on_bytes: OnBytes) -> None:
    assert not isinstance(tensor, QuantizedTensor)
    for first, data in _stored_bytes(tensor):
        _put(descriptor, data, start + first)
        on_bytes(len(data))


def _stored_bytes(tensor: PlainTensor) -> Iterator[tuple[int, bytes | Array]]:
    """A tensor's bytes in pieces, each with its position in the tensor."""
    pieces = range(0, tensor.nbytes, COPIED)
    if isinstance(tensor, LoadedTensor):
        for first in pieces:
            yield first, _bytes(tensor.numbers)[first : first + COPIED]
        return
    if isinstance(tensor.file, RemotePath):
        with open_elements(tensor) as elements:
            for first in pieces:
                block = np.empty(min(COPIED, tensor.nbytes - first), np.uint8)
                elements.fill(block, first)
                yield first, block
        return
    try:
        with tensor.file.open("rb", buffering=0) as stream:
            for first in pieces:
                wanted = min(COPIED, tensor.nbytes - first)
                data = os.pread(stream.fileno(), wanted, tensor.offset + first)
                if len(data) < wanted:
                    raise CheckpointError(
                        f"{tensor.file}: ended while {tensor.name!r} was read. "
                        "The file was changed: merge again when it is complete."
                    )
                yield first, data
    except OSError as error:
        raise CheckpointError(
            f"{tensor.file}: tensor {tensor.name!r} cannot be read ({error.strerror})."
        ) from None
