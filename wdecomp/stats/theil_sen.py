"""Theil and Sen's slope: the median of the slopes between two points.

A few outlying layers do not move it: it holds until 29 % of the points are spoilt. Within groups,
the two points are of one group, as in the seasonal slope of Hirsch, Slack and Smith (1982), so that
shifts between groups need not be estimated.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from wdecomp.stats.estimators import Z95, Codes, Estimate, Floats, Sample

Array = npt.NDArray[Any]

# Of more, evenly spaced ones are taken. A prime, so that no stride falls in step with heads.
MOST_POINTS = 499
# Of more than that, so many are resampled: their spread differs by little, their pairs by four.
RESAMPLED = 251
BLOCKS = 32


def theil_sen(points: Sample) -> Estimate:
    """Slope of y on x in table units, with Sen's 95 % interval (Sen 1968, JASA 63, section 5).

    The interval lies between the slopes of rank (N ± 1.96·σ)/2 of N, where σ² is the variance of
    Kendall's S under no relation, n(n − 1)(2n + 5)/18 less the same sum over ties in x and in y,
    as in scipy.stats.theilslopes; of several groups, the sum of theirs.
    """
    some = picked(len(points.x.values))
    slopes = slopes_between(points, some)[0]
    if not len(slopes):
        return Estimate()
    slopes.sort()
    reach = Z95 * math.sqrt(_kendall_variance(points, some))
    count = len(slopes)
    low = max(round((count - reach) / 2) - 1, 0)
    high = min(round((count + reach) / 2), count - 1)
    median = slopes[(count - 1) // 2 : count // 2 + 1].mean()
    found = np.ldexp([median, slopes[low], slopes[high]], points.slope_exponent)
    return Estimate(*(float(value) for value in found))


def theil_sen_replicates(points: Sample, clusters: Codes, draws: Floats) -> Floats:
    """The slope of every resample, in table units; of an even number, the higher middle one.

    Two points of clusters that were drawn i and j times have i·j slopes. Those of all points are
    sorted once; how many of them each resample has, up to the end of every block, says in which
    block its median is, and only that block is gone through.
    """
    count = len(points.x.values)
    some = picked(count, MOST_POINTS if count <= MOST_POINTS else RESAMPLED)
    slopes, usable = slopes_between(points, some)
    if not len(slopes):
        return np.full(len(draws), np.nan)
    order = np.argsort(slopes)
    slopes = slopes[order]
    pair = of_pairs(lambda one, other: one * draws.shape[1] + other, clusters[some])[usable][order]
    kinds, kind = np.unique(pair, return_inverse=True)
    weights = draws[:, kinds // draws.shape[1]] * draws[:, kinds % draws.shape[1]]
    size = -(-len(slopes) // BLOCKS)
    block = np.arange(len(slopes)) // size
    counts = np.bincount(kind * BLOCKS + block, minlength=len(kinds) * BLOCKS)
    # Whole numbers below 2^53: these products are exact on every machine.
    within = weights @ counts.reshape(len(kinds), BLOCKS).astype(np.float64)
    up_to = within.cumsum(axis=1)
    rank = up_to[:, -1:] // 2
    which = np.minimum((up_to <= rank).sum(axis=1, keepdims=True), BLOCKS - 1)
    at = np.minimum(which * size + np.arange(size), len(slopes) - 1)
    before = np.take_along_axis(up_to - within, which, axis=1)
    inside = before + np.take_along_axis(weights, kind[at], axis=1).cumsum(axis=1)
    first = np.minimum((inside <= rank).sum(axis=1, keepdims=True), size - 1)
    median = slopes[np.take_along_axis(at, first, axis=1)[:, 0]]
    return np.where(up_to[:, -1] > 0, np.ldexp(median, points.slope_exponent), np.nan)


def picked(count: int, most: int = MOST_POINTS) -> Codes:
    """Which points are taken: all, or evenly spaced ones."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.intp))


def slopes_between(points: Sample, some: Codes) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """All slopes between some points, in units of the sample; and which pairs have one.

    Two points with one x, or of two groups, have none.
    """
    run, rise = (of_pairs(np.subtract, of.values[some]) for of in (points.x, points.y))
    usable = run != 0
    if points.code is not None:
        usable &= of_pairs(np.equal, points.code[some])
    if not usable.all():
        run, rise = run[usable], rise[usable]
    rise /= run
    return rise, usable


def of_pairs(figure: Callable[[Array, Array], Array], values: Array) -> Array:
    """A figure of every two points, from one's value and the other's.

    The other is 1, 2, … places after, on from the first where they end: so values are taken row by
    row. At half the number of points, an even one, pairs would come twice.
    """
    count = len(values)
    after = sliding_window_view(np.concatenate([values, values]), count)[1 : count // 2 + 1]
    return figure(values, after).ravel()[: count * (count - 1) // 2]


def _kendall_variance(points: Sample, some: Codes) -> float:
    code = np.zeros(len(some), np.intp) if points.code is None else points.code[some]
    x_ties, y_ties = (
        _permutations(code * len(some) + np.unique(of.values[some], return_inverse=True)[1])
        for of in (points.x, points.y)
    )
    return max(_permutations(code) - x_ties - y_ties, 0.0) / 18


def _permutations(keys: Codes) -> float:
    """Σ n(n − 1)(2n + 5) over the numbers n of points that have the same key."""
    n = np.unique(keys, return_counts=True)[1].astype(np.float64)
    return float((n * (n - 1) * (2 * n + 5)).sum())
