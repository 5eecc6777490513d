"""What every quantised weight is to the floors above: a shape, and rows decoded on demand."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from wdecomp.checkpoint.elements import PlainTensor
from wdecomp.dtypes import Array


class Decoder(Protocol):
    """The rows of one quantised weight while its file is open."""

    def rows(self, plane: int, rows: slice) -> Array:
        """(rows, columns) in float32, of one plane of a stack (0 where there is no stack)."""
        ...


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """One weight that is stored as codes, scales and what else its scheme has.

    name: of the weight, as it would be called unquantised: `…q_proj.weight`.
    dtype: the scheme, as tables show it: NF4, FP4, INT8, FP8, INT4, MXFP4, GPTQ4, AWQ4.
    shape: (rows, columns) of what the decoder gives, a stack's planes before them.
    input_first: whether its rows are inputs; None where they are what the unquantised weight's are.
    parts: the stored tensors that it is made of, by their role.
    decoder: opens its files; gives its rows for as long as the context lasts.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    input_first: bool | None
    parts: Mapping[str, PlainTensor]
    decoder: Callable[[], AbstractContextManager[Decoder]]

    @property
    def nbytes(self) -> int:
        """Bytes of all its parts."""
        return sum(part.nbytes for part in self.parts.values())

    @property
    def file(self) -> Path:
        """The file of its codes, for messages."""
        return next(iter(self.parts.values())).file
