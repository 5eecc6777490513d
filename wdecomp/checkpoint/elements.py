"""The numbers of one tensor by their position in it: the one function that reads bytes of weights.

A tensor's bytes are in a file here or elsewhere, or in memory where a pickle had to be loaded.
Whatever stands above (matrices, factors, decoders of quantised weights) asks for elements and does
not know which.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from math import prod
from os import fstat
from pathlib import Path
from typing import Protocol

import numpy as np

from wdecomp.checkpoint.direct import DirectWindow, DirectWindows
from wdecomp.checkpoint.fingerprint import Span, note
from wdecomp.checkpoint.header import StoredTensor
from wdecomp.checkpoint.mapping import LEAST, Window, window_bytes
from wdecomp.dtypes import RAW, Array
from wdecomp.errors import CheckpointError
from wdecomp.remote import RANGE, OtherContentError, RemotePath, read_into, view_of


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

    @property
    def sight(self) -> int:
        """Bytes that `view` may show at a time; 0 where all are copied."""
        ...

    def view(self, first: int, count: int, stop: int) -> Array | None:
        """At least `count` elements where they lie in memory; None if they must be copied.

        What was returned is good until the next call. None from the element `stop` on will be
        asked for.
        """
        ...


@contextmanager
def open_elements(tensor: PlainTensor) -> Iterator[Elements]:
    """The elements of a tensor for as long as its file is open.

    Raises:
        CheckpointError: the file cannot be read, or has become shorter than its header said.
    """
    if isinstance(tensor, LoadedTensor):
        note(Span(tensor.file, 0, 0, ""))
        yield _InMemory(tensor)
        return
    note(Span(tensor.file, tensor.offset, tensor.nbytes, tensor.name))
    if isinstance(tensor.file, RemotePath):
        yield _Elsewhere(tensor, tensor.file)
        return
    try:
        stream = tensor.file.open("rb", buffering=0)
    except OSError as error:
        raise CheckpointError(f"{tensor.file}: cannot be read ({error.strerror}).") from None
    with stream:
        elements = _InFile(tensor, stream)
        try:
            yield elements
            elements.check()
        finally:
            elements.close()


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

    @property
    def sight(self) -> int:
        return sys.maxsize

    def view(self, first: int, count: int, stop: int) -> Array:
        return self.tensor.numbers[first:]


@dataclass(frozen=True)
class _Elsewhere:
    tensor: StoredTensor
    file: RemotePath

    def fill(self, into: Array, first: int) -> None:
        start, stop = self.tensor.offset, self.tensor.offset + self.tensor.nbytes
        with self._explaining():
            start += first * into.itemsize
            read_into(self.file, start, into.view(np.uint8).data, stop)

    @property
    def sight(self) -> int:
        return RANGE if self.tensor.nbytes >= LEAST else 0

    def view(self, first: int, count: int, stop: int) -> Array | None:
        """What lies within one of the ranges that were fetched."""
        if not self.sight:
            return None
        dtype = np.dtype(RAW[self.tensor.dtype])
        with self._explaining():
            start = self.tensor.offset + first * dtype.itemsize
            found = view_of(self.file, start, count * dtype.itemsize)
        numbers = None if found is None else np.frombuffer(found, dtype)
        return numbers if numbers is not None and numbers.flags.aligned else None

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except OtherContentError as error:
            raise CheckpointError(
                f"{self.file}: {error.strerror}. Give the same command again when it is complete."
            ) from None
        except OSError as error:
            raise CheckpointError(
                f"{self.file}: tensor {self.tensor.name!r} cannot be read ({error.strerror})."
            ) from None


class _InFile:
    def __init__(self, tensor: StoredTensor, stream: FileIO) -> None:
        self._tensor, self._stream = tensor, stream
        end = tensor.offset + tensor.nbytes
        self._direct = DirectWindows(stream.fileno(), tensor.offset, end)
        self._window: Window | DirectWindow | None = None

    def fill(self, into: Array, first: int) -> None:
        left = into.view(np.uint8).data
        try:
            self._stream.seek(self._tensor.offset + first * into.itemsize)
            while left:
                got = self._stream.readinto(left)
                if not got:
                    raise self._ended()
                left = left[got:]
        except OSError as error:
            raise self._unreadable(error.strerror) from None

    @property
    def sight(self) -> int:
        tensor = self._tensor
        aligned = tensor.offset % np.dtype(RAW[tensor.dtype]).itemsize == 0
        return self._width if tensor.nbytes >= LEAST and aligned else 0

    def view(self, first: int, count: int, stop: int) -> Array | None:
        if not self.sight:
            return None
        tensor, dtype = self._tensor, np.dtype(RAW[self._tensor.dtype])
        self.check()
        self._close_window()
        # As many whole blocks as fit, so that none lies across two windows and is mapped twice.
        fitting = count * max(self._width // max(count * dtype.itemsize, 1), 1)
        start, length = (n * dtype.itemsize for n in (first, min(fitting, stop - first)))
        end = tensor.offset + stop * dtype.itemsize
        self._window = self._opened(tensor.offset + start, length, end)
        return self._window.bytes.view(dtype)

    def check(self) -> None:
        """Raises if what the last views showed is not what the file had."""
        if self._window is not None and self._window.damaged:
            short = fstat(self._stream.fileno()).st_size < self._window.stop
            raise self._ended() if short else self._unreadable("input/output error")

    def close(self) -> None:
        """Ends the last views."""
        self._direct.close()
        self._close_window()

    @property
    def _width(self) -> int:
        return self._direct.width or window_bytes()

    def _close_window(self) -> None:
        if self._window is not None:
            self._window.close()
            self._window = None

    def _opened(self, start: int, length: int, stop: int) -> Window | DirectWindow:
        try:
            direct = self._direct.read(start, length, stop)
            return direct or Window(self._stream.fileno(), start, length)
        except ValueError:  # beyond the end of the file
            raise self._ended() from None
        except OSError as error:
            raise self._unreadable(error.strerror) from None

    def _ended(self) -> CheckpointError:
        return CheckpointError(
            f"{self._tensor.file}: ended while {self._tensor.name!r} was read. "
            "The file was changed: run again when it is complete."
        )

    def _unreadable(self, reason: str | None) -> CheckpointError:
        tensor = self._tensor
        return CheckpointError(f"{tensor.file}: tensor {tensor.name!r} cannot be read ({reason}).")
