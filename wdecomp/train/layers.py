"""The paper's methods around frozen layers, to be read from top to bottom.

Every layer is seen as a matrix W0 (out, in) that is applied to an input; `kinds.py` says how. What
a training changes is that matrix:

    lora        W = V                  V = W0 + s·BA             Eq. (1), arXiv 2106.09685
    dora        W = m · V/‖V‖          V = W0 + s·BA             Eq. (5)
    vera        W = V                  V = W0 + (b∘B)(d∘A)       arXiv 2310.11454
    dvora       W = m · V/‖V‖          V = W0 + (b∘B)(d∘A)       section 5.4
    magnitude   W = m · W0/‖W0‖                                  section 5.6

with A (rank, in), B (out, rank), s = alpha/rank, ‖·‖ the norm of each row, which belongs to one
output feature, and m (out,). VeRA's A and B are random, frozen and shared by all layers; its
vectors d (rank,) and b (out,) are trained. Training starts from W = W0, to the last bit.

Two forms give the same numbers. The *activation* form adds the low-rank part to the outputs, the
*folded* form adds it to the weight: that is cheaper once there are more tokens than half the
inputs. Neither keeps anything of the weight's size for the backward pass.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wdecomp.train.kinds import kind_of
from wdecomp.train.vera import Projections

AdapterMethod = Literal["lora", "dora", "vera", "dvora", "magnitude"]
WITH_MAGNITUDE = ("dora", "dvora", "magnitude")
SHARED = ("vera", "dvora")  # A and B
D_INITIAL = 0.1  # every number of VeRA's d
HIDDEN = 0.1  # of the bias: below that too few digits of m are left in the output


@dataclass(frozen=True)
class Adapter:
    """What is trained in a layer, and how.

    Attributes:
        method: see the head of this file.
        rank, alpha: of BA; VeRA has no alpha, and magnitudes alone have neither.
        dropout: of the input of the low-rank part, while training.
        rslora: s = alpha/√rank instead (arXiv 2312.03732).
        norm_gradient: "detached" takes ‖V‖ for a constant in the backward pass (section 4.3,
            Eq. (11)), "exact" does not (Eq. (6)).
        axis: "output" has an m and a norm for each output feature, as the authors' code and PEFT;
            "input" for each input feature.
        form: "auto" takes the cheaper one.
    """

    method: AdapterMethod
    rank: int = 16
    alpha: float = 32
    dropout: float = 0.0
    rslora: bool = False
    norm_gradient: Literal["detached", "exact"] = "detached"
    axis: Literal["output", "input"] = "output"
    form: Literal["auto", "activation", "folded"] = "auto"

    @property
    def scaling(self) -> float:
        """s, by which BA is multiplied."""
        if self.method in SHARED:
            return 1.0
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def halved(self) -> "Adapter":
        """The paper's DoRA†: half the rank, and alpha twice that."""
        rank = self.rank // 2
        return replace(self, rank=rank, alpha=2 * rank)


