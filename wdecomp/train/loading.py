"""An adapter on disk put into a model: what `save_adapter` writes, read back.

The formats are those of `wdecomp.adapter`, of which the trainer's layers hold

    LoRA, DoRA      s·BA of linear layers, convolutions and embeddings, and magnitudes
    VeRA, DVoRA     the vectors d and b of shared matrices, and magnitudes

and, beside them, parameters that were trained whole.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wdecomp.adapter import Adapter as StoredAdapter
from wdecomp.adapter import Magnitude, Vera, read_adapter
from wdecomp.adapter.change import numbers
from wdecomp.adapter.low_rank import LowRank
from wdecomp.checkpoint import PlainTensor, open_checkpoint, steps_of
from wdecomp.errors import TrainingError, some
from wdecomp.train.kinds import kind_of
from wdecomp.train.layers import AdaptedLayer, Adapter, AdapterMethod
from wdecomp.train.vera import Projections


@dataclass(frozen=True)
class Trained:
    """What a file has of one layer."""

    update: LowRank | Vera
    magnitude: Magnitude | None

    @property
    def adapter(self) -> Adapter:
        """What the layer is trained as; alpha is such that alpha/rank is the scaling."""
        method: AdapterMethod
        if isinstance(self.update, Vera):
            method = "vera" if self.magnitude is None else "dvora"
        else:
            method = "lora" if self.magnitude is None else "dora"
        rank, scaling = self.update.rank, self.update.scaling or 1.0
        axis = "output" if self.magnitude is None else self.magnitude.axis
        return Adapter(method, rank=rank, alpha=scaling * rank, axis=axis)

    def fits(self, shape: tuple[int, int]) -> bool:
        """Whether it is of a matrix of this shape, (out, in)."""
        b = self.update.b if isinstance(self.update, Vera) else None
        return self.update.fits(shape) and (b is None or b.shape[0] >= shape[0])


def load_adapter(model: nn.Module, folder: Path) -> None:
    """Freezes `model` and puts the adapter in a folder (or file) into it, as it was trained.

    Raises:
        WdecompError: there is none, it is damaged, of a kind that the layers here have not, or of
            another model. `model` is then as it was.
    """
    steps = steps_of(folder)
    if steps[0][1] != folder:
        raise TrainingError(
            f"{folder}: holds {len(steps)} checkpoints, one was expected. Name it: {steps[-1][1]}."
        )
    opened = open_checkpoint(folder)
    if not opened.is_adapter:
        raise TrainingError(
            f"{folder}: is a whole model, an adapter was expected. Name it as the model."
        )
    stored = read_adapter(opened)
    trained = _trained(folder, stored)
    layers = {name: _layer(folder, model, name, each) for name, each in trained.items()}
    whole = _whole(folder, model, stored.replaced)
    shared = _projections(trained, layers)
    model.requires_grad_(False)
    with torch.no_grad():
        for name, tensor in stored.replaced.items():
            whole[name].copy_(_tensor(tensor))
        for name, each in trained.items():
            layer = AdaptedLayer(name, layers[name], each.adapter, shared)
            _fill(layer, each)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer)


def _trained(folder: Path, stored: StoredAdapter) -> dict[str, Trained]:
    """What is stored of each layer, by its full name."""
    found = {}
    for name, each in stored.updates.items():
        update = each.update
        plain = isinstance(update, LowRank) and not (update.core or update.expert)
        if not (name.endswith(".weight") and (plain or isinstance(update, Vera))):
            raise TrainingError(
                f"{folder}: changes {name} by {update.formula} ({stored.method}), LoRA, DoRA, VeRA "
                "or DVoRA of weights was expected. Merge it (wdecomp merge), and take the result "
                "as the model."
            )
        assert isinstance(update, LowRank | Vera)
        found[name.removesuffix(".weight")] = Trained(update, each.magnitude)
    return found


def _layer(folder: Path, model: nn.Module, name: str, each: Trained) -> nn.Module:
    """The layer that was trained."""
    try:
        layer = model.get_submodule(name)
    except AttributeError:
        raise _of_another(folder, f"changes {name}") from None
    kind = kind_of(name, layer)
    outputs, inputs = kind.matrix(layer).shape
    if not each.fits((outputs, inputs)):
        raise TrainingError(
            f"{folder}: changes {name} by a matrix of {each.update.shape}, the model has "
            f"{(outputs, inputs)}. It was trained on another base."
        )
    if each.adapter.axis == "input" and not kind.folds:
        raise TrainingError(
            f"{folder}: has magnitudes of the inputs of {name}, a {type(layer).__name__}, a Linear "
            "layer was expected."
        )
    return layer


def _whole(
    folder: Path, model: nn.Module, stored: Mapping[str, PlainTensor]
) -> dict[str, nn.Parameter]:
    """The model's parameters that others were trained in place of."""
    own = dict(model.named_parameters(remove_duplicate=False))
    lost = [name for name in stored if name not in own]
    if lost:
        raise _of_another(folder, f"holds {some(lost)}")
    for name, tensor in stored.items():
        if tensor.shape != own[name].shape:
            raise TrainingError(
                f"{folder}: {name} has shape {tensor.shape}, the model's has "
                f"{tuple(own[name].shape)}. It was trained on another base."
            )
    return {name: own[name] for name in stored}


def _of_another(folder: Path, what: str) -> TrainingError:
    return TrainingError(
        f"{folder}: {what}, which the model has not. The adapter is of another model, or was "
        "trained for another task."
    )


def _projections(
    trained: Mapping[str, Trained], layers: Mapping[str, nn.Module]
) -> Projections | None:
    """The matrices that VeRA's layers share: as they are stored, or drawn from their key."""
    of = {name: each.update for name, each in trained.items() if isinstance(each.update, Vera)}
    if not of:
        return None
    first = next(iter(of.values()))
    if first.a is not None and first.b is not None:
        return Projections(_tensor(first.a), _tensor(first.b), first.key)
    matrices: list[Any] = [kind_of(name, layers[name]).matrix(layers[name]) for name in of]
    shapes = [(len(matrix), matrix.shape[1]) for matrix in matrices]
    return Projections.drawn(first.rank, shapes, first.key)


def _fill(layer: AdaptedLayer, each: Trained) -> None:
    """The trained numbers, in place of those that training starts from."""
    if isinstance(each.update, Vera):
        parts = {"vera_lambda_d": each.update.lambda_d, "vera_lambda_b": each.update.lambda_b}
    else:
        parts = {"lora_A": each.update.a, "lora_B": each.update.b}
    if each.magnitude is not None:
        parts["magnitude"] = each.magnitude.values
    for name, tensor in parts.items():
        parameter: Tensor = getattr(layer, name)
        parameter.copy_(_tensor(tensor).reshape(parameter.shape))


def _tensor(stored: PlainTensor) -> Tensor:
    return torch.from_numpy(numbers(stored))
