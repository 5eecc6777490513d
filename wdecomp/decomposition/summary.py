"""One matrix in one row: means over its columns."""

import math
from dataclasses import dataclass

import numpy as np

from wdecomp.decomposition.chance import distance_squared
from wdecomp.decomposition.columns import ColumnDelta
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
    moved, size = delta.delta_magnitude, np.abs(delta.delta_magnitude)
    return Summary(
        n_columns=delta.n_columns,
        n_zero=delta.n_zero,
        n_nonfinite=delta.n_nonfinite,
        delta_magnitude=_mean(size),
        delta_direction=_mean(delta.delta_direction),
        signed_delta_magnitude=_mean(moved),
        relative_delta_magnitude=_mean(size / delta.magnitude_base),
        growth_ratio=_growth_ratio(delta, floor),
    )


def _growth_ratio(delta: ColumnDelta, floor: float) -> float:
    acute = delta.delta_direction < 1
    m0, direction = delta.magnitude_base[acute], delta.delta_direction[acute]
    forced = float((m0 * direction / (1 - direction)).sum())
    along = PARALLEL * float((distance_squared(delta)[acute] / m0).sum())
    if forced <= along or forced <= FLOORED * floor * float(m0.sum()):
        return math.nan
    return float(delta.delta_magnitude[acute].sum()) / forced


def _mean(values: Floats) -> float:
    return float(values.mean()) if values.size else math.nan