class AdaptedLayer(nn.Module):
    """A frozen layer and the trained change of its weight.

    Attributes:
        base: the frozen layer, with W0 and its bias.
        adapter: what is trained, and how.
        lora_A, lora_B: A and B of LoRA and DoRA, else None.
        vera_lambda_d, vera_lambda_b: d and b of VeRA and DVoRA, else None.
        magnitude: m, or None.

    Raises:
        TrainingError: the layer has no matrix that this adapter can change.
    """

    square: Tensor  # ‖w0‖² of each row, where there are magnitudes

    def __init__(
        self,
        name: str,
        base: nn.Module,
        adapter: Adapter,
        projections: Projections | None = None,
    ) -> None:
        super().__init__()
        self.adapter, self.projections, self.kind = adapter, projections, kind_of(name, base)
        self.base = base.requires_grad_(False)
        self.dropout = nn.Dropout(adapter.dropout)
        w0 = self.kind.matrix(base).detach()
        self.shape, self.dtype = w0.shape, w0.dtype  # asked for often, and NF4 would be decoded
        # A, B, m and every norm in float32, whatever the base is stored in: in BF16 a step of
        # training is smaller than the distance of neighbouring numbers, and m would stand still.
        self._start(w0.to(torch.promote_types(w0.dtype, torch.float32)))
        self.kept_norm: Tensor | None = None
        self.kept_weight: Tensor | None = None
        self.keeps_norm = False
        self.train(base.training)

    def _start(self, w0: Tensor) -> None:
        outputs, inputs = w0.shape
        rank, method = self.adapter.rank, self.adapter.method
        self.lora_A = self.lora_B = self.vera_lambda_d = self.vera_lambda_b = self.magnitude = None
        if method in SHARED:
            self.vera_lambda_d = nn.Parameter(w0.new_full((rank,), D_INITIAL))
            self.vera_lambda_b = nn.Parameter(w0.new_zeros(outputs))
        elif method != "magnitude":
            self.lora_A = nn.Parameter(w0.new_empty(rank, inputs))
            self.lora_B = nn.Parameter(w0.new_zeros(outputs, rank))
            nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        if method in WITH_MAGNITUDE:
            norm = row_norm(self._turned(w0))
            self.magnitude = nn.Parameter(norm.clone())
            # √(m·m) is m in IEEE arithmetic: with B = 0 the factored norm is m to the last bit.
            self.register_buffer("square", norm * norm, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output for an input x, as W in place of W0 would give it."""
        if self.kept_weight is not None:
            return self._with_bias(self.kind.through(x, self.kept_weight, self.base))
        a, b = self.factors()
        if a is not None and b is not None and self._folds(x):
            return self._folded(x, a, b)
        return self._activated(x, a, b)

    def _activated(self, x: Tensor, a: Tensor | None, b: Tensor | None) -> Tensor:
        """Y = g z + bias,   z = x W0ᵀ + s (x Aᵀ) Bᵀ = x Vᵀ,   g = m/‖V‖."""
        gain = self._gain(a, b) if self.magnitude is not None else None
        if gain is not None and self.adapter.axis == "input":
            x = x * gain.to(x.dtype)
        z = self.kind.through(x, self.kind.matrix(self.base), self.base)
        dtype = z.dtype
        if a is not None and b is not None:
            seen = self.dropout(x).to(a.dtype) if x.is_floating_point() else x
            z = self._plus_product(z, self.kind.through(seen, a, self.base), b)
        if gain is not None and self.adapter.axis == "output":
            z = z * self.kind.across(gain)
        return self._with_bias(z).to(dtype)

    def _folded(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Y = x Wᵀ + bias, W formed for the moment."""
        y: Tensor
        bias = getattr(self.base, "bias", None)
        y, norm = Folded.apply(x, a, b, self.magnitude, bias, self)  # type: ignore[no-untyped-call]
        if self.keeps_norm:
            self.kept_norm = norm
        return y

    def factors(self) -> tuple[Tensor | None, Tensor | None]:
        """A (rank, in) and B (out, rank) of the product in V, or None and None."""
        d, b = self.vera_lambda_d, self.vera_lambda_b
        if d is None or b is None or self.projections is None:
            return self.lora_A, self.lora_B
        shared_a, shared_b = self.projections.of(len(b), self.shape[1], d)
        return d.unsqueeze(1) * shared_a, b.unsqueeze(1) * shared_b

    def direction(self, a: Tensor | None, b: Tensor | None) -> Tensor:
        """V = W0 + s·BA, (out, in)."""
        w0 = self.kind.matrix(self.base).to(self.wide)
        if a is None or b is None:
            return w0
        return torch.addmm(w0, b, a, alpha=self.adapter.scaling)

    @torch.no_grad()
    def merged(self) -> Tensor:
        """The weight W that the layer amounts to, (out, in), in float32 (or float64)."""
        v = self._turned(self.direction(*self.factors()))
        if self.magnitude is not None:
            v = v * (self.magnitude / row_norm(v)).unsqueeze(1)
        return self._turned(v)

    @property
    def wide(self) -> torch.dtype:
        """The dtype of what is trained, and of norms and products."""
        tensors = (self.lora_A, self.vera_lambda_b, self.magnitude)
        return next(tensor.dtype for tensor in tensors if tensor is not None)

    def extra_repr(self) -> str:
        """What print shows."""
        return f"{self.adapter.method}, rank={self.adapter.rank}, scaling={self.adapter.scaling:g}"

    def _folds(self, x: Tensor) -> bool:
        """Whether the folded form gives the same numbers, and is the cheaper one."""
        adapter = self.adapter
        same = (
            self.kind.folds
            and x.dtype == self.dtype == self.wide  # in fewer bits W would lose the change
            and not torch.is_autocast_enabled(x.device.type)
            and not (self.training and adapter.dropout > 0)
            and (self.magnitude is None or adapter.axis == "output")
        )
        if adapter.form == "auto":
            return same and x.numel() >= self.shape[1] ** 2 / 2
        return same and adapter.form == "folded"

    def _gain(self, a: Tensor | None, b: Tensor | None) -> Tensor:
        assert self.magnitude is not None
        if self.kept_norm is not None:
            return self.magnitude / self.kept_norm
        with torch.set_grad_enabled(
            self.adapter.norm_gradient == "exact" and torch.is_grad_enabled()
        ):
            norm = self._factored_norm(a, b)
        if self.keeps_norm:
            self.kept_norm = norm
        return self.magnitude / norm

    def _factored_norm(self, a: Tensor | None, b: Tensor | None) -> Tensor:
        """‖V‖ without V: ‖v_j‖² = ‖w_j‖² + Σ_r b_jr (2s W0Aᵀ + s² B AAᵀ)_jr."""
        square = self.square
        if a is not None and b is not None:
            s = self.adapter.scaling
            if self.adapter.axis == "input":
                a, b = b.T, a.T
            narrow: Tensor = Narrowed.apply(a, self)  # type: ignore[no-untyped-call]
            square = square + ((2 * s * narrow + s**2 * (b @ (a @ a.T))) * b).sum(1)
        return square.clamp_min(torch.finfo(square.dtype).tiny).sqrt()

    def turned_base(self) -> Tensor:
        """W0 in float32, with the vectors that have a norm as rows."""
        return self._turned(self.kind.matrix(self.base)).to(self.wide)

    def _plus_product(self, z: Tensor, narrow: Tensor, b: Tensor) -> Tensor:
        """Z + s (x Aᵀ) Bᵀ."""
        s = self.adapter.scaling
        if not (self.kind.folds and z.dtype == narrow.dtype == b.dtype):
            return z.to(b.dtype) + s * self.kind.after(narrow, b)
        rows = z.view(-1, z.shape[-1])  # no second tensor of this size: z is nobody else's
        return rows.addmm_(narrow.view(-1, len(b.T)), b.T, alpha=s).view(z.shape)

    def _with_bias(self, z: Tensor) -> Tensor:
        bias = getattr(self.base, "bias", None)
        return z if bias is None else z + self.kind.across(bias)

    def _turned(self, matrix: Tensor) -> Tensor:
        """With the vectors that have a norm as rows, and back."""
        return matrix.T if self.adapter.axis == "input" else matrix


class Folded(torch.autograd.Function):
    """y = x Wᵀ + bias, W = (m/‖V‖) V, V = W0 + s·BA; returns y and ‖V‖.

    With the gradient G = Σ_t ∂L/∂y_t x_tᵀ that W would have, which is never formed, and g = m/‖V‖,
    every row has

        ∂L/∂V = g G             Eq. (11), ‖V‖ taken for a constant
        ∂L/∂V = g G − c V,      c = (G·W)/‖V‖²                  Eq. (6)
        ∂L/∂m = (G·V)/‖V‖                                       Eq. (7)

    and G·W = Σ_t ∂L/∂y_t (y_t − bias). From ∂L/∂V to A and B it is only products with `rank` rows
    or columns. W is formed again in the backward pass: saved are x and y.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        a: Tensor,
        b: Tensor,
        m: Tensor | None,
        bias: Tensor | None,
        layer: AdaptedLayer,
    ) -> tuple[Tensor, Tensor | None]:
        """See the class."""
        v, norm = layer.direction(a, b), None
        if m is not None:
            norm = row_norm(v) if layer.kept_norm is None else layer.kept_norm
            v.mul_((m / norm).unsqueeze(1))
            ctx.mark_non_differentiable(norm)
        y = F.linear(x, v, bias)
        ctx.save_for_backward(x, a, b, m, bias, norm, None if m is None else y)
        ctx.layer = layer
        return y, norm

    @staticmethod
    def backward(ctx: Any, gy: Tensor, _: Any) -> Any:
        """See the class."""
        x, a, b, m, bias, norm, y = ctx.saved_tensors
        layer: AdaptedLayer = ctx.layer
        s, shape = layer.adapter.scaling, x.shape
        x, gy = x.reshape(-1, shape[-1]), gy.reshape(-1, gy.shape[-1])
        v, dm, c, gain = layer.direction(a, b), None, None, None
        if m is not None:
            gain = (m / norm).unsqueeze(1)
            gw, dm = _of_magnitude(gy, x, y.reshape(gy.shape), bias, m, norm, v)
            if layer.adapter.norm_gradient == "exact":
                c = (gw / norm.square()).unsqueeze(1)
        da = ((gy @ (b if gain is None else gain * b)).T @ x).mul_(s)
        db = (gy.T @ (x @ a.T)).mul_(s if gain is None else s * gain)
        if c is not None:
            da.addmm_((c * b).T, v, alpha=-s)
            db.sub_(s * c * (v @ a.T))
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (gy @ (v if gain is None else v.mul_(gain))).reshape(shape)
        return dx, da, db, dm, None, None


class Narrowed(torch.autograd.Function):
    """W0 Aᵀ; a W0 that was widened or decoded for it is not kept, but formed again."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, layer: AdaptedLayer) -> Tensor:
        """See the class."""
        ctx.layer = layer
        return layer.turned_base() @ a.T

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        """See the class."""
        return g.T @ ctx.layer.turned_base(), None


def _of_magnitude(
    gy: Tensor, x: Tensor, y: Tensor, bias: Tensor | None, m: Tensor, norm: Tensor, v: Tensor
) -> tuple[Tensor, Tensor]:
    """(G·W, ∂L/∂m) of every row; where the bias hides m in y, G·V is summed from x instead."""
    gw, hidden = torch.linalg.vecdot(gy, y, dim=0), m == 0
    if bias is not None:
        gw = gw - bias * gy.sum(0)
        hidden |= m.abs() < HIDDEN * bias.abs()
    dm = gw / m
    if hidden.any():
        rows = hidden.nonzero().squeeze(1)
        dm[rows] = torch.linalg.vecdot(gy[:, rows], x @ v[rows].T, dim=0) / norm[rows]
        gw[rows] = dm[rows] * m[rows]
    return gw, dm


def row_norm(weight: Tensor) -> Tensor:
    """‖w‖₂ of each row, (out,), at least the root of the smallest positive number.

    An all-zero row has no direction. Its m/‖V‖ would be 0/0; with the bound it is 1, and W is 0.
    How the matrix lies in memory makes no difference, so that m/‖V‖ is 1 for V = W0.
    """
    norm: Tensor = torch.linalg.vector_norm(weight.contiguous(), dim=1)
    return norm.clamp_min(math.sqrt(torch.finfo(weight.dtype).tiny))
