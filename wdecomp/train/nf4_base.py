"""Linear layers put into NF4, and the base that they make, on disk."""

import copy
import json
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from wdecomp.errors import TrainingError, some
from wdecomp.train.adapting import adapted_layers
from wdecomp.train.export import published
from wdecomp.train.nf4 import CODE, NESTED, PARTS, SCALES, Nf4Linear, encode_nf4


def quantize_linears(
    model: nn.Module, targets: Iterable[str], double_quant: bool = True, blocksize: int = 64
) -> None:
    """Puts an `Nf4Linear` in place of each `nn.Linear` that is named; it decodes to its dtype.

    Args:
        model: changed in place, before it is adapted.
        targets: last components of the layers' names.
        double_quant: see `encode_nf4`.
        blocksize: see there.

    Raises:
        TrainingError: a name fits no module, or one that cannot be quantised.
    """
    # Everything is looked up before anything is changed: a failure leaves the model as it was.
    found = list(chain.from_iterable(_linears(model, target) for target in dict.fromkeys(targets)))
    for name, layer in found:
        stored = encode_nf4(layer.weight, double_quant, blocksize)
        parent, _, child = name.rpartition(".")
        coded = Nf4Linear(stored, layer.bias, layer.weight.dtype).train(layer.training)
        setattr(model.get_submodule(parent), child, coded)


def _linears(model: nn.Module, target: str) -> Iterator[tuple[str, nn.Linear]]:
    """Every linear layer with this last name component, by full name."""
    found = [(n, m) for n, m in model.named_modules() if n.rpartition(".")[2] == target]
    if not found:
        linears = {n.rpartition(".")[2] for n, m in model.named_modules() if _is_linear(m)}
        raise TrainingError(
            f"targets: {target!r} is the name of no module. "
            f"The model's linear layers are named {some(sorted(linears), 8)}."
        )
    for name, layer in found:
        if not isinstance(layer, nn.Linear):
            raise TrainingError(
                f"{name}: is a {type(layer).__name__}, a Linear layer was expected. "
                "Only such layers are stored in NF4."
            )
        if not layer.weight.is_meta and not layer.weight.isfinite().all():
            raise TrainingError(
                f"{name}.weight: has numbers that are not finite, expected none. "
                "Repair the base model first."
            )
        yield name, layer


def save_nf4_base(model: PreTrainedModel, folder: Path) -> None:
    """Writes the base under `model`, adapted or not, as transformers stores bitsandbytes models.

        model.safetensors    weight, weight.absmax, weight.quant_map, weight.nested_absmax,
                             weight.nested_quant_map, weight.quant_state.bitsandbytes__nf4
        config.json          with its quantization_config

    Raises:
        TrainingError: no layer is in NF4.
    """
    adapted = adapted_layers(model)
    plain = {f"{name}.base": name for name in adapted}
    modules = {plain.get(name, name): module for name, module in model.named_modules()}
    coded = {name: module for name, module in modules.items() if isinstance(module, Nf4Linear)}
    if not coded:
        raise TrainingError(f"{folder}: no layer is in NF4, so there is nothing to save.")
    tensors: dict[str, Tensor] = {}
    for key, tensor in model.state_dict().items():
        module, _, part = key.rpartition(".")
        name = plain.get(module, module)
        if module not in adapted and not (name in coded and part in PARTS):
            tensors[f"{name}.{part}"] = tensor.cpu().contiguous()
    tensors = _without_twins(tensors)
    for name, layer in coded.items():
        tensors |= _on_disk(f"{name}.weight", layer)
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.quantization_config = _quantization_config(modules, coded)
    with published(folder) as draft:
        save_file(tensors, draft / "model.safetensors", {"format": "pt"})
        config.save_pretrained(draft)


def _without_twins(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tied weights once, under their first name, as transformers stores them."""
    first: dict[tuple[int, torch.Size], str] = {}
    for name, tensor in tensors.items():
        first.setdefault((tensor.data_ptr(), tensor.shape), name)
    return {name: tensors[name] for name in first.values()}


def _on_disk(key: str, layer: Nf4Linear) -> dict[str, Tensor]:
    """The tensors of one weight."""
    stored = layer.stored
    state: dict[str, Any] = {
        "quant_type": "nf4",
        "blocksize": stored.block,
        "dtype": str(layer.dtype).removeprefix("torch."),
        "shape": list(stored.shape),
    }
    tensors = {key: stored.codes, f"{key}.absmax": stored.absmax, f"{key}.quant_map": CODE}
    if stored.nested_absmax is not None and stored.nested_offset is not None:
        tensors[f"{key}.nested_absmax"] = stored.nested_absmax
        tensors[f"{key}.nested_quant_map"] = SCALES
        state |= {"nested_blocksize": NESTED, "nested_dtype": "float32"}
        state["nested_offset"] = stored.nested_offset.item()
    packed = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    tensors[f"{key}.quant_state.bitsandbytes__nf4"] = packed
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


def _quantization_config(
    modules: dict[str, nn.Module], coded: dict[str, Nf4Linear]
) -> dict[str, Any]:
    first = next(iter(coded.values()))
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": first.nested_absmax is not None,
        "bnb_4bit_compute_dtype": str(first.dtype).removeprefix("torch."),
        # transformers quantises every other linear layer when it opens the model
        "llm_int8_skip_modules": sorted(n for n, m in modules.items() if _is_linear(m)),
    }


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)
