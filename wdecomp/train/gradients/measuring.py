"""∂L/∂W of a model's layers, by autograd, and the V and m that these layers have."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from wdecomp.errors import TrainingError, some
from wdecomp.train.adapting import adapted_layers
from wdecomp.train.kinds import kind_of
from wdecomp.train.layers import AdaptedLayer

if TYPE_CHECKING:  # imported where a table is made
    import pandas as pd

Model = TypeVar("Model", bound=nn.Module)
Batch = TypeVar("Batch")
Axis = Literal["output", "input"]
Row = dict[str, Any]


def weight_gradients(
    model: Model,
    loss: Callable[[Model, Batch], Tensor],
    batches: Iterable[Batch],
    targets: Sequence[str] | None = None,
) -> dict[str, Tensor]:
    """G = ∂L/∂W, (out, in), of every layer that the mean loss depends on: see `gradient_report`."""
    total: dict[str, Tensor] = {}
    count = 0
    layers = layers_of(model, targets)
    with watched(layers) as leaves:
        for gradients in gradients_of_batches(model, loss, batches, layers, leaves):
            count += 1
            for name in list(gradients):
                g = gradients.pop(name)
                wide = g.to(torch.promote_types(g.dtype, torch.float32))
                total[name] = total[name] + wide if name in total else wide
    return {name: total.pop(name) / count for name in list(total)}


def decomposition(layer: nn.Module, axis: Axis = "output") -> tuple[Tensor, Tensor, Axis]:
    """V with the vectors that have a magnitude as rows, m (rows,), in float64, and their axis."""
    axis = axis_of(layer, axis)
    if not isinstance(layer, AdaptedLayer):
        v = double(turned(kind_of("layer", layer).matrix(layer), axis))
        return v, norm(v)[:, 0], axis
    v = double(turned(layer.direction(*layer.factors()), axis))
    m = norm(v)[:, 0] if layer.magnitude is None else double(layer.magnitude)
    return v, m, axis


def layers_of(model: nn.Module, targets: Sequence[str] | None) -> dict[str, nn.Module]:
    """The layers that are meant, by full name."""
    adapted = adapted_layers(model)
    inner = tuple(f"{name}." for name in adapted)
    outer = {n: layer for n, layer in model.named_modules() if n and not n.startswith(inner)}
    wrapped = [name for name, layer in outer.items() if hasattr(layer, "base_layer")]
    if wrapped:
        raise TrainingError(
            f"{wrapped[0]}: is adapted by PEFT, a plain layer was expected. "
            "Merge the adapter first (`merge_and_unload`)."
        )
    linear = {n: layer for n, layer in outer.items() if isinstance(layer, nn.Linear | Conv1D)}
    if targets is None and not (adapted or linear):
        raise TrainingError("model: has no Linear or Conv1D layer. Name its layers as targets.")
    found: dict[str, nn.Module] = {}
    for target in targets or ():
        ends = {n: layer for n, layer in outer.items() if f".{n}".endswith(f".{target}")}
        if not ends:
            raise TrainingError(
                f"targets: {target!r} is the name of no module. "
                f"The model's linear layers are {some(list(linear))}."
            )
        found |= ends
    return found if targets is not None else {**(adapted or linear)}


@contextmanager
def watched(layers: Mapping[str, Any]) -> Iterator[dict[str, Tensor]]:
    """What autograd is to differentiate by: each layer's weight, or the W that it amounts to."""
    leaves: dict[str, Tensor] = {}
    before: Row = {
        name: layer.kept_weight
        if isinstance(layer, AdaptedLayer)
        else _weight(name, layer).requires_grad
        for name, layer in layers.items()
    }
    try:
        for name, layer in layers.items():
            if isinstance(layer, AdaptedLayer):
                w = layer.merged().to(layer.kind.matrix(layer.base).dtype)
                layer.kept_weight = leaves[name] = w.requires_grad_()
            else:
                leaves[name] = layer.weight.requires_grad_()
        yield leaves
    finally:
        for name, layer in layers.items():
            if isinstance(layer, AdaptedLayer):
                layer.kept_weight = before[name]
            else:
                layer.weight.requires_grad_(before[name])


