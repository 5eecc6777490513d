"""From sums to ΔM and ΔD: the formulas of DoRA, section 3.2 (arXiv:2402.09353), in one place.

With a = Σw0², b = Σ(w−w0)·w0 and c = Σ(w−w0)² over one column,

    m0 = √a        m = √(a + 2b + c)
    m − m0 = (2b + c)/(m + m0)                         Eq. (3), before the mean of its size
    1 − cos = (ac − b²)/(n(n + a + b)),  n = m0·m      Eq. (4), before the mean

Neither subtracts two nearly equal numbers. For an obtuse angle (a + b < 0) 1 − cos is no small
number and the direct form is the accurate one.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wdecomp.decomposition.compiling import compiled_to_the_letter
from wdecomp.dtypes import Array, Floats

SHRUNK = 1e-6  # of a: below it, a + 2b + c has lost the digits of |w|²


@dataclass(frozen=True)
class ColumnDelta:
    """How far each column of one matrix moved in magnitude and in direction.

    A column that is zero on either side has no direction, and one that holds NaN or infinity has
    neither: both are counted and have no entry. `column` says which columns the entries are.

    column: index of the column in the matrix.
    magnitude_base: m0 = ‖w0‖, in the units of the weight.
    delta_magnitude: m − m0, signed, in the units of the weight.
    delta_direction: 1 − cos(w, w0), in [0, 2].
    """

    column: npt.NDArray[np.int64]
    magnitude_base: Floats
    delta_magnitude: Floats
    delta_direction: Floats
    n_columns: int
    n_zero: int
    n_nonfinite: int


def any_shrunken(sums: Floats) -> bool:
    """Whether the tuned weights of a column nearly vanished: it wants Σw² and Σw·w0 themselves."""
    return bool(_any_shrunken(np.ascontiguousarray(sums, np.float64)))


@compiled_to_the_letter
def _any_shrunken(sums: Floats) -> bool:
    found = False
    for j in range(sums.shape[1]):
        found |= _is_shrunken(sums[0, j], sums[1, j], sums[2, j])
    return found


@compiled_to_the_letter
def _is_shrunken(a: float, b: float, c: float) -> bool:
    return (a + 2 * b + c < SHRUNK * a) & (c > 0)


def column_delta_from(sums: Floats, direct: Floats | None = None) -> ColumnDelta:
    """ΔM and ΔD of every column that has them, from its sums; see the head of this file.

    Args:
        sums: (3, n_columns): a, b, c.
        direct: (3, n_columns): a, Σw·w0, Σw²; taken for the columns that are shrunken.
    """
    count = sums.shape[1]
    column, figures = np.empty(count, np.int64), np.empty((3, count))
    sums = np.ascontiguousarray(sums, np.float64)
    other = sums if direct is None else np.ascontiguousarray(direct, np.float64)
    kept, zero = _fill(sums, other, direct is not None, column, figures)
    m0, grown, turned = figures[:, :kept]
    return ColumnDelta(column[:kept], m0, grown, turned, count, zero, count - kept - zero)


@compiled_to_the_letter
def _fill(
    sums: Floats, direct: Floats, has_direct: bool, column: Array, figures: Floats
) -> tuple[int, int]:
    """Writes which columns have figures, and the figures; how many those are, and the zero ones."""
    kept = zero = 0
    for j in range(sums.shape[1]):
        a, b, c = sums[0, j], sums[1, j], sums[2, j]
        product, tuned, lag, gap = a + b, a + 2 * b + c, b, c
        if has_direct and _is_shrunken(a, b, c):
            product, tuned = direct[1, j], direct[2, j]
            lag, gap = product, tuned  # ac − b² = a·Σw² − (Σw·w0)², so the same formula serves
        if not (math.isfinite(a) and math.isfinite(tuned) and math.isfinite(c)):
            continue
        if a == 0 or tuned <= 0:
            zero += 1
            continue
        # In units of the base column, so that no product leaves the range of float64.
        b, c, product, tuned, lag, gap = b / a, c / a, product / a, tuned / a, lag / a, gap / a
        m0, n = math.sqrt(a), math.sqrt(tuned)
        if product >= 0:
            turned = max(gap - lag * lag, 0.0) / (n * (n + product))
        else:
            turned = (n - product) / n
        column[kept] = j
        figures[0, kept] = m0
        figures[1, kept] = m0 * (2 * b + c) / (n + 1)
        figures[2, kept] = min(max(turned, 0.0), 2.0)
        kept += 1
    return kept, zero
