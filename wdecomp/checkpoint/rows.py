"""Rows of a stored tensor, plain or quantised, as they lie on disk."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from wdecomp.checkpoint.elements import Elements, PlainTensor, open_elements
from wdecomp.checkpoint.quantized import Decoder, QuantizedTensor
from wdecomp.dtypes import Array

Weight = PlainTensor | QuantizedTensor


class Rows(Protocol):
    """The stored rows of one matrix."""

    def fill(self, into: Array, top: int, left: int) -> None:
        """Copies the rectangle of `into`'s shape whose upper left corner is given."""
        ...

    def view(self, rows: slice, columns: slice) -> Array | None:
        """A rectangle where it lies in memory, until the next call; None if it must be copied."""
        ...


@contextmanager
def open_rows(weight: Weight, plane: int, shape: tuple[int, int]) -> Iterator[Rows]:
    """The rows of one plane of a weight, decoded where it is quantised, while its file is open.

    Args:
        weight: what is stored.
        plane: which matrix of a stack; 0 where there is no stack.
        shape: (rows, columns) of a plane.
    """
    if isinstance(weight, QuantizedTensor):
        with weight.decoder() as decoder:
            yield _Decoded(decoder, plane)
        return
    rows, width = shape
    with open_elements(weight) as elements:
        yield _Plain(elements, width, first=plane * rows * width)


@dataclass(frozen=True)
class _Plain:
    elements: Elements
    width: int
    first: int  # element of the plane

    def fill(self, into: Array, top: int, left: int) -> None:
        if into.shape[1] == self.width:
            self.elements.fill(into.reshape(-1), self.first + top * self.width)
            return
        for i, row in enumerate(into):
            self.elements.fill(row, self.first + (top + i) * self.width + left)

    def view(self, rows: slice, columns: slice) -> Array | None:
        first, count = self.first + rows.start * self.width, (rows.stop - rows.start) * self.width
        found = self.elements.view(first, count)
        return None if found is None else found.reshape(-1, self.width)[:, columns]


@dataclass(frozen=True)
class _Decoded:
    decoder: Decoder
    plane: int

    def fill(self, into: Array, top: int, left: int) -> None:
        height, width = into.shape
        rows = self.decoder.rows(self.plane, slice(top, top + height))
        into[:] = rows[:, left : left + width]

    def view(self, rows: slice, columns: slice) -> None:
        return None
