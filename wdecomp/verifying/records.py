"""What is known of a merged checkpoint once its numbers have been gone through."""

from dataclasses import dataclass
from math import isfinite, nan, sqrt
from typing import Literal

# Of a tensor that the adapter changes, and (the last two) of one that it does not.
State = Literal[
    "merged",
    "too-small",
    "not-merged",
    "merged-twice",
    "other-scaling",
    "magnitude-ignored",
    "other-magnitude",
    "unexplained",
    "not-finite",
    "as-base",
    "changed",
]
RIGHT: tuple[State, ...] = ("merged", "too-small", "as-base")


@dataclass(frozen=True)
class Tensor:
    """One matrix or vector of the merged checkpoint beside base + adapter.

    parameter: the base's name.
    dtype: as it is stored; precision: the coarsest dtype that holds its numbers.
    error: root mean square of merged − (W0 + ΔW), in units of what rounding is allowed.
    largest: the same of the weight that is furthest off; over: how many weights are too far off.
    factor: how often ΔW is in it, best fit of c in W0 + c·ΔW (in DoRA, of c·BA beside W0).
    columns, columns_off: how many columns there are, and how many are too far off.
    scaling, rank: as the adapter says.
    base, change, difference: ‖W0‖, ‖ΔW‖, ‖merged − (W0 + ΔW)‖.
    moved: how many weights are not the base's.
    damaged: how many are NaN or infinite, in it alone; broken: because of the adapter.
    """

    parameter: str
    state: State
    dtype: str
    precision: str
    count: int
    error: float = nan
    largest: float = nan
    over: int = 0
    factor: float = nan
    columns: int = 0
    columns_off: int = 0
    scaling: float | None = None
    rank: int | None = None
    base: float = nan
    change: float = 0.0
    difference: float = 0.0
    moved: int = 0
    damaged: int = 0
    broken: int = 0
    is_vector: bool = False
    is_touched: bool = True

    @property
    def is_right(self) -> bool:
        """Whether it is what base + adapter gives."""
        return self.state in RIGHT

    @property
    def relative(self) -> float:
        """‖merged − (W0 + ΔW)‖/‖W0‖."""
        return self.difference / self.base if self.base else nan

    @property
    def lost(self) -> float:
        """‖merged − (W0 + ΔW)‖/‖ΔW‖."""
        return self.difference / self.change if self.change else nan


@dataclass(frozen=True)
class Gone:
    """A tensor that has no partner, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Finding:
    """What is wrong with some tensors, in one line, and what to do about it."""

    kind: str
    message: str
    advice: str
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class Candidate:
    """How far the merged checkpoint is from another base + adapter.

    relative: ‖merged − (W0 + ΔW)‖/‖W0‖ over all tensors.
    fits: whether it is that.
    reason: why it cannot be that, where names and shapes tell.
    """

    base: str
    relative: float
    fits: bool
    reason: str = ""


@dataclass(frozen=True)
class Verification:
    """Whether a merged checkpoint is base + adapter.

    method: as the adapter says.
    tensors: all that were gone through, in the base's order.
    candidates: the base that was named first, then the others; empty if no other was named.
    notes: what a reader has to know besides.
    """

    merged: str
    base: str
    adapter: str
    method: str
    tensors: tuple[Tensor, ...]
    findings: tuple[Finding, ...]
    candidates: tuple[Candidate, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_right(self) -> bool:
        """Whether it is."""
        return not self.findings


def relative_of(tensors: tuple[Tensor, ...]) -> float:
    """‖merged − (W0 + ΔW)‖/‖W0‖ over those tensors whose base is finite."""
    finite = [tensor for tensor in tensors if isfinite(tensor.base)]
    base = sum(tensor.base**2 for tensor in finite)
    return sqrt(sum(tensor.difference**2 for tensor in finite) / base) if base else nan
