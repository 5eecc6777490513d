"""One matrix in one row: means over its columns, and the floor that rounding alone would reach."""

import math
from dataclasses import dataclass

import numpy as np

from wdecomp.decomposition.columns import ColumnDelta
from wdecomp.dtypes import PRECISION, Floats

SMALLEST = {"F16": 2.0**-24}  # spacing of the subnormal numbers, where weights do get so small


@dataclass(frozen=True)
class Summary:
    """Means over the columns of one matrix that have a magnitude and a direction; else NaN.

    delta_magnitude: ΔM = mean |m − m0|, DoRA Eq. (3), in the units of the weight.
    delta_direction: ΔD = mean (1 − cos), Eq. (4), in [0, 2].
    signed_delta_magnitude: mean (m − m0).
    relative_delta_magnitude: mean |m − m0|/m0.
    growth_ratio: Σ(m − m0) / Σ m0·ΔD/(1 − ΔD) over columns with ΔD < 1: growth over the growth
        that an update perpendicular to the column, turning it as far, forces. 1 for such updates.
    """

    n_columns: int
    n_zero: int
    n_nonfinite: int
    delta_magnitude: float
    delta_direction: float
    signed_delta_magnitude: float
    relative_delta_magnitude: float
    growth_ratio: float


def summarise(delta: ColumnDelta) -> Summary:
    """The row of a matrix, from its columns."""
    moved, size = delta.delta_magnitude, np.abs(delta.delta_magnitude)
    acute = delta.delta_direction < 1
    direction = delta.delta_direction[acute]
    forced = float((delta.magnitude_base[acute] * direction / (1 - direction)).sum())
    return Summary(
        n_columns=delta.n_columns,
        n_zero=delta.n_zero,
        n_nonfinite=delta.n_nonfinite,
        delta_magnitude=_mean(size),
        delta_direction=_mean(delta.delta_direction),
        signed_delta_magnitude=_mean(moved),
        relative_delta_magnitude=_mean(size / delta.magnitude_base),
        growth_ratio=float(moved[acute].sum()) / forced if forced > 0 else math.nan,
    )


def rounding_floor(weights: Floats, dtype: str) -> float:
    """The ΔD that rounding weights like these to a stored dtype gives by itself.

    Rounding to nearest moves w by an error that is uniform in ±ulp(w)/2 and points nowhere in
    particular, so that ΔD ≈ ½·Σ ulp(w)²/12 / Σ w². About 1.4e-6 for BF16, 2.1e-8 for F16.

    Args:
        weights: a sample of the base's weights, any shape.
        dtype: what the tuned weights are stored as: BF16, F16, F32 or F64.
    """
    if dtype not in PRECISION:  # quantised: its floor is a run of its own
        return math.nan
    rounded = weights[np.isfinite(weights) & (weights != 0)]  # zero is in every dtype
    energy = float((rounded**2).sum())
    if energy == 0:
        return math.nan
    exponent = np.frexp(rounded)[1]
    counts = np.bincount(exponent - exponent.min())
    exponents = exponent.min() + np.arange(len(counts))
    ulp = np.maximum(np.exp2(exponents - float(PRECISION[dtype])), SMALLEST.get(dtype, 0.0))
    return float((counts * ulp**2).sum()) / (24 * energy)


def _mean(values: Floats) -> float:
    return float(values.mean()) if values.size else math.nan
