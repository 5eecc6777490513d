"""Colours that stand for numbers: layers, and the values of a heatmap."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from wdecomp.charts.axes import LOG_FROM
from wdecomp.charts.chart import Floats, Scale


def layer_scale(columns: Iterable["pd.Series[int]"]) -> Scale | None:
    """From the first to the last layer; none where no matrix has a layer."""
    layers = pd.concat(list(columns)).dropna()
    if layers.empty:
        return None
    low, high = float(layers.min()), float(layers.max())
    return Scale("layer", low, max(high, low + 1), whole=True)


def value_scale(title: str, values: Floats) -> Scale:
    """Over all finite values; logarithmic where they are positive and span more than 20."""
    found = values[np.isfinite(values)]
    if not found.size:
        return Scale(title, 0.0, 1.0)
    low, high = float(found.min()), float(found.max())
    if low == high:
        return Scale(title, low - 0.5 * abs(low), high + 0.5 * abs(high) or 1.0)
    return Scale(title, low, high, log=low > 0 and high >= LOG_FROM * low)
