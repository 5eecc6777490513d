"""Correlation and line of y on x, each with its 95 % interval: arrays in, three figures out.

numpy and scipy.special do it. scipy.stats is what the tests compare with: importing it would take
longer than comparing a gigabyte.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri, stdtrit

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.intp]

Z95 = float(ndtri(0.975))

# Differences below this share of the largest figure are rounding.
ROUNDING = 1e-13


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval; all three NaN where the points admit none."""

    value: float = np.nan
    low: float = np.nan
    high: float = np.nan


@dataclass(frozen=True)
class Sample:
    """Points (x, y) that vary in both; x·2^x_exponent and y·2^y_exponent are in table units.

    `code` is the group of each point, 0, 1, …, whose means were subtracted from x and y; None where
    none were. `groups` is their number, or 1: the line's own intercept is a mean, too.
    `n_effective` = n − (groups − 1) is what every interval counts with.
    """

    x: Floats
    y: Floats
    x_exponent: int
    y_exponent: int
    code: Codes | None = None

    @cached_property
    def groups(self) -> int:
        return 1 if self.code is None else int(self.code.max()) + 1

    @property
    def n_effective(self) -> int:
        return len(self.x) - (self.groups - 1)

    @cached_property
    def ranks(self) -> tuple[Floats, Floats]:
        """Mid-ranks of x and of y, from 1; after demeaning, ties are ties up to rounding."""
        x, y = self.x, self.y
        if self.groups > 1:
            x, y = _levels(x), _levels(y)
        return _midranks(x), _midranks(y)


def sample(x: Floats, y: Floats, groups: Codes | None = None) -> Sample | None:
    """The points, scaled and less their group means; None where they admit no estimate.

    That is: fewer than 3 points beyond those that the group means use up, or no variance.
    """
    code = None if groups is None else np.unique(groups, return_inverse=True)[1]
    count = 1 if code is None else int(code.max(initial=0)) + 1
    if len(x) - (count - 1) < 3:
        return None
    x_scaled, x_exponent = _scaled(x)
    y_scaled, y_exponent = _scaled(y)
    if code is not None:
        x_scaled, y_scaled = _demeaned(x_scaled, code), _demeaned(y_scaled, code)
    if _constant(x_scaled) or _constant(y_scaled):
        return None
    return Sample(x_scaled, y_scaled, x_exponent, y_exponent, code)


def pearson(points: Sample) -> Estimate:
    """Pearson's r in [−1, 1] with its Fisher z interval.

    tanh(atanh r ± 1.96/√(n − 3)), n less one for each group mean beyond the first, which makes
    the within-group r a partial correlation (Fisher 1924). [−1, 1] where n − 3 is 0.
    """
    r = _correlation(points.x, points.y)
    return _fisher(r, 1.0, points.n_effective)


def spearman(points: Sample) -> Estimate:
    """Spearman's ρ in [−1, 1] (mid-ranks for ties) with its Bonett–Wright interval.

    tanh(atanh ρ ± 1.96·√((1 + ρ²/2)/(n − 3))) (Bonett & Wright 2000, Psychometrika 65, Eq. 3),
    n as for Pearson's r.
    """
    rho = _correlation(*points.ranks)
    return _fisher(rho, 1.0 + rho**2 / 2.0, points.n_effective)


def line(points: Sample) -> tuple[Estimate, Estimate]:
    """Slope and intercept of y = intercept + slope·x by least squares, in table units.

    estimate ± t(0.975, n − 2)·standard error, n as for Pearson's r. The intercept means something
    only where no group means were subtracted.
    """
    x, x_mean, y, y_mean = *_centred(points.x), *_centred(points.y)
    squares = float(x @ x)
    slope = float(x @ y) / squares
    residuals = y - slope * x
    df = points.n_effective - 2
    variance = float(residuals @ residuals) / df
    t95 = float(stdtrit(df, 0.975))
    slope_reach = t95 * math.sqrt(variance / squares)
    intercept_reach = t95 * math.sqrt(variance * (1 / len(x) + x_mean * x_mean / squares))
    return (
        _symmetric(slope, slope_reach, points.y_exponent - points.x_exponent),
        _symmetric(y_mean - slope * x_mean, intercept_reach, points.y_exponent),
    )


def _correlation(x: Floats, y: Floats) -> float:
    return float(np.corrcoef(x, y)[0, 1])


def _midranks(values: Floats) -> Floats:
    """Ranks from 1; equal values share the mean of theirs."""
    order = np.argsort(values)
    ordered = values[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    ends = np.r_[starts[1:], len(values)]
    ranks = np.empty(len(values))
    ranks[order] = np.repeat((starts + ends + 1) / 2, ends - starts)
    return ranks


def _scaled(values: Floats) -> tuple[Floats, int]:
    # A power of two changes exponents only, so that nothing is rounded and no square underflows.
    exponent = int(np.frexp(np.abs(values).max())[1])
    return np.ldexp(values, -exponent), exponent


def _demeaned(values: Floats, code: Codes) -> Floats:
    means = np.bincount(code, weights=values) / np.bincount(code)
    return values - means[code]


def _centred(values: Floats) -> tuple[Floats, float]:
    mean = float(values.mean())
    return values - mean, mean


def _constant(values: Floats) -> bool:
    # Figures were scaled to at most 1 before any mean was taken off.
    return bool(np.std(values) <= ROUNDING)


def _levels(values: Floats) -> Floats:
    """The number of gaps wider than rounding that lie below each value."""
    order = np.argsort(values, kind="stable")
    gaps = np.diff(values[order], prepend=values[order[0]]) > ROUNDING
    levels = np.empty(len(values))
    levels[order] = np.cumsum(gaps)
    return levels


def _fisher(r: float, variance: float, n: int) -> Estimate:
    if n <= 3:
        return Estimate(r, -1.0, 1.0)
    reach = Z95 * math.sqrt(variance / (n - 3))
    centre = np.arctanh(r)
    return Estimate(r, float(np.tanh(centre - reach)), float(np.tanh(centre + reach)))


def _symmetric(value: float, reach: float, exponent: int) -> Estimate:
    low, middle, high = np.ldexp([value - reach, value, value + reach], exponent)
    return Estimate(float(middle), float(low), float(high))
