"""Compiled code for DoRA: the lengths of V = W0 + D, and what is added to W0 once they are set.

Lengths are formed in float64: in float32, rounding would outweigh the change of a short training
run. What is added, (g − 1)·W0 + g·D, has the dtype of D; g − 1 is formed before it is rounded.
"""

import numpy as np

from wdecomp.adapter.change import Memory
from wdecomp.decomposition import Axis, compiled, number, readable, runs_along_rows
from wdecomp.dtypes import Array, Floats


def squares(base: Array, change: Array, axis: Axis) -> Floats:
    """Σv² of every column of a block along an axis.

    Args:
        base: (outputs, inputs) of the block, as stored.
        change: D, likewise.
        axis: which columns.
    """
    along_rows = runs_along_rows(base)
    if not along_rows:
        base, change = base.T, change.T
    by_row = (axis == "output") == along_rows
    found = np.zeros(len(base) if by_row else base.shape[1])
    (_add_along if by_row else _add_down)(readable(base), readable(change), found)
    return found


def rescaled(base: Array, change: Array, growth: Floats, axis: Axis, memory: Memory) -> Array:
    """(g − 1)·W0 + g·D of a block.

    Args:
        base: (outputs, inputs) of the block, as stored.
        change: D, likewise.
        growth: g of every column along the axis.
        axis: which columns have one.
        memory: where it is formed.
    """
    along_rows = runs_along_rows(base)
    if not along_rows:
        base, change = base.T, change.T
    found = memory.of(base.shape, change.dtype)
    less, growth = (growth - 1).astype(found.dtype), growth.astype(found.dtype)
    rescale = _rescale_rows if (axis == "output") == along_rows else _rescale_columns
    rescale(readable(base), readable(change), less, growth, found)
    return found if along_rows else found.T


@compiled
def _add_along(base: Array, change: Array, found: Floats) -> None:
    """Of rows, whose numbers lie side by side."""
    for i in range(base.shape[0]):
        of_row = 0.0
        for j in range(base.shape[1]):
            v = number(base, i, j) + number(change, i, j)
            of_row += v * v
        found[i] += of_row


@compiled
def _add_down(base: Array, change: Array, found: Floats) -> None:
    for i in range(base.shape[0]):
        for j in range(base.shape[1]):
            v = number(base, i, j) + number(change, i, j)
            found[j] += v * v


@compiled
def _rescale_rows(base: Array, change: Array, less: Array, growth: Array, found: Array) -> None:
    of = found.dtype.type
    for i in range(base.shape[0]):
        x, g = less[i], growth[i]
        for j in range(base.shape[1]):
            found[i, j] = x * of(number(base, i, j)) + g * of(number(change, i, j))


@compiled
def _rescale_columns(base: Array, change: Array, less: Array, growth: Array, found: Array) -> None:
    of = found.dtype.type
    for i in range(base.shape[0]):
        for j in range(base.shape[1]):
            found[i, j] = less[j] * of(number(base, i, j)) + growth[j] * of(number(change, i, j))