def _weight(name: str, layer: Any) -> Tensor:
    kind_of(name, layer)  # refuses what has no matrix
    weight: Tensor = layer.weight
    if not (isinstance(weight, nn.Parameter) and weight.is_floating_point()):
        raise TrainingError(
            f"{name}: its weight is {weight.dtype} or made from others, a floating-point parameter "
            "was expected. Measure the model before it is quantised or parametrised."
        )
    return weight


def gradients_of_batches(
    model: Model,
    loss: Callable[[Model, Batch], Tensor],
    batches: Iterable[Batch],
    layers: Mapping[str, nn.Module],
    leaves: Mapping[str, Tensor],
) -> Iterator[dict[str, Tensor]]:
    """The gradients of each batch, (out, in), of the layers that it reaches."""
    number, reached = 0, False
    for number, batch in enumerate(batches, 1):
        with torch.enable_grad():
            value = loss(model, batch)
            _check_loss(number, value)
            found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
        gradients = {
            name: _matrix(name, layers[name], g)
            for name, g in zip(leaves, found, strict=True)
            if g is not None
        }
        del found  # or it would stay beside the next batch's
        for name, g in gradients.items():
            if not g.isfinite().all():
                raise TrainingError(
                    f"batch {number}: the gradient of {name} is not finite. Look at this batch."
                )
        reached = reached or bool(gradients)
        yield gradients
    if not number:
        raise TrainingError("batches: are none, at least 1 was expected.")
    if not reached:
        raise TrainingError(f"loss: depends on none of the layers ({some(list(layers))}).")


def _matrix(name: str, layer: nn.Module, gradient: Tensor) -> Tensor:
    """A gradient (out, in) from one that is shaped like what `_watched` has of the layer."""
    if isinstance(layer, AdaptedLayer):
        return gradient
    return kind_of(name, layer).matrix(SimpleNamespace(weight=gradient))


def _check_loss(number: int, value: Tensor) -> None:
    if value.numel() != 1:
        was = f"has shape {tuple(value.shape)}, one number was expected. Take the mean."
    elif not value.isfinite():
        was = f"is {value.item()}, a finite number was expected. Look at this batch."
    elif not value.requires_grad:
        was = "depends on no layer's weight. Compute it from the model's output, with gradients."
    else:
        return
    raise TrainingError(f"batch {number}: the loss {was}")


def axis_of(layer: nn.Module, axis: Axis) -> Axis:
    if isinstance(layer, AdaptedLayer) and layer.magnitude is not None:
        return layer.adapter.axis
    return axis


def turned(matrix: Tensor, axis: Axis) -> Tensor:
    return matrix.T if axis == "input" else matrix


def double(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float64)


def norm(rows: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return norm


def spread(count: int, wanted: int) -> Tensor:
    """`wanted` of `count` rows, evenly spaced, or all."""
    return torch.linspace(0, count - 1, min(count, wanted)).round().long()


@dataclass(frozen=True)
class Report:
    """Figures of some matrices, as tables.

    Attributes:
        modules: a row per matrix.
        columns: a row per column of a matrix, as the paper calls the vectors that have a magnitude.
        unreached: layers on whose weight the loss does not depend.
        finding: what came out, in a sentence.
    """

    modules: "pd.DataFrame"
    columns: "pd.DataFrame"
    unreached: tuple[str, ...]
    finding: str


def report_of(
    layers: Mapping[str, nn.Module],
    modules: list[Row],
    columns: list[Row],
    finding: Callable[["pd.DataFrame"], str],
) -> Report:
    import pandas as pd

    table = pd.DataFrame(modules)
    parts = pd.concat([pd.DataFrame(part) for part in columns], ignore_index=True)
    unreached = tuple(name for name in layers if name not in set(table["module"]))
    return Report(table, parts, unreached, finding(table))
