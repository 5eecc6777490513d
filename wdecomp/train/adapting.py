"""Adapters put into a model, and what they know of each other."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase

import torch
from torch import nn

from wdecomp.errors import TrainingError, some
from wdecomp.train.kinds import kind_of
from wdecomp.train.layers import SHARED, AdaptedLayer, Adapter
from wdecomp.train.vera import Projections


def adapt(model: nn.Module, adapters: Mapping[str, Adapter], projection_key: int = 0) -> None:
    """Freezes `model` and puts an `AdaptedLayer` in place of each layer that is named.

    Args:
        model: changed in place.
        adapters: end of a module's name → what to train there: "query" means every `….query`,
            "to_out.0" every `….to_out.0`, "language_model.*.q_proj" those of that part. Several
            names may have adapters of their own (section 5.6).
        projection_key: the seed of VeRA's shared matrices.

    Raises:
        TrainingError: a rank is below 1, a name fits no module, or one that cannot be adapted, or
            two names fit one module.
    """
    # Everything is looked up before anything is changed: a failure leaves the model as it was.
    found = [
        (name, layer, adapter)
        for target, adapter in adapters.items()
        for name, layer in _named(model, target, _checked(adapter))
    ]
    twice = [name for name, count in Counter(name for name, _, _ in found).items() if count > 1]
    if twice:
        raise TrainingError(
            f"targets: {some(twice)} is named twice, by several of {', '.join(adapters)}. "
            "Name each layer once."
        )
    ranks = {adapter.rank for _, _, adapter in found if adapter.method in SHARED}
    if len(ranks) > 1:
        raise TrainingError(
            f"rank: is {', '.join(map(str, sorted(ranks)))} in different layers, one rank was "
            "expected. VeRA's layers share their matrices."
        )
    matrices = [
        kind_of(name, layer).matrix(layer)
        for name, layer, adapter in found
        if adapter.method in SHARED
    ]
    shapes = [(matrix.shape[0], matrix.shape[1]) for matrix in matrices]
    projections = Projections.drawn(ranks.pop(), shapes, projection_key) if shapes else None
    model.requires_grad_(False)
    for name, layer, adapter in found:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, AdaptedLayer(name, layer, adapter, projections))


def adapted_layers(model: nn.Module) -> dict[str, AdaptedLayer]:
    """Every adapted layer by its full name."""
    return {n: layer for n, layer in model.named_modules() if isinstance(layer, AdaptedLayer)}


@contextmanager
def norms_kept(model: nn.Module) -> Iterator[None]:
    """Every layer forms ‖V‖ once and then keeps it: exact as long as A and B do not change.

    That is between two steps of the optimizer, while gradients accumulate. Layers with the exact
    gradient do not take part.
    """
    layers = [
        layer
        for layer in adapted_layers(model).values()
        if layer.magnitude is not None and layer.adapter.norm_gradient == "detached"
    ]
    for layer in layers:
        layer.keeps_norm = True
    try:
        yield
    finally:
        for layer in layers:
            layer.keeps_norm, layer.kept_norm = False, None


@contextmanager
def weights_kept(model: nn.Module) -> Iterator[None]:
    """Every layer keeps its W, in the base's dtype, and costs what the base layer costs.

    For evaluation: exact as long as nothing is trained, for the memory of the adapted weights once
    more.
    """
    layers = adapted_layers(model).values()
    try:
        for layer in layers:
            layer.kept_weight = layer.merged().to(layer.kind.matrix(layer.base).dtype)
        with torch.no_grad():
            yield
    finally:
        for layer in layers:
            layer.kept_weight = None


def _checked(adapter: Adapter) -> Adapter:
    if adapter.rank < 1:
        raise TrainingError(f"rank: is {adapter.rank}, at least 1 was expected.")
    return adapter


def _named(model: nn.Module, target: str, adapter: Adapter) -> Iterator[tuple[str, nn.Module]]:
    """Every layer whose name ends so, by full name."""
    found = [(n, m) for n, m in model.named_modules() if fnmatchcase(f".{n}", f"*.{target}")]
    if not found:
        raise TrainingError(
            f"targets: {target!r} is the name of no module. "
            f"The model's linear layers are named {some(_linear_names(model), 8)}."
        )
    for name, layer in found:
        folds = kind_of(name, layer).folds
        if adapter.axis == "input" and not folds:
            raise TrainingError(
                f"{name}: is a {type(layer).__name__}, a Linear layer was expected. "
                'Magnitudes of inputs (axis "input") need one.'
            )
        yield name, layer


def _linear_names(model: nn.Module) -> list[str]:
    linears = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return sorted({name.rpartition(".")[2] for name in linears})
