"""What a tensor is, told from its sums alone.

Merged weights are held beside these, each column of W0 and of the plain change D by itself:

    W0                         not merged
    W0 + c·D                   LoRA with another scaling; c = 2: merged twice
    W0 + D                     DoRA whose magnitude was left out
    α·(W0 + (1 + 1/g)·D)       DoRA merged twice, with g = m/‖W0 + D‖
    α·(W0 + c·D)               DoRA with another scaling
    α·W0 + β·D                 DoRA with other magnitudes, if β/α is 1

with c, α and β by least squares. In units of the allowed error (see `sums`), with p = w + t·z and
δ = α − 1, the squared distance from α·(W0 + t·D) at its best α is

    min over δ of Σ(y − t·z − δ·p)² = Σ(y − tz)² − (Σ(y − tz)p)²/Σp²
"""

from dataclasses import dataclass
from math import inf, isfinite, nan, sqrt

import numpy as np

from wdecomp.dtypes import Floats
from wdecomp.verifying.allowance import MOST_OF_ROW, MOST_OF_TENSOR, MOST_OF_WEIGHT, roundoff
from wdecomp.verifying.records import State
from wdecomp.verifying.sums import ColumnSums, TensorSums

# Of the factor c: what 16-bit magnitudes may shift it by, and errors of the weights that tell it.
SHIFT, ERROR_OF_WEIGHTS = 0.1, 2.0
EXPLAINED = 2.0  # times closer than W0 + ΔW must be what it is taken for
UNTOLD = 0.5  # a factor that is known no better does not tell merged from not merged


@dataclass(frozen=True)
class Decision:
    """The state of a tensor, with the figures that it was told from.

    error: root mean square of ε; factor: how often the change is in it.
    columns_off: columns that are too far off.
    """

    state: State
    error: float
    factor: float
    columns_off: int


def decide(
    columns: ColumnSums, tensor: TensorSums, has_magnitude: bool, stored: str = ""
) -> Decision:
    """What a tensor is that the adapter changes.

    Args:
        columns: sums of each column.
        tensor: of all of it.
        has_magnitude: whether each column is brought to a magnitude of its own.
        stored: its dtype, where its numbers are of a coarser one.
    """
    count = columns.count.sum()
    error = sqrt(columns.ee.sum() / count) if count else nan
    of_columns = np.sqrt(_over(columns.ee, columns.count))
    off = int(np.count_nonzero(of_columns > MOST_OF_ROW))
    factor, doubt = _seen_factor(tensor)
    if tensor.damaged or tensor.broken:
        return Decision("not-finite", error, factor, off)
    near = error <= MOST_OF_TENSOR and tensor.largest <= MOST_OF_WEIGHT and not off
    if not count or (near and doubt > UNTOLD):
        left = bool(stored) and _left_as_it_was(tensor, stored)
        return Decision("not-merged" if left else "too-small", error, 0.0 if left else nan, off)
    if near and abs(factor - 1) <= SHIFT + doubt:
        return Decision("merged", error, factor, off)
    most = inf if near else error / EXPLAINED
    state, factor = _otherwise(columns, count, factor, has_magnitude, most)
    return Decision(state, error, factor, off)


def _left_as_it_was(tensor: TensorSums, stored: str) -> bool:
    """Whether no weight moved, although its dtype has room for the change.

    Its numbers are then those of the base, and say nothing of how a merge was rounded.
    """
    return tensor.moved == 0 and tensor.change > roundoff(stored) ** 2 * tensor.base


def _of_factor(factor: float) -> State:
    return "merged-twice" if abs(factor - 2) <= SHIFT else "other-scaling"


def _most(factor: float) -> float:
    """The distance of a change that is in it c times: what is rounded grows with the change."""
    return MOST_OF_TENSOR * max(1.0, abs(factor))


