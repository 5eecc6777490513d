"""What the backward pass keeps in memory, and plain layers to measure section 4.3 with.

The section takes ‖V‖ for a constant to save memory. In plain autograd the exact gradient of the
norm keeps V, a tensor of (out, in), for every module; the detached one does not. That difference
is the same whatever the batch is, so that a percentage says most about the batch.
"""

import math
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from itertools import chain
from typing import Any, Literal
from weakref import ref

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wdecomp.errors import TrainingError


class _Kept:
    """A tensor, for as long as autograd holds it."""

    def __init__(self, tensor: Tensor) -> None:
        # Not the tensor itself: an output that its own graph holds is never let go.
        self.tensor = tensor.detach()


def saved_bytes(forward: Callable[[], Tensor], model: nn.Module) -> int:
    """The bytes that autograd keeps after `forward` for its backward pass.

    Tensors in one storage count once, and the model's parameters and buffers not at all. On the
    meta device nothing is computed.
    """
    kept: list[ref[_Kept]] = []

    def keep(tensor: Tensor) -> _Kept:
        one = _Kept(tensor)
        kept.append(ref(one))
        return one

    def again(one: Any) -> Tensor:
        tensor: Tensor = one.tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, again):
        end = forward()
    storages = [one.tensor.untyped_storage() for each in kept if (one := each()) is not None]
    own = {_of(t.untyped_storage()) for t in chain(model.parameters(), model.buffers())}
    found = {_of(storage): storage.nbytes() for storage in storages}
    del end  # until here it held the graph
    return sum(nbytes for storage, nbytes in found.items() if storage not in own)


def _of(storage: torch.UntypedStorage) -> int:
    """Which storage it is; without data all addresses are zero."""
    number: int = storage._cdata
    return number


def plain_layers(
    model: nn.Module,
    targets: Sequence[str],
    method: Literal["lora", "dora"] = "dora",
    rank: int = 16,
    alpha: float = 32,
    norm_gradient: Literal["detached", "exact"] = "detached",
) -> None:
    """Freezes `model` and puts a `PlainLayer` in place of each linear layer that is named.

    Args:
        model: changed in place.
        targets: ends of the layers' names, as for `adapt`.
        method: see `wdecomp.train.Adapter`, as for what follows.
        rank: see there.
        alpha: see there.
        norm_gradient: see there.

    Raises:
        TrainingError: a name fits no linear layer.
    """
    linear = {n: layer for n, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    found: dict[str, nn.Linear] = {}
    for target in targets:
        ends = {n: layer for n, layer in linear.items() if fnmatchcase(f".{n}", f"*.{target}")}
        if not ends:
            raise TrainingError(
                f"targets: {target!r} is the name of no linear layer, one was expected. "
                "Take the end of one that print(model) shows."
            )
        found |= ends
    model.requires_grad_(False)
    for name, layer in found.items():
        parent, _, child = name.rpartition(".")
        plain = PlainLayer(layer, method, rank, alpha / rank, norm_gradient)
        setattr(model.get_submodule(parent), child, plain)


class PlainLayer(nn.Module):
    """LoRA and DoRA in the terms of the authors' code, with the gradients that autograd finds.

        lora    y = x W0ᵀ + s (x Aᵀ) Bᵀ + bias                                Eq. (1)
        dora    y = x W0ᵀ + (g − 1) x W0ᵀ + g (x Aᵀ) Bᵀ s + bias              Eq. (5)

    with g = m/‖W0 + s·BA‖. Everything is in the dtype of the base.
    """

    def __init__(
        self, base: nn.Linear, method: str, rank: int, scaling: float, norm_gradient: str
    ) -> None:
        super().__init__()
        self.base, self.scaling, self.norm_gradient = base, scaling, norm_gradient
        w0 = base.weight.detach()
        self.lora_A = nn.Parameter(w0.new_empty(rank, w0.shape[1]))
        self.lora_B = nn.Parameter(w0.new_zeros(w0.shape[0], rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.magnitude = nn.Parameter(w0.norm(dim=1)) if method == "dora" else None

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        y = F.linear(x, self.base.weight)
        change = F.linear(F.linear(x, self.lora_A), self.lora_B)
        if self.magnitude is not None:
            norm = (self.base.weight + self.scaling * (self.lora_B @ self.lora_A)).norm(dim=1)
            gain = self.magnitude / (norm.detach() if self.norm_gradient == "detached" else norm)
            y, change = y + (gain - 1) * y, gain * change
        y = y + self.scaling * change
        return y if self.base.bias is None else y + self.base.bias
