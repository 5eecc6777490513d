"""Which part of the numbers an axis shows, and whether it is logarithmic."""

from collections.abc import Iterable
from typing import Literal

import numpy as np

from wdecomp.charts.chart import Axis, Floats

LOG_FROM = 20.0  # largest over smallest: beyond, the smaller half of a linear axis is a smear
MARGIN = 0.05
Kind = Literal["auto", "linear", "log"]


def axis_of(title: str, values: Iterable[Floats], kind: Kind = "auto") -> Axis:
    """An axis that holds all values, with a margin.

    It is logarithmic if that is asked for, or if all values are positive and the largest is 20
    times the smallest; zeros and negative values have no place on a logarithmic axis.
    """
    found = np.concatenate([np.ravel(part) for part in values] or [np.empty(0)])
    found = found[np.isfinite(found)]
    positive = found[found > 0]
    wide = bool(positive.size) and positive.max() >= LOG_FROM * positive.min()
    log = bool(positive.size) and (kind == "log" or (kind == "auto" and wide and _all(found)))
    if not found.size:
        return Axis(title, 0.0, 1.0)
    if log:
        low, high = np.log10(positive.min()), np.log10(positive.max())
        reach = MARGIN * (high - low) or 0.1
        return Axis(title, float(10 ** (low - reach)), float(10 ** (high + reach)), log=True)
    low, high = float(found.min()), float(found.max())
    reach = MARGIN * (high - low) or MARGIN * abs(high) or 1.0
    return Axis(title, low - reach, high + reach)


def whole_axis(title: str, values: Iterable[Floats]) -> Axis:
    """A linear axis of whole numbers."""
    plain = axis_of(title, values, "linear")
    return Axis(title, plain.low, plain.high, whole=True)


def hidden(axis: Axis, values: Floats) -> int:
    """How many of the values have no place on a logarithmic axis."""
    return int((values <= 0).sum()) if axis.log else 0


def _all(found: Floats) -> bool:
    return bool((found > 0).all())
