"""Correlation and line of y on x, each with its 95 % interval: arrays in, three figures out.

numpy and scipy.special do it. scipy.stats is what the tests compare with: importing it would take
longer than comparing a gigabyte.
"""

import math
from collections.abc import Iterable, Iterator
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


@dataclass(frozen=True, eq=False)
class Variable:
    """The x, or the y, of some points; values·2^exponent is in table units.

    `code` is the group of each point, 0, 1, …, whose mean was subtracted; None where none was.
    """

    values: Floats
    exponent: int
    code: Codes | None = None

    @cached_property
    def groups(self) -> int:
        """Their number, or 1: the line's own intercept is a mean, too."""
        return 1 if self.code is None else int(self.code.max()) + 1

    @cached_property
    def ranks(self) -> Floats:
        """Mid-ranks, from 1; after demeaning, ties are ties up to rounding."""
        return _midranks(self.values if self.groups == 1 else _levels(self.values))


@dataclass(frozen=True)
class Sample:
    """Points (x, y) that vary in both, in the same groups.

    `n_effective` = n − (groups − 1) is what every interval counts with.
    """

    x: Variable
    y: Variable

    @property
    def code(self) -> Codes | None:
        return self.x.code

    @property
    def n_effective(self) -> int:
        return len(self.x.values) - (self.x.groups - 1)

    @property
    def slope_exponent(self) -> int:
        """A slope of the values, times 2^slope_exponent, is in table units."""
        return self.y.exponent - self.x.exponent


def sample(x: Floats, y: Floats, groups: Floats | Codes | None = None) -> Sample | None:
    """The points, scaled and less their group means; None where they admit no estimate.

    That is: fewer than 3 points beyond those that the group means use up, or no variance.
    """
    code = _code(groups)
    return _sample(_variable(x, code), y, code)


def samples(
    x: Floats, responses: Iterable[Floats], groups: Floats | None = None
) -> Iterator[tuple[npt.NDArray[np.bool_], Sample | None]]:
    """For each response as y: which points are finite in x and y, and their `sample`.

    x is scaled and ranked once for all responses that have the same points.
    """
    points = None
    for y in responses:
        usable = np.isfinite(x) & np.isfinite(y)
        if points is None or not np.array_equal(usable, points):
            points, code = usable, _code(None if groups is None else groups[usable])
            of_x = _variable(x[usable], code)
        yield usable, _sample(of_x, y[usable], code)


def pearson(points: Sample) -> Estimate:
    """Pearson's r in [−1, 1] with its Fisher z interval.

    tanh(atanh r ± 1.96/√(n − 3)), n less one for each group mean beyond the first, which makes
    the within-group r a partial correlation (Fisher 1924). [−1, 1] where n − 3 is 0.
    """
    r = _correlation(points.x.values, points.y.values)
    return _fisher(r, 1.0, points.n_effective)


def spearman(points: Sample) -> Estimate:
    """Spearman's ρ in [−1, 1] (mid-ranks for ties) with its Bonett–Wright interval.

    tanh(atanh ρ ± 1.96·√((1 + ρ²/2)/(n − 3))) (Bonett & Wright 2000, Psychometrika 65, Eq. 3),
    n as for Pearson's r.
    """
    rho = _correlation(points.x.ranks, points.y.ranks)
    return _fisher(rho, 1.0 + rho**2 / 2.0, points.n_effective)


def line(points: Sample) -> tuple[Estimate, Estimate]:
    """Slope and intercept of y = intercept + slope·x by least squares, in table units.

    estimate ± t(0.975, n − 2)·standard error, n as for Pearson's r. The intercept means something
    only where no group means were subtracted.
    """
    x, x_mean, y, y_mean = *_centred(points.x.values), *_centred(points.y.values)
    squares = float(x @ x)
    slope = float(x @ y) / squares
    residuals = y - slope * x
    df = points.n_effective - 2
    variance = float(residuals @ residuals) / df
    t95 = float(stdtrit(df, 0.975))
    slope_reach = t95 * math.sqrt(variance / squares)
    intercept_reach = t95 * math.sqrt(variance * (1 / len(x) + x_mean * x_mean / squares))
    return (
        _symmetric(slope, slope_reach, points.slope_exponent),
        _symmetric(y_mean - slope * x_mean, intercept_reach, points.y.exponent),
    )


def _code(groups: Floats | Codes | None) -> Codes | None:
    return None if groups is None else np.unique(groups, return_inverse=True)[1]


def _variable(values: Floats, code: Codes | None) -> Variable | None:
    """One side of a sample; None where it admits no estimate."""
    count = 1 if code is None else int(code.max(initial=0)) + 1
    if len(values) - (count - 1) < 3:
        return None
    scaled, exponent = _scaled(values)
    if code is not None:
        scaled = _demeaned(scaled, code)
    return None if _constant(scaled) else Variable(scaled, exponent, code)


def _sample(x: Variable | None, y: Floats, code: Codes | None) -> Sample | None:
    of_y = None if x is None else _variable(y, code)
    return None if x is None or of_y is None else Sample(x, of_y)


def _correlation(x: Floats, y: Floats) -> float:
    return float(np.corrcoef(x, y)[0, 1])


def _midranks(values: Floats) -> Floats:
    """Ranks from 1; equal values share the mean of theirs."""
    order = np.argsort(values)
    ordered = values[order]
    new = ordered[1:] != ordered[:-1]
    ranks = np.empty(len(values))
    if new.all():
        ranks[order] = np.arange(1, len(values) + 1)
        return ranks
    starts = np.flatnonzero(np.r_[True, new])
    ends = np.r_[starts[1:], len(values)]
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
