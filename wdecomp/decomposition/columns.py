"""From sums to ΔM and ΔD: the formulas of DoRA, section 3.2 (arXiv:2402.09353), in one place.

With a = Σw0², b = Σ(w−w0)·w0 and c = Σ(w−w0)² over one column,

    m0 = √a        m = √(a + 2b + c)
    m − m0 = (2b + c)/(m + m0)                         Eq. (3), before the mean of its size
    1 − cos = (ac − b²)/(n(n + a + b)),  n = m0·m      Eq. (4), before the mean

Neither subtracts two nearly equal numbers. For an obtuse angle (a + b < 0) 1 − cos is no small
number and the direct form is the accurate one.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wdecomp.dtypes import Floats

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


def shrunken(sums: Floats) -> npt.NDArray[np.bool_]:
    """Columns whose tuned weights nearly vanished: their sums want Σw² and Σw·w0 themselves."""
    a, b, c = sums
    with np.errstate(invalid="ignore"):
        return np.asarray((a + 2 * b + c < SHRUNK * a) & (c > 0))


def column_delta_from(sums: Floats, direct: Floats | None = None) -> ColumnDelta:
    """ΔM and ΔD of every column that has them, from its sums; see the head of this file.

    Args:
        sums: (3, n_columns): a, b, c.
        direct: (3, n_columns): a, Σw·w0, Σw²; taken for the columns that `shrunken` names.
    """
    a, b, c = sums
    with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinity are sorted out below
        product, tuned, lag, gap = a + b, a + 2 * b + c, b, c
        if direct is not None:  # ac − b² = a·Σw² − (Σw·w0)², so the same formula serves
            small, (_, w0w, ww) = shrunken(sums), direct
            product, lag = np.where(small, w0w, product), np.where(small, w0w, lag)
            tuned, gap = np.where(small, ww, tuned), np.where(small, ww, gap)
        finite = np.isfinite(a) & np.isfinite(tuned) & np.isfinite(c)
    zero = finite & ((a == 0) | (tuned <= 0))
    kept = np.flatnonzero(finite & ~zero)
    of = slice(None) if kept.size == a.size else kept  # nothing to copy
    # In units of the base column, so that no product leaves the range of float64.
    b, c, product, tuned, lag, gap = (x[of] / a[of] for x in (b, c, product, tuned, lag, gap))
    m0, n = np.sqrt(a[of]), np.sqrt(tuned)
    acute = np.maximum(gap - lag * lag, 0) / (n * (n + np.maximum(product, 0)))
    obtuse = (n - product) / n
    return ColumnDelta(
        column=kept,
        magnitude_base=m0,
        delta_magnitude=m0 * (2 * b + c) / (n + 1),
        delta_direction=np.clip(np.where(product >= 0, acute, obtuse), 0, 2),
        n_columns=len(finite),
        n_zero=int(zero.sum()),
        n_nonfinite=int((~finite).sum()),
    )
