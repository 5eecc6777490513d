"""What a model's adapters are called and configured as in PEFT 0.21, so that PEFT loads them.

PEFT has no DVoRA and no layer with magnitudes alone, but both are what it calls DoRA: DVoRA with
A = d∘A and B = b∘B of VeRA's matrices, magnitudes alone with A = 0 and B = 0 of rank 1.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from wdecomp.errors import TrainingError
from wdecomp.train.kinds import ConvolutionKind, EmbeddingKind
from wdecomp.train.layers import SHARED, WITH_MAGNITUDE, AdaptedLayer

Tensors = dict[str, Tensor]
Config = dict[str, Any]


def lora_format(
    layers: Mapping[str, AdaptedLayer], base_name: str, others: Iterable[str] = ()
) -> tuple[Tensors, Config]:
    """As a LoRA, or a DoRA where the layers have magnitudes; `others` are names without an adapter.

    Raises:
        TrainingError: PEFT has no one config for what these layers are.
    """
    kinds = {layer.adapter.method in WITH_MAGNITUDE for layer in layers.values()}
    scalings = {layer.adapter.rslora for layer in layers.values() if layer.lora_A is not None}
    if len(kinds) != 1 or len(scalings) > 1:
        methods = sorted({layer.adapter.method for layer in layers.values()})
        raise TrainingError(
            f"the model: has layers of {' and '.join(methods) or 'no method'}, expected all with "
            "magnitudes or all without. One adapter_config.json cannot say both."
        )
    tensors: Tensors = {}
    for name, layer in layers.items():
        tensors |= _lora_tensors(f"base_model.model.{name}", layer)
    ranks = {name: (_rank(layer), _alpha(layer)) for name, layer in layers.items()}
    rank, alpha = max(ranks.values())
    unlike = {name: each for name, each in ranks.items() if each != (rank, alpha)}
    config = _config(layers, base_name, others) | {
        "alpha_pattern": {name: each[1] for name, each in unlike.items()},
        "init_lora_weights": True,
        "lora_alpha": alpha,
        "lora_dropout": max(layer.adapter.dropout for layer in layers.values()),
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {name: each[0] for name, each in unlike.items()},
        "use_dora": kinds.pop(),
        "use_rslora": scalings == {True},
    }
    return tensors, config


def vera_format(
    layers: Mapping[str, AdaptedLayer], base_name: str, others: Iterable[str] = ()
) -> tuple[Tensors, Config]:
    """As VeRA with its shared matrices, which PEFT loads; with magnitudes, wdecomp alone does."""
    first = next(iter(layers.values()))
    assert first.projections is not None
    tensors = {
        "base_model.vera_A": first.projections.a,
        "base_model.vera_B": first.projections.b,
    }
    for name, layer in layers.items():
        key = f"base_model.model.{name}"
        parts = {
            "vera_lambda_b": layer.vera_lambda_b,
            "vera_lambda_d": layer.vera_lambda_d,
            "vera_magnitude_vector": layer.magnitude,
        }
        tensors |= {f"{key}.{part}": t for part, t in parts.items() if t is not None}
    config = _config(layers, base_name, others) | {
        "d_initial": 0.1,
        "init_weights": True,
        "peft_type": "VERA",
        "projection_prng_key": first.projections.key,
        "r": first.adapter.rank,
        "save_projection": True,
        "vera_dropout": first.adapter.dropout,
    }
    return _plain(tensors), config


def input_format(layers: Mapping[str, AdaptedLayer]) -> Tensors:
    """As LyCORIS writes DoRA with magnitudes of inputs, which PEFT has not: as `dora_scale`."""
    tensors: Tensors = {}
    for name, layer in layers.items():
        a, b = _product(layer)
        tensors |= {
            f"{name}.alpha": torch.tensor(layer.adapter.scaling * len(a)),
            f"{name}.lora_down.weight": a,
            f"{name}.lora_up.weight": b,
        }
        if layer.magnitude is not None:
            tensors[f"{name}.dora_scale"] = layer.magnitude.unsqueeze(0)
    return _plain(tensors)


def whole_modules(model: nn.Module, modules_to_save: Iterable[str]) -> Tensors:
    """The parameters of modules that were trained whole, by their last names."""
    return _plain(
        {
            f"base_model.model.{name}.{own}": parameter
            for name, module in model.named_modules()
            if name.rpartition(".")[2] in set(modules_to_save)
            for own, parameter in module.named_parameters()
        }
    )


def _lora_tensors(key: str, layer: AdaptedLayer) -> Tensors:
    a, b = _product(layer)
    magnitude: Tensor | None = layer.magnitude
    if isinstance(layer.kind, EmbeddingKind):
        tensors = {f"{key}.lora_embedding_A": a, f"{key}.lora_embedding_B": b}
    else:
        if isinstance(layer.kind, ConvolutionKind):
            a, b = layer.kind.stored(a, layer.base), b[:, :, None, None]
            magnitude = None if magnitude is None else magnitude[None, :, None, None]
        tensors = {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}
    if magnitude is not None:
        tensors[f"{key}.lora_magnitude_vector"] = magnitude
    return _plain(tensors)


def _product(layer: AdaptedLayer) -> tuple[Tensor, Tensor]:
    """A and B, zero and of rank 1 where there are magnitudes alone."""
    a, b = layer.factors()
    if a is not None and b is not None:
        return a, b
    outputs, inputs = layer.shape
    zeros = torch.zeros(outputs + inputs, dtype=layer.wide)
    return zeros[:inputs].unsqueeze(0), zeros[inputs:].unsqueeze(1)


def _rank(layer: AdaptedLayer) -> int:
    return 1 if layer.adapter.method == "magnitude" else layer.adapter.rank


def _alpha(layer: AdaptedLayer) -> float:
    """What PEFT divides by the rank (or its root) to have the scaling."""
    if layer.adapter.method == "magnitude":
        return 1
    return layer.adapter.rank if layer.adapter.method in SHARED else layer.adapter.alpha


def _config(layers: Mapping[str, AdaptedLayer], base_name: str, others: Iterable[str]) -> Config:
    return {
        "base_model_name_or_path": base_name,
        "bias": "none",
        "fan_in_fan_out": all(isinstance(layer.base, Conv1D) for layer in layers.values()),
        "inference_mode": True,
        "modules_to_save": None,
        "target_modules": _targets(layers, others),
        "task_type": None,
    }


def _targets(layers: Iterable[str], others: Iterable[str]) -> list[str]:
    """Last components of the names, if they mean these layers alone, else the names in full."""
    short = {name.rpartition(".")[2] for name in layers}
    unclear = any(part.isdecimal() for part in short)
    if unclear or short & {name.rpartition(".")[2] for name in others}:
        return sorted(layers)
    return sorted(short)


def _plain(tensors: Mapping[str, Tensor]) -> Tensors:
    """Each with memory of its own, in float32."""
    return {key: tensor.detach().float().cpu().contiguous() for key, tensor in tensors.items()}
