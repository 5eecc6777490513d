"""Σw0², Σ(w − w0)·w0 and Σ(w − w0)² of an adapted weight, from its factors: see `live.py`."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from wdecomp.adapter import Adapted
from wdecomp.adapter.change import index, numbers
from wdecomp.decomposition import Axis, Sums
from wdecomp.dtypes import Array, Floats
from wdecomp.scan.measure import Measured

BLOCK = 1 << 17  # numbers of W0 that are widened at a time: they stay in the cache


def squares(w0: Tensor) -> tuple[Floats, Floats]:
    """Σw0² of every output and of every input."""
    of_outputs, of_inputs = [], w0.new_zeros(w0.shape[1], dtype=torch.float64)
    for block in _blocks(w0):
        square = block.square()
        of_outputs.append(square.sum(1))
        of_inputs += square.sum(0)
    return torch.cat(of_outputs).cpu().numpy(), of_inputs.cpu().numpy()


def from_factors(
    w0: Tensor, adapted: Adapted, squares: tuple[Floats, Floats], axes: tuple[Axis, ...]
) -> Measured:
    """The sums of W0 and a product beside it; see the head of this file.

    Args:
        w0: (out, in).
        adapted: its update is a product; its magnitude, if any, is one of outputs.
        squares: Σw0² of every output and every input.
        axes: inputs are left out where they are not wanted.
    """
    a, of_inputs = squares
    change = adapted.update.load(adapted.module)
    rows = slice(None) if adapted.outputs is None else index(adapted.outputs)
    left, right = (_wide(part, w0) for part in (change.left[rows], change.right))  # type: ignore[attr-defined]
    nothing = np.full((2, w0.shape[1]), np.nan)
    inputs = _products(w0.T, left.T, right.T) if "input" in axes else nothing
    p, q = _products(w0, right, left)
    sums, direct = np.stack([a, p, q]), None
    if adapted.magnitude is not None:
        m = numbers(adapted.magnitude.values).reshape(-1)[rows].astype(np.float64)
        norm = np.sqrt(np.maximum(a + 2 * p + q, 0))
        # A row of V that is zero has no direction; W is zero there.
        g = np.divide(m, norm, out=np.zeros_like(norm), where=norm > 0)
        c = (g - 1) ** 2 * a + 2 * (g - 1) * g * p + g**2 * q
        sums = np.stack([a, (g - 1) * a + g * p, np.maximum(c, 0)])
        direct = np.stack([a, g * (a + p), (g * norm) ** 2])
    of_axes = np.stack([of_inputs, *inputs])
    return Measured(Sums(sums, of_axes), None if direct is None else Sums(direct, of_axes))


def _products(w0: Tensor, a: Tensor, b: Tensor) -> Floats:
    """(p, q) of every row of W0, (2, rows)."""
    p = torch.cat([a @ block.T for block in _blocks(w0)], 1).T.mul(b).sum(1)
    q = (b @ (a @ a.T)).mul_(b).sum(1)
    found: Floats = torch.stack([p, q]).cpu().numpy()
    return found


def _blocks(w0: Tensor) -> Iterator[Tensor]:
    """W0 in float64, some rows at a time."""
    for rows in torch.split(w0, max(BLOCK // max(w0.shape[1], 1), 1)):
        yield rows.double()


def _wide(factor: Array, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(factor)).to(like.device, torch.float64)