def _seen_factor(tensor: TensorSums) -> tuple[float, float]:
    """How often the change is in the weights where it is not rounded away, and how far off that is.

        c = 1 + Σεx/Σx²

    ε within ±1 unit, mostly ±½, and independent of x, shifts it by less than 2/√Σx².
    """
    if tensor.seen_xx == 0:
        return nan, inf
    return 1 + tensor.seen_ex / tensor.seen_xx, ERROR_OF_WEIGHTS / sqrt(tensor.seen_xx)


def _otherwise(
    sums: ColumnSums, count: float, seen: float, has_magnitude: bool, most: float
) -> tuple[State, float]:
    """The first description that fits, and how often the change is in it.

    Args:
        sums: of each column.
        count: of weights.
        seen: how often the change is in those that show it.
        has_magnitude: whether it is a DoRA.
        most: distance that a description may leave.
    """
    if _distance(sums, count, 0.0) <= min(MOST_OF_TENSOR, most) and not seen > UNTOLD:
        return "not-merged", 0.0
    if has_magnitude:
        return _with_magnitude(sums, count, most)
    factor = _ratio(sums.zy.sum(), sums.zz.sum())
    fits = _distance(sums, count, factor) <= min(_most(factor), most)
    return (_of_factor(factor) if fits else "unexplained"), factor


def _with_magnitude(sums: ColumnSums, count: float, most: float) -> tuple[State, float]:
    if _distance(sums, count, 1.0) <= min(MOST_OF_TENSOR, most):
        return "magnitude-ignored", 1.0
    factor, again = _factor_of_columns(sums), 1 + _over(np.ones_like(sums.ww), _growth(sums))
    twice, scaled = _distance_at_best(sums, count, again), _distance_at_best(sums, count, factor)
    if twice <= min(scaled, _most(2.0), most):
        return "merged-twice", factor
    if scaled > min(_most(factor), most):
        return "unexplained", factor
    return ("other-magnitude" if abs(factor - 1) <= SHIFT else _of_factor(factor)), factor


def _growth(sums: ColumnSums) -> Floats:
    """The g = m/‖W0 + D‖ of each column, as ΔW has it: x + w = g·(w + z)."""
    along = sums.wx + sums.zx + sums.ww + sums.wz
    return _over(along, sums.ww + 2 * sums.wz + sums.zz)


def _distance(sums: ColumnSums, count: float, factor: float) -> float:
    """Root mean square distance from W0 + c·D."""
    squares = sums.yy - 2 * factor * sums.zy + factor**2 * sums.zz
    return _root(squares.sum(), count)


def _distance_at_best(sums: ColumnSums, count: float, factor: float | Floats) -> float:
    """Likewise from α·(W0 + c·D), with the best α for each column."""
    left = sums.yy - 2 * factor * sums.zy + factor**2 * sums.zz
    along = sums.wy + factor * (sums.zy - sums.wz) - factor**2 * sums.zz
    squares = sums.ww + 2 * factor * sums.wz + factor**2 * sums.zz
    return _root((left - along * _over(along, squares)).sum(), count)


def _factor_of_columns(sums: ColumnSums) -> float:
    """The c of β = c·α over all columns; α·W0 + β·D fits each of them best.

    c = Σ ω·αβ / Σ ω·α²    with ω = Σz² − (Σwz)²/Σw², what D has beside W0
    """
    beside = np.maximum(sums.zz - sums.wz * _over(sums.wz, sums.ww), 0.0)
    beta = _over(sums.zy - sums.wy * _over(sums.wz, sums.ww), beside)
    alpha = 1 + _over(sums.wy - beta * sums.wz, sums.ww)
    return _ratio((beside * alpha * beta).sum(), (beside * alpha**2).sum())


def _over(above: Floats, below: Floats) -> Floats:
    """Column by column; 0 where there is nothing to divide by."""
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def _ratio(above: float, below: float) -> float:
    return float(above / below) if below > 0 else nan


def _root(squares: float, count: float) -> float:
    found = sqrt(max(squares, 0.0) / count) if isfinite(squares) else inf
    return float(found)
