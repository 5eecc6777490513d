"""Rows of a stored tensor, plain or quantised, as they lie on disk."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from wdecomp.checkpoint.elements import Elements, PlainTensor, open_elements
from wdecomp.checkpoint.quantized import Decoder, QuantizedTensor
from wdecomp.dtypes import Array

Weight = PlainTensor | QuantizedTensor


class Rows(Protocol):
    """The stored rows of one matrix."""

    def fill(self, into: Array, top: int, left: int) -> None:
        """Copies the rectangle of `into`'s shape whose upper left corner is given."""
        ...

    @property
    def sight(self) -> int:
        """Bytes that `view` may show at a time; 0 where all are copied."""
        ...

    def view(self, rows: slice, columns: slice) -> Array | None:
        """A rectangle where it lies in memory, until the next call; None if it must be copied."""
        ...


@contextmanager
def open_rows(weight: Weight, plane: int, shape: tuple[int, int], stop: int) -> Iterator[Rows]:
    """The rows of one plane of a weight, decoded where it is quantised, while its file is open.

    Args:
        weight: what is stored.
        plane: which matrix of a stack; 0 where there is no stack.
        shape: (rows, columns) of a plane.
        stop: none from this row of the plane on will be asked for.
    """
    rows, width = shape
    if isinstance(weight, QuantizedTensor):
        # The planes of a stack that is stored as one matrix stand below one another.
        plane, first = (plane, 0) if len(weight.shape) == 3 else (0, plane * rows)
        with weight.decoder() as decoder:
            yield _Decoded(decoder, plane, first)
        return
    with open_elements(weight) as elements:
        first = plane * rows * width
        yield _Plain(elements, width, first, first + stop * width)


class _Plain:
    def __init__(self, elements: Elements, width: int, first: int, stop: int) -> None:
        self._elements, self._width, self._first, self._stop = elements, width, first, stop
        self._seen = np.empty((0, width))
        self._top = 0  # row of the plane that is the first of `_seen`

    def fill(self, into: Array, top: int, left: int) -> None:
        if into.shape[1] == self._width:
            self._elements.fill(into.reshape(-1), self._first + top * self._width)
            return
        for i, row in enumerate(into):
            self._elements.fill(row, self._first + (top + i) * self._width + left)

    @property
    def sight(self) -> int:
        return self._elements.sight

    def view(self, rows: slice, columns: slice) -> Array | None:
        start, stop = rows.start - self._top, rows.stop - self._top
        if start < 0 or stop > len(self._seen):
            self._seen = np.empty((0, self._width))
            count = (rows.stop - rows.start) * self._width
            first = self._first + rows.start * self._width
            found = self._elements.view(first, count, self._stop)
            if found is None:
                return None
            full = found.size // self._width
            self._seen, self._top = found[: full * self._width].reshape(full, -1), rows.start
            start, stop = 0, rows.stop - rows.start
        return self._seen[start:stop, columns]


@dataclass(frozen=True)
class _Decoded:
    decoder: Decoder
    plane: int
    first: int  # row of the decoder's that is the first of the matrix

    def fill(self, into: Array, top: int, left: int) -> None:
        height, width = into.shape
        top += self.first
        rows = self.decoder.rows(self.plane, slice(top, top + height))
        into[:] = rows[:, left : left + width]

    @property
    def sight(self) -> int:
        return 0

    def view(self, rows: slice, columns: slice) -> None:
        return None
