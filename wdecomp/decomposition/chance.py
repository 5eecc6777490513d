"""What a matrix's ΔM and ΔD would be without any learning: by noise of the same size, by rounding.

Noise that is isotropic, each element N(0, σ²), moves a column w0 of length k and norm m0 by ξ along
it and by σ²χ² across it, χ² with k − 1 degrees of freedom:

    m = √((m0 + ξ)² + σ²χ²)        cos = (m0 + ξ)/m

With s = σ/m0, T = (k − 1)s² and R = √(1 + T), to second order about the means of ξ and χ²:

    E[1 − cos] = 1 − 1/R + ¾ s²T/R⁵
    E[m/m0 − 1] = R − 1 + ¼ s²T/R³        Var[m/m0] = s²(1 + T/2)/R²

and E|m − m0| is the mean of the folded normal distribution with that mean and variance. Of columns
of 16 weights or more both are within 0.5 %, up to noise three times the size of the base; of 4
weights within 3 %, up to noise of the base's size. (Without the last terms: 3 % and 15 %.)
"""

import math
from dataclasses import dataclass

import numpy as np

from wdecomp.decomposition.columns import ColumnDelta
from wdecomp.decomposition.compiling import compiled_to_the_letter
from wdecomp.dtypes import PRECISION, Floats

SUBNORMAL = {"F16": -24}  # exponent of their spacing, where weights do get so small
LARGEST = 1e50  # times the base; all noise beyond gives 1 − cos = 1, and no power overflows


@dataclass(frozen=True)
class Rounding:
    """What rounding a base's weights to a stored dtype does by itself; 0 where nothing is rounded.

    delta_direction: ΔD.
    along: k·Var[ξ]/m0² of a column of k weights, if all columns were alike. Large weights have
        large errors, so it is more than 2·ΔD: thrice that for normally distributed weights.
    """

    delta_direction: float
    along: float


UNROUNDED, UNKNOWN = Rounding(0.0, 0.0), Rounding(math.nan, math.nan)


@dataclass(frozen=True)
class Chance:
    """Means over the columns of one matrix, in the units of what was measured; else NaN.

    null_delta_magnitude, null_delta_direction: E ΔM and E ΔD of an isotropic Gaussian update with
        the Frobenius norm of this one, on this base.
    floor_delta_magnitude, floor_delta_direction: of rounding to the stored dtype; 0 for adapters.
    """

    null_delta_magnitude: float
    null_delta_direction: float
    floor_delta_magnitude: float
    floor_delta_direction: float


def by_chance(delta: ColumnDelta, length: int, rounding: Rounding) -> Chance:
    """What chance alone would give in place of what was measured.

    ‖w − w0‖² = (m − m0)² + 2·m·m0·(1 − cos), whose sum over the columns is ‖ΔW‖² = N σ². Where
    norms differ, the matrix's fourth moment is larger than a column's, by mean m0⁴/(mean m0²)².

    Args:
        delta: the columns of a matrix.
        length: how many weights a column has.
        rounding: of this base to the dtype of the tuned weights.
    """
    figures = delta.magnitude_base, delta.delta_magnitude, delta.delta_direction
    if not delta.column.size:
        return Chance(math.nan, math.nan, math.nan, rounding.delta_direction)
    magnitude, direction, floor = _means(*figures, length, rounding.delta_direction, rounding.along)
    return Chance(magnitude, direction, floor, rounding.delta_direction)


@compiled_to_the_letter
def _means(
    m0: Floats, grown: Floats, turned: Floats, length: int, rounded: float, along: float
) -> tuple[float, float, float]:
    """The first three figures of a `Chance`."""
    change = total = 0.0
    for j in range(m0.size):
        change += distance_squared(m0[j], grown[j], turned[j])
        total += m0[j]
    sigma, mean = math.sqrt(change / (m0.size * length)), total / m0.size
    magnitude = direction = squares = fourths = 0.0
    for j in range(m0.size):
        growth, turn = isotropic(sigma / m0[j], length)
        magnitude += m0[j] * growth
        direction += turn
        square = (m0[j] / mean) ** 2
        squares += square
        fourths += square * square
    uneven = (squares / m0.size) ** 2 / (fourths / m0.size)
    floor = mean * _folded(rounded, math.sqrt(along * uneven / length))
    return magnitude / m0.size, direction / m0.size, floor


@compiled_to_the_letter
def distance_squared(m0: float, grown: float, turned: float) -> float:
    """‖w − w0‖² of a column, by the law of cosines; a sum of squares, in which nothing cancels.

    >>> distance_squared(5.0, -1.0, 0.2)  # (4, 3) less (4, 0), turned
    9.0
    """
    return grown**2 + 2 * m0 * (m0 + grown) * turned


@compiled_to_the_letter
def isotropic(noise: float, length: int) -> tuple[float, float]:
    """E|m − m0|/m0 and E[1 − cos] of a column under isotropic noise; see the head of this file.

    A column of one weight has no direction to lose: of it the second is 0.

    Args:
        noise: σ/m0, with σ the standard deviation of the noise in each element.
        length: k, the weights of a column.
    """
    square = min(noise, LARGEST) ** 2
    across = (length - 1) * square  # T
    root = math.sqrt(1 + across)
    per_root = 1 / root
    second = square * across * per_root**3  # s²T/R³
    longer = across / (1 + root)  # R − 1
    turned = longer * per_root + 0.75 * second * per_root**2
    deviation = math.sqrt(square * (1 + across / 2)) * per_root
    return _folded(longer + 0.25 * second, deviation), turned


@compiled_to_the_letter
def _folded(mean: float, deviation: float) -> float:
    """E|X| of a normal X, the mean of the folded normal distribution."""
    spread = math.sqrt(2) * deviation
    if spread == 0:
        return mean
    ratio = mean / spread
    return spread / math.sqrt(math.pi) * math.exp(-(ratio**2)) + mean * math.erf(ratio)


def rounding_floor(weights: Floats, dtype: str) -> Rounding:
    """What rounding weights like these to a stored dtype does by itself.

    Rounding to nearest moves w by an error that is uniform in ±ulp(w)/2 and points nowhere in
    particular, so that ΔD ≈ ½·Σ ulp(w)²/12 / Σ w². About 1.4e-6 for BF16, 2.1e-8 for F16; relative
    ΔM is about 3.6e-5 of BF16 columns of 4096 weights.

    Args:
        weights: a sample of the base's weights, any shape.
        dtype: what the tuned weights are stored as: BF16, F16, F32 or F64.
    """
    if dtype not in PRECISION:  # quantised: its floor is a run of its own
        return UNKNOWN
    finite = weights[np.isfinite(weights)]
    rounded = finite[finite != 0]  # zero is in every dtype
    squares = rounded**2
    energy = float(squares.sum())
    if energy == 0:
        return UNKNOWN
    exponent = np.frexp(rounded)[1] - PRECISION[dtype]  # of an ulp
    if dtype in SUBNORMAL:
        np.maximum(exponent, SUBNORMAL[dtype], out=exponent)
    error = np.ldexp(1 / 12 / energy, 2 * exponent)
    along = finite.size * float(error @ squares) / energy
    return Rounding(float(error.sum()) / 2, along)
