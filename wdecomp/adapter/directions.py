"""Compiled code for DoRA: the lengths of V = W0 + D, and what is added to W0 once they are set.

All in float64: rounding V would outweigh the change of a short training run.
"""

import numpy as np

from wdecomp.adapter.change import Memory
from wdecomp.decomposition import Axis, compiled, number, readable, runs_along_rows
from wdecomp.dtypes import Array, Floats


def squares(base: Array, change: Array) -> dict[Axis, Floats]:
    """Σv² of a block along both axes.

    Args:
        base: (outputs, inputs) of the block, as stored.
        change: D, likewise.
    """
    along, down = np.zeros(base.shape[0]), np.zeros(base.shape[1])
    if runs_along_rows(base):
        _add_squares(readable(base), readable(change), along, down)
    else:
        _add_squares(readable(base.T), readable(change.T), down, along)
    return {"output": along, "input": down}


def rescaled(base: Array, change: Array, growth: Floats, axis: Axis, memory: Memory) -> Array:
    """(g − 1)·W0 + g·D of a block.

    Args:
        base: (outputs, inputs) of the block, as stored.
        change: D, likewise.
        growth: g of every column along the axis.
        axis: which columns have one.
        memory: where it is formed.
    """
    turned = not runs_along_rows(base)
    if turned:
        base, change = base.T, change.T
    found = memory.of(base.shape, change.dtype)
    by_row = (axis == "output") != turned
    rows, columns = (growth, np.ones(base.shape[1])) if by_row else (np.ones(len(base)), growth)
    _rescale(readable(base), readable(change), rows, columns, found)
    return found.T if turned else found


@compiled
def _add_squares(base: Array, change: Array, along: Floats, down: Floats) -> None:
    """Numbers of a row lie side by side."""
    for i in range(base.shape[0]):
        of_row = 0.0
        for j in range(base.shape[1]):
            v = number(base, i, j) + number(change, i, j)
            of_row += v * v
            down[j] += v * v
        along[i] += of_row


@compiled
def _rescale(base: Array, change: Array, rows: Floats, columns: Floats, found: Array) -> None:
    """Likewise; the g of a number is that of its row times that of its column."""
    for i in range(base.shape[0]):
        for j in range(base.shape[1]):
            g = rows[i] * columns[j]
            found[i, j] = (g - 1.0) * number(base, i, j) + g * number(change, i, j)
