"""What pairing finds: matrices side by side, and what has no partner, with the reason."""

from dataclasses import dataclass, field

from wdecomp.adapter import Adapted, OnOtherBase
from wdecomp.checkpoint import Matrix
from wdecomp.names import Place


@dataclass(frozen=True)
class Pair:
    """A base matrix and what stands beside it in one tuned checkpoint.

    parameter: the base's name, with the part in brackets where it is one of several in a tensor;
        for a head tied to the base's embedding, the tuned one's.
    tuned_name: the name, or the first key, under which the tuned checkpoint has it.
    why: how it was split or oriented, for humans.
    """

    parameter: str
    place: Place
    base: Matrix
    tuned: Matrix | Adapted | OnOtherBase
    shape: tuple[int, int]  # (outputs, inputs) that both have
    tuned_name: str
    why: str = ""

    @property
    def dtype_tuned(self) -> str:
        """As it is stored; an adapter's is that of its factors."""
        return self.tuned.dtype

    @property
    def nbytes(self) -> int:
        """Bytes to read of the tuned side."""
        return self.tuned.nbytes


@dataclass(frozen=True)
class LeftOut:
    """A tensor that is not compared, or not wholly, and why."""

    tensor: str
    side: str  # "base" or "tuned"
    reason: str


@dataclass(frozen=True)
class Pairing:
    """Every tensor of a base and a tuned checkpoint, accounted for.

    method: as an adapter says, else "full".
    dialect: who wrote the adapter, "" for a full checkpoint.
    notes: what a reader of the results has to know.
    """

    method: str
    dialect: str = ""
    notes: tuple[str, ...] = ()
    matrices: dict[str, Pair] = field(default_factory=dict)
    vectors: dict[str, Pair] = field(default_factory=dict)  # 1-D: their relative change only
    left_out: list[LeftOut] = field(default_factory=list)
