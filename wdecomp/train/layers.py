"""LoRA and DoRA around a frozen linear layer.

A weight stands as PyTorch stores it, (out, in); a row belongs to one output feature, and DoRA's
norms and magnitudes are per row, as in the authors' code and PEFT. A newcomer reads this file from
top to bottom: the parameters, the forward pass, the weight that it amounts to, `adapt`.
"""

import math
from collections.abc import Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wdecomp.errors import TrainingError, some

AdapterMethod = Literal["lora", "dora"]
DTYPES = (torch.float32, torch.float64)


class AdapterLinear(nn.Module):
    """A frozen `nn.Linear` and a trained low-rank change of it.

    LoRA (arXiv 2106.09685; DoRA's Eq. (1)):   W = W0 + s·BA,           s = alpha / rank
    DoRA (arXiv 2402.09353, Eq. (5)):          W = m · V / ‖V‖,         V = W0 + s·BA

    with W0 (out, in), A (rank, in), B (out, rank), m (out,), ‖·‖ the norm of each row. B starts at
    zero and m at ‖W0‖, so that training starts from W = W0 exactly.

    Attributes:
        base: the frozen layer, W0 and its bias.
        lora_A, lora_B: A and B.
        magnitude: m for DoRA, None for LoRA.
    """

    def __init__(
        self,
        base: nn.Linear,
        method: AdapterMethod,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        like = base.weight
        self.base = base.requires_grad_(False)
        self.rank, self.alpha = rank, alpha
        self.scaling = alpha / rank
        self.dropout = nn.Dropout(dropout)
        self.lora_A = nn.Parameter(like.new_empty(rank, base.in_features))
        self.lora_B = nn.Parameter(like.new_zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.magnitude = nn.Parameter(row_norm(like.detach())) if method == "dora" else None
        self.train(base.training)

    def forward(self, x: Tensor) -> Tensor:
        """The output y (…, out) of x (…, in).

        LoRA:   y = x W0ᵀ + b + s (x Aᵀ) Bᵀ
        DoRA:   y = (m / ‖V‖) z + b,   z = x W0ᵀ + s (x Aᵀ) Bᵀ = x Vᵀ
        """
        y0: Tensor = self.base(x)
        narrow = F.linear(self.dropout(x), self.lora_A)
        change: Tensor = self.scaling * F.linear(narrow, self.lora_B)
        if self.magnitude is None:
            return y0 + change
        xw0 = y0 if self.base.bias is None else y0 - self.base.bias
        z = xw0 + change
        # (m/‖V‖) z + b, written as a difference from y0: with B = 0 it is y0 to the last bit.
        return y0 + (self.magnitude / self.direction_norm() * z - xw0)

    def direction(self) -> Tensor:
        """V = W0 + s·BA, (out, in)."""
        return torch.addmm(self.base.weight, self.lora_B, self.lora_A, alpha=self.scaling)

    @torch.no_grad()
    def direction_norm(self) -> Tensor:
        """‖V‖ per row, (out,), a constant in the backward pass (DoRA, section 4.3, Eq. (11)).

        The gradient that reaches V is (m/‖V‖) ∂L/∂W, without Eq. (6)'s projection. It is cheaper,
        and the authors report the same accuracy.
        """
        return row_norm(self.direction())

    @torch.no_grad()
    def merged(self) -> Tensor:
        """The weight W that the layer amounts to, (out, in) in float32."""
        v = self.direction()
        if self.magnitude is not None:
            v *= (self.magnitude / row_norm(v)).unsqueeze(1)
        return v.float()


def row_norm(weight: Tensor) -> Tensor:
    """‖w‖₂ of each row, (out,), at least the smallest positive number of the dtype.

    An all-zero row has no direction. Its m/‖V‖ would be 0/0; with the bound it is 1, and W is 0.
    """
    norm: Tensor = torch.linalg.vector_norm(weight, dim=1)
    return norm.clamp_min(torch.finfo(weight.dtype).tiny)


def adapt(
    model: nn.Module,
    targets: Iterable[str],
    method: AdapterMethod,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
) -> None:
    """Freezes `model` and puts an `AdapterLinear` in place of each layer that a target names.

    A target is the last component of a module's name: "query" means every `….query`.

    Raises:
        TrainingError: the rank is below 1, a target names no module, or it names one that is
            no `nn.Linear` in float32 (or float64).
    """
    if rank < 1:
        raise TrainingError(f"rank: is {rank}, at least 1 was expected.")
    # Everything is looked up before anything is changed: a failure leaves the model as it was.
    found = [pair for target in dict.fromkeys(targets) for pair in _linears(model, target)]
    model.requires_grad_(False)
    for name, linear in found:
        parent, _, child = name.rpartition(".")
        adapter = AdapterLinear(linear, method, rank, alpha, dropout)
        setattr(model.get_submodule(parent), child, adapter)


def _linears(model: nn.Module, target: str) -> list[tuple[str, nn.Linear]]:
    """Every layer with this last name component, by full name."""
    found: list[tuple[str, nn.Linear]] = []
    for name, module in model.named_modules():
        if name.rpartition(".")[2] != target:
            continue
        if not isinstance(module, nn.Linear):
            kind = type(module).__name__
            raise TrainingError(f"{name}: is a {kind}, a Linear layer was expected.")
        if module.weight.dtype not in DTYPES:
            raise TrainingError(
                f"{name}: its weight is {module.weight.dtype}, torch.float32 was expected. "
                "Load the model with dtype=torch.float32."
            )
        found.append((name, module))
    if not found:
        raise TrainingError(
            f"targets: {target!r} is the name of no module. "
            f"The model's linear layers are named {some(_linear_names(model), 8)}."
        )
    return found


def _linear_names(model: nn.Module) -> list[str]:
    linears = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return sorted({name.rpartition(".")[2] for name in linears})
