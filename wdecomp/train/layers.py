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

Two forms give the same numbers (`forms.py`). The *activation* form adds the low-rank part to the
outputs, the *folded* form adds it to the weight, which is cheaper for many tokens. Neither keeps
anything of the weight's size for the backward pass.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wdecomp.train.forms import Activated, Folded, factored_norm, row_norm
from wdecomp.train.kinds import kind_of
from wdecomp.train.vera import Projections

AdapterMethod = Literal["lora", "dora", "vera", "dvora", "magnitude"]
WITH_MAGNITUDE = ("dora", "dvora", "magnitude")
SHARED = ("vera", "dvora")  # A and B
D_INITIAL = 0.1  # every number of VeRA's d
FOLDING = 3  # outputs and inputs of all tokens, in weights, from which on folding is cheaper


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
        kept = self.kept_weight
        if kept is not None:
            if self.kind.folds:
                return F.linear(x, kept, self.bias)
            return self._with_bias(self.kind.through(x, kept, self.base))
        a, b = self.factors()
        if a is None or b is None or not self._has_forms(x):
            return self._composed(x, a, b)
        y: Tensor
        drops = self.training and self.adapter.dropout > 0
        if self._folds(x, drops):
            y, norm = Folded.apply(x, a, b, self.magnitude, self)  # type: ignore[no-untyped-call]
        else:
            dropped = self.dropout(x) if drops else None
            y, norm = Activated.apply(x, dropped, a, b, self.magnitude, self)  # type: ignore[no-untyped-call]
        if self.keeps_norm:
            self.kept_norm = norm
        return y

    def _composed(self, x: Tensor, a: Tensor | None, b: Tensor | None) -> Tensor:
        """The activation form of any layer and dtype: Y = g (x W0ᵀ + s (x Aᵀ) Bᵀ) + bias."""
        gain = self._gain(a, b) if self.magnitude is not None else None
        if gain is not None and self.adapter.axis == "input":
            x = x * gain.to(x.dtype)
        z = self.kind.through(x, self.kind.matrix(self.base), self.base)
        dtype = z.dtype
        if a is not None and b is not None:
            seen = self.dropout(x).to(a.dtype) if x.is_floating_point() else x
            narrow = self.kind.through(seen, a, self.base)
            product = self.kind.after(narrow, b)
            z = torch.add(z.to(b.dtype), product, alpha=self.adapter.scaling)
        if gain is not None and self.adapter.axis == "output":
            z = z * self.kind.across(gain)
        return self._with_bias(z).to(dtype)

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

    @property
    def bias(self) -> Tensor | None:
        """The frozen layer's, (out,), if it has one."""
        bias: Tensor | None = getattr(self.base, "bias", None)
        return bias

    def extra_repr(self) -> str:
        """What print shows."""
        return f"{self.adapter.method}, rank={self.adapter.rank}, scaling={self.adapter.scaling:g}"

    def _has_forms(self, x: Tensor) -> bool:
        """Whether the layer is a matrix product, in the dtype of all that is trained."""
        return (
            self.kind.folds
            and x.dtype == self.dtype == self.wide  # in fewer bits W would lose the change
            and (x.is_meta or not torch.is_autocast_enabled(x.device.type))
            and (self.magnitude is None or self.adapter.axis == "output")
        )

    def _folds(self, x: Tensor, drops: bool) -> bool:
        """Whether to add to the weight: dropout does not allow it, nor do few tokens want it."""
        if self.adapter.form != "auto" or drops:
            return self.adapter.form == "folded" and not drops
        outputs, inputs = self.shape
        return x.numel() * (outputs + inputs) >= FOLDING * outputs * inputs**2

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
        if a is None or b is None:
            return self.square.sqrt()
        if self.adapter.axis == "input":
            a, b = b.T, a.T
        of_w0: Tensor = Narrowed.apply(a, self)  # type: ignore[no-untyped-call]
        return factored_norm(self.square, of_w0, a, b, self.adapter.scaling)[0]

    def turned_base(self) -> Tensor:
        """W0 in float32, with the vectors that have a norm as rows."""
        return self._turned(self.kind.matrix(self.base)).to(self.wide)

    def _with_bias(self, z: Tensor) -> Tensor:
        return z if self.bias is None else z + self.kind.across(self.bias)

    def _turned(self, matrix: Tensor) -> Tensor:
        """With the vectors that have a norm as rows, and back."""
        return matrix.T if self.adapter.axis == "input" else matrix


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
