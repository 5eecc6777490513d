"""Theil and Sen's slope: the median of the slopes between two points.

A few outlying layers do not move it: it holds until 29 % of the points are spoilt. Within groups,
the two points are of one group, as in the seasonal slope of Hirsch, Slack and Smith (1982), so that
shifts between groups need not be estimated.
"""

import math
from functools import lru_cache

import numpy as np

from wdecomp.stats.estimators import Z95, Codes, Estimate, Floats, Sample

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
    some = picked(len(points.x))
    slopes, _, _ = slopes_between(points, some)
    if not len(slopes):
        return Estimate()
    slopes.sort()
    reach = Z95 * math.sqrt(_kendall_variance(points, some))
    count = len(slopes)
    low = max(round((count - reach) / 2) - 1, 0)
    high = min(round((count + reach) / 2), count - 1)
    exponent = points.y_exponent - points.x_exponent
    median = slopes[(count - 1) // 2 : count // 2 + 1].mean()
    found = np.ldexp([median, slopes[low], slopes[high]], exponent)
    return Estimate(*(float(value) for value in found))


def theil_sen_replicates(points: Sample, clusters: Codes, draws: Floats) -> Floats:
    """The slope of every resample, in table units; of an even number, the higher middle one.

    Two points of clusters that were drawn i and j times have i·j slopes. Those of all points are
    sorted once; how many of them each resample has, up to the end of every block, says in which
    block its median is, and only that block is gone through.
    """
    count = len(points.x)
    some = picked(count, MOST_POINTS if count <= MOST_POINTS else RESAMPLED)
    slopes, left, right = slopes_between(points, some)
    if not len(slopes):
        return np.full(len(draws), np.nan)
    order = np.argsort(slopes)
    slopes, left, right = slopes[order], left[order], right[order]
    pair = clusters[some][left] * draws.shape[1] + clusters[some][right]
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
    exponent = points.y_exponent - points.x_exponent
    return np.where(up_to[:, -1] > 0, np.ldexp(median, exponent), np.nan)


def picked(count: int, most: int = MOST_POINTS) -> Codes:
    """Which points are taken: all, or evenly spaced ones."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.intp))


def slopes_between(points: Sample, some: Codes) -> tuple[Floats, Codes, Codes]:
    """All slopes, in units of the sample, and the two points of each.

    Two points with one x, or of two groups, have none.
    """
    left, right = _pairs(len(some))
    x, y = points.x[some], points.y[some]
    run, rise = x.take(right), y.take(right)
    run -= x.take(left)
    rise -= y.take(left)
    usable = run != 0
    if points.code is not None:
        code = points.code[some]
        usable &= code[left] == code[right]
    if not usable.all():
        run, rise, left, right = run[usable], rise[usable], left[usable], right[usable]
    rise /= run
    return rise, left, right


@lru_cache(maxsize=16)
def _pairs(count: int) -> tuple[Codes, Codes]:
    return np.triu_indices(count, k=1)


def _kendall_variance(points: Sample, some: Codes) -> float:
    code = np.zeros(len(points.x), np.intp) if points.code is None else points.code
    groups, x_ties, y_ties = (
        _permutations(np.stack([code[some], values[some]]))
        for values in (np.zeros(len(code)), points.x, points.y)
    )
    return max(groups - x_ties - y_ties, 0.0) / 18


def _permutations(keys: Floats) -> float:
    """Σ n(n − 1)(2n + 5) over the numbers n of points that have the same keys."""
    ordered = keys[:, np.lexsort(keys[::-1])]
    new = np.r_[True, (ordered[:, 1:] != ordered[:, :-1]).any(axis=0), True]
    n = np.diff(np.flatnonzero(new)).astype(np.float64)
    return float((n * (n - 1) * (2 * n + 5)).sum())
