"""One matrix in one row: means over its columns."""

import math
from dataclasses import dataclass
from typing import Any

from wdecomp.decomposition.chance import distance_squared
from wdecomp.decomposition.columns import ColumnDelta
from wdecomp.decomposition.compiling import compiled_to_the_letter
from wdecomp.dtypes import Floats

FLOORED = 2.0  # times the floor: what lies below may be rounding for the greater part
PARALLEL = 1e-6  # of (‖w − w0‖/m0)²: a ΔD below is what float32 leaves of a change along w0


@dataclass(frozen=True)
class Summary:
    """Means over the columns of one matrix that have a magnitude and a direction; else NaN.

    delta_magnitude: ΔM = mean |m − m0|, DoRA Eq. (3), in the units of the weight.
    delta_direction: ΔD = mean (1 − cos), Eq. (4), in [0, 2].
    signed_delta_magnitude: mean (m − m0).
    relative_delta_magnitude: mean |m − m0|/m0.
    growth_ratio: Σ(m − m0) / Σ m0·ΔD/(1 − ΔD) over columns with ΔD < 1: growth over the growth
        that an update perpendicular to the column, turning it as far, forces. 1 for such updates.
        NaN where nothing but rounding turned the columns.
    """

    n_columns: int
    n_zero: int
    n_nonfinite: int
    delta_magnitude: float
    delta_direction: float
    signed_delta_magnitude: float
    relative_delta_magnitude: float
    growth_ratio: float


def summarise(delta: ColumnDelta, floor: float = 0.0) -> Summary:
    """The row of a matrix.

    Args:
        delta: its columns.
        floor: the ΔD that rounding to the stored dtype gives by itself; NaN if it is unknown.
    """
    figures = delta.magnitude_base, delta.delta_magnitude, delta.delta_direction
    count = delta.column.size or math.nan
    size, moved, turned, relative, grown, forced, along, base = _totals(*figures)
    nothing = forced <= PARALLEL * along or forced <= FLOORED * floor * base
    return Summary(
        n_columns=delta.n_columns,
        n_zero=delta.n_zero,
        n_nonfinite=delta.n_nonfinite,
        delta_magnitude=size / count,
        delta_direction=turned / count,
        signed_delta_magnitude=moved / count,
        relative_delta_magnitude=relative / count,
        growth_ratio=math.nan if nothing else grown / forced,
    )


@compiled_to_the_letter
def _totals(m0: Floats, grown: Floats, turned: Floats) -> Any:
    """Sums over the columns, those of `growth_ratio` over columns with ΔD < 1.

    Σ|m − m0|, Σ(m − m0), ΣΔD, Σ|m − m0|/m0; Σ(m − m0), Σ m0·ΔD/(1 − ΔD), Σ‖w − w0‖²/m0, Σ m0.
    """
    size = moved = turn = relative = 0.0
    growth = forced = along = base = 0.0
    for j in range(m0.size):
        size += abs(grown[j])
        moved += grown[j]
        turn += turned[j]
        relative += abs(grown[j]) / m0[j]
        if turned[j] < 1:
            growth += grown[j]
            forced += m0[j] * turned[j] / (1 - turned[j])
            along += distance_squared(m0[j], grown[j], turned[j]) / m0[j]
            base += m0[j]
    return size, moved, turn, relative, growth, forced, along, base
