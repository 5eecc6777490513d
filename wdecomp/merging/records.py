"""What a merge is to write, and what it has written."""

from dataclasses import dataclass
from math import prod
from pathlib import Path

from wdecomp.checkpoint import QuantizedTensor, Weight
from wdecomp.dtypes import BITS
from wdecomp.pairing import Pair

# What a user may ask for, and what safetensors calls it; None: as the base has each weight.
DTYPES: dict[str, str | None] = {
    "base": None,
    "float32": "F32",
    "bfloat16": "BF16",
    "float16": "F16",
}


@dataclass(frozen=True)
class Written:
    """One tensor of the result.

    name: in its file.
    dtype: as safetensors writes it.
    shape: as it is stored.
    source: where its numbers come from.
    pairs: what an adapter changes of them: all of the tensor, or parts of it.
    turned: the rows of the source are its columns, as packed quantisations have them.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: Weight
    pairs: tuple[Pair, ...] = ()
    turned: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return BITS[self.dtype] * prod(self.shape) // 8

    @property
    def is_copy(self) -> bool:
        """Whether its bytes are those of the source."""
        quantized = isinstance(self.source, QuantizedTensor)
        return not self.pairs and not quantized and self.dtype == self.source.dtype


@dataclass(frozen=True)
class Plan:
    """All that a merge writes.

    files: path below the output folder → its tensors.
    method: as the adapter says.
    dtype: of changed weights, None for the base's.
    decoded: whether quantised weights are written as plain ones.
    untied: whether a head that was the embedding is a tensor of its own now.
    notes: what a user of the result has to know.
    """

    files: dict[Path, list[Written]]
    method: str
    dtype: str | None
    decoded: bool
    untied: bool
    notes: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Of all tensors."""
        return sum(item.nbytes for items in self.files.values() for item in items)


@dataclass(frozen=True)
class Rounding:
    """How much of a change survives in 16 bits.

    moved: weights that the adapter changes.
    lost: those of them that rounding puts back where they were.
    """

    moved: int = 0
    lost: int = 0

    def __add__(self, other: "Rounding") -> "Rounding":
        return Rounding(self.moved + other.moved, self.lost + other.lost)


@dataclass(frozen=True)
class Merged:
    """A merged checkpoint on disk.

    files: with weights.
    nbytes: of all tensors.
    changed: tensors that are not the base's.
    rounding: of weights that are stored in 16 bits.
    """

    path: Path
    method: str
    files: int
    nbytes: int
    changed: int
    rounding: Rounding
    notes: tuple[str, ...]
