"""The two forms of a linear layer with an adapted weight, their gradients written out.

    y = x Wᵀ + bias,    W = g V,    V = W0 + s·BA,    g = m/‖V‖, or 1 without magnitudes

With the gradient G = Σ_t ∂L/∂y_t x_tᵀ that W would have, which is never formed, every row has

    ∂L/∂V = g G             Eq. (11), ‖V‖ taken for a constant
    ∂L/∂V = g G − c V,      c = (G·W)/‖V‖²                  Eq. (6)
    ∂L/∂m = (G·V)/‖V‖                                       Eq. (7)

and G·W = Σ_t ∂L/∂y_t (y_t − bias). From ∂L/∂V to A and B it is only products with `rank` rows or
columns. Saved are x and y, and what has the size of A, B or x Aᵀ; what has that of a weight is
formed again in the backward pass.
"""

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from wdecomp.train.layers import AdaptedLayer

IN_CACHE = 1 << 16  # numbers per thread
HIDDEN = 0.1  # of the bias: below that too few digits of m are left in the output


class Folded(torch.autograd.Function):
    """y = x Wᵀ + bias, W formed for the moment; returns y and ‖V‖."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, a: Tensor, b: Tensor, m: Tensor | None, layer: "AdaptedLayer"
    ) -> tuple[Tensor, Tensor | None]:
        """See the class."""
        v, bias = layer.direction(a, b), layer.bias
        norm = gain = rows = z = None
        if m is not None:
            norm = row_norm(v) if layer.kept_norm is None else layer.kept_norm
            ctx.mark_non_differentiable(norm)
            rows = hidden_rows(m, bias)
            z = None if rows is None else F.linear(x, v[rows])
            gain = m / norm
            v.mul_(gain.unsqueeze(1))
        y = _linear(x, v, bias)
        ctx.save_for_backward(x, a, b, m, norm, gain, None if m is None else y, rows, z)
        ctx.layer = layer
        return y, norm

    @staticmethod
    def backward(ctx: Any, gy: Tensor, _: Any) -> Any:
        """∂L/∂x = ∂L/∂y W; the rest is at the head of this file."""
        x, a, b, m, norm, gain, y, rows, z = ctx.saved_tensors
        layer: AdaptedLayer = ctx.layer
        s, shape = layer.adapter.scaling, x.shape
        x, gy = x.reshape(-1, shape[-1]), gy.reshape(-1, gy.shape[-1])
        dm, c = None, None
        if m is None:
            da, db = (gy @ b).T @ x, gy.T @ (x @ a.T)
        else:
            gw, dm = _of_magnitude(gy, y, layer.bias, m, norm, rows, z)
            column = gain.unsqueeze(1)
            da, db = (gy @ (column * b)).T @ x, (gy.T @ (x @ a.T)).mul_(column)
            if layer.adapter.norm_gradient == "exact":
                c = (gw / norm.square()).unsqueeze(1)
        dx = None
        if c is not None or ctx.needs_input_grad[0]:
            v = layer.direction(a, b)
            if c is not None:
                da -= (c * b).T @ v
                db -= (v @ a.T).mul_(c)
            if ctx.needs_input_grad[0]:
                dx = (gy @ (v if gain is None else v.mul_(gain.unsqueeze(1)))).view(shape)
        return dx, da.mul_(s), db.mul_(s), dm, None


class Activated(torch.autograd.Function):
    """y = g (x W0ᵀ + s (x' Aᵀ) Bᵀ) + bias; returns y and ‖V‖. Dropout tells x' from x."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dropped: Tensor | None,
        a: Tensor,
        b: Tensor,
        m: Tensor | None,
        layer: "AdaptedLayer",
    ) -> tuple[Tensor, Tensor | None]:
        """See the class."""
        w0, s, bias = layer.kind.matrix(layer.base), layer.adapter.scaling, layer.bias
        seen = x if dropped is None else dropped
        narrow = seen.reshape(-1, seen.shape[-1]) @ a.T
        norm = va = gain = rows = z = None
        if m is not None:
            if layer.kept_norm is None:
                norm, va = factored_norm(layer.square, w0 @ a.T, a, b, s)
            else:
                norm = layer.kept_norm
            ctx.mark_non_differentiable(norm)
            rows, gain = hidden_rows(m, bias), m / norm
        if gain is not None and on_weight(narrow, layer.shape):
            column = gain.unsqueeze(1)
            y = _linear(x, w0 * column, bias)
            y.view(-1, y.shape[-1]).addmm_(narrow, (b * column).T, alpha=s)
            if rows is not None:
                z = F.linear(x, w0[rows]) + (narrow @ b[rows].T).mul_(s).view(*x.shape[:-1], -1)
        else:
            y = F.linear(x, w0)
            y.view(-1, y.shape[-1]).addmm_(narrow, b.T, alpha=s)
            z = None if rows is None else y[..., rows]
            if gain is not None:
                y = y.mul_(gain) if bias is None else torch.addcmul(bias, y, gain, out=y)
            elif bias is not None:
                y.add_(bias)
        va = va if layer.adapter.norm_gradient == "exact" else None
        kept = None if m is None else y
        ctx.save_for_backward(seen, narrow, a, b, m, norm, gain, va, kept, rows, z)
        ctx.layer, ctx.drops = layer, dropped is not None
        return y, norm

    @staticmethod
    def backward(ctx: Any, gy: Tensor, _: Any) -> Any:
        """∂L/∂x = h W0 and ∂L/∂x' = s (h B) A with h = g ∂L/∂y; the rest as above."""
        seen, narrow, a, b, m, norm, gain, va, y, rows, z = ctx.saved_tensors
        layer: AdaptedLayer = ctx.layer
        s, shape = layer.adapter.scaling, seen.shape
        seen, gy = seen.reshape(-1, shape[-1]), gy.reshape(-1, gy.shape[-1])
        dx, d_dropped, dm, c, h, column = None, None, None, None, gy, None
        if m is None:
            hb, db = gy @ b, gy.T @ narrow
        else:
            gw, dm = _of_magnitude(gy, y, layer.bias, m, norm, rows, z)
            if on_weight(gy, layer.shape):
                column = gain.unsqueeze(1)
                hb, db = gy @ (b * column), (gy.T @ narrow).mul_(column)
            else:
                h = gy * gain
                hb, db = h @ b, h.T @ narrow
            if va is not None:
                c = (gw / norm.square()).unsqueeze(1)
        da = hb.T @ seen
        if c is not None or ctx.needs_input_grad[0]:
            w0 = layer.kind.matrix(layer.base)
        if c is not None:
            cb = (c * b).T
            da.sub_(cb @ w0).addmm_(cb @ b, a, alpha=-s)
            db -= c * va
        if ctx.needs_input_grad[0]:
            dx = h @ w0 if column is None else gy @ (w0 * column)
            dx = (dx if ctx.drops else dx.addmm_(hb, a, alpha=s)).view(shape)
        if ctx.needs_input_grad[1]:
            d_dropped = (hb @ a).mul_(s).view(shape)
        return dx, d_dropped, da.mul_(s), db.mul_(s), dm, None


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """X Wᵀ + bias, and no view, so that it may be changed in place."""
    if bias is None:
        return F.linear(x, weight)
    y = x.new_empty(*x.shape[:-1], len(weight))
    torch.addmm(bias, x.reshape(-1, x.shape[-1]), weight.T, out=y.view(-1, len(weight)))
    return y


def on_weight(rows: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether g is cheaper to put on the weight than on the outputs of so many tokens."""
    return len(rows) > shape[1]


def factored_norm(
    square: Tensor, w0a: Tensor, a: Tensor, b: Tensor, s: float
) -> tuple[Tensor, Tensor]:
    """(‖V‖, V Aᵀ) without V, from ‖w0‖² and W0 Aᵀ: ‖v‖² = ‖w0‖² + s Σ_r B_r (W0Aᵀ + VAᵀ)_r."""
    va = torch.addmm(w0a, b, a @ a.T, alpha=s)
    square = torch.add(square, torch.linalg.vecdot(w0a + va, b), alpha=s)
    return square.clamp_min(torch.finfo(square.dtype).tiny).sqrt(), va


def hidden_rows(m: Tensor, bias: Tensor | None) -> Tensor | None:
    """The outputs where m cannot be divided out, mostly none: it is zero, or the bias hides it."""
    if m.is_meta:
        return None
    hidden = m == 0 if bias is None else m.abs() <= HIDDEN * bias.abs()
    return hidden.nonzero().squeeze(1) if hidden.any() else None


def _of_magnitude(
    gy: Tensor,
    y: Tensor,
    bias: Tensor | None,
    m: Tensor,
    norm: Tensor,
    rows: Tensor | None,
    z: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(G·W, ∂L/∂m) of every row; of hidden ones from their own z = x Vᵀ."""
    gw = _column_products(gy, y.reshape(gy.shape))
    if bias is not None:
        gw.addcmul_(bias, gy.sum(0), value=-1)
    dm = gw / m
    if rows is not None and z is not None:
        dm[rows] = torch.linalg.vecdot(gy[:, rows], z.reshape(-1, len(rows)), dim=0) / norm[rows]
        gw[rows] = dm[rows] * m[rows]
    return gw, dm


def _column_products(x: Tensor, y: Tensor) -> Tensor:
    """Σ_t x_t y_t of every column; on a CPU so few rows at a time that x∘y stays in the cache."""
    few = max(1, IN_CACHE * torch.get_num_threads() // x.shape[1])
    if x.device.type != "cpu":
        few = len(x)
    parts = zip(torch.split(x, few), torch.split(y, few), strict=True)
    first, *others = (torch.linalg.vecdot(*part, dim=0) for part in parts)
    total: Tensor = sum(others, start=first)
    return total


def row_norm(weight: Tensor) -> Tensor:
    """‖w‖₂ of each row, (out,), at least the root of the smallest positive number.

    An all-zero row has no direction. Its m/‖V‖ would be 0/0; with the bound it is 1, and W is 0.
    How the matrix lies in memory makes no difference, so that m/‖V‖ is 1 for V = W0.
    """
    norm: Tensor = torch.linalg.vector_norm(weight.contiguous(), dim=1)
    return norm.clamp_min(math.sqrt(torch.finfo(weight.dtype).tiny))
