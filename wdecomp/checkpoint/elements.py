"""The numbers of one tensor by their position in it: the one function that reads bytes of weights.

A tensor's bytes are in a file, or in memory where a pickle had to be loaded. Whatever stands above
(matrices, factors, decoders of quantised weights) asks for elements and does not know which.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from math import prod
from pathlib import Path
from typing import Protocol

import numpy as np

from wdecomp.checkpoint.header import StoredTensor
from wdecomp.dtypes import RAW, Array
from wdecomp.errors import CheckpointError


@dataclass(frozen=True, eq=False)
class LoadedTensor:
    """One tensor of a pickled file that the user trusted: its numbers are mapped or in memory.

    numbers: flat, in row-major order, as `RAW` types them.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    numbers: Array

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers."""
        return self.numbers.nbytes


PlainTensor = StoredTensor | LoadedTensor


class Elements(Protocol):
    """The elements of one tensor, in row-major order."""

    def fill(self, into: Array, first: int) -> None:
        """Copies as many elements as `into` (1-D, contiguous) has, from the `first` on."""
        ...


@contextmanager
def open_elements(tensor: PlainTensor) -> Iterator[Elements]:
    """The elements of a tensor for as long as its file is open.

    Raises:
        CheckpointError: the file cannot be read, or has become shorter than its header said.
    """
    if isinstance(tensor, LoadedTensor):
        yield _InMemory(tensor)
        return
    try:
        stream = tensor.file.open("rb", buffering=0)
    except OSError as error:
        raise CheckpointError(f"{tensor.file}: cannot be read ({error.strerror}).") from None
    with stream:
        yield _InFile(tensor, stream)


def read_whole(tensor: PlainTensor) -> Array:
    """A small tensor (a factor of an adapter, a scale, a vector) in its own shape, as stored."""
    numbers = np.empty(prod(tensor.shape), RAW[tensor.dtype])
    with open_elements(tensor) as elements:
        elements.fill(numbers, 0)
    return numbers.reshape(tensor.shape)


@dataclass(frozen=True)
class _InMemory:
    tensor: LoadedTensor

    def fill(self, into: Array, first: int) -> None:
        into[:] = self.tensor.numbers[first : first + into.size]


@dataclass(frozen=True)
class _InFile:
    tensor: StoredTensor
    stream: FileIO

    def fill(self, into: Array, first: int) -> None:
        tensor, left = self.tensor, into.view(np.uint8).data
        try:
            self.stream.seek(tensor.offset + first * into.itemsize)
            while left:
                got = self.stream.readinto(left)
                if not got:
                    raise CheckpointError(
                        f"{tensor.file}: ended while {tensor.name!r} was read. "
                        "The file was changed: run again when it is complete."
                    )
                left = left[got:]
        except OSError as error:
            raise CheckpointError(
                f"{tensor.file}: tensor {tensor.name!r} cannot be read ({error.strerror})."
            ) from None
