"""A model that is being trained, as the checkpoints that it and its base would be."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wdecomp.adapter import Adapted
from wdecomp.adapter.change import index
from wdecomp.checkpoint import Checkpoint, LoadedTensor
from wdecomp.dtypes import RAW
from wdecomp.errors import TrainingError
from wdecomp.matching import unwrapped
from wdecomp.pairing import Pair
from wdecomp.train.adapting import adapted_layers
from wdecomp.train.distributed import full
from wdecomp.train.kinds import Kind, kind_of
from wdecomp.train.layers import AdaptedLayer
from wdecomp.train.peft_format import input_format, lora_format, vera_format

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
DTYPES = {BF16: "BF16", F16: "F16", F32: "F32", F64: "F64"}
MEMORY = Path("memory")  # where tensors that are in no file are said to be
UNCHANGED = ("gaussian", "eva", "orthogonal")  # PEFT's starts that leave the base alone


@dataclass(frozen=True)
class Trained:
    """What is trained in a model.

    Attributes:
        tensors: by the names that a checkpoint would have for them.
        config: its adapter_config.json; None for full fine-tuning.
        bases: name of an adapted module → its frozen layer, and how that has a matrix.
        replaced: frozen originals of the modules that are trained whole, by parameter name.
    """

    tensors: dict[str, Tensor]
    config: dict[str, Any] | None = None
    bases: dict[str, tuple[Kind, Any]] = field(default_factory=dict)
    replaced: dict[str, Tensor] = field(default_factory=dict)


def trained(model: nn.Module) -> Trained:
    """What is trained: our adapters, PEFT's, or else all parameters that want a gradient.

    Raises:
        TrainingError: several adapters of PEFT are active, or one is merged.
    """
    layers = adapted_layers(model)
    if layers:
        bases = {name: (layer.kind, layer.base) for name, layer in layers.items()}
        tensors, config = _as_saved(layers)
        return Trained(tensors, config, bases)
    if hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
        return _in_peft(model)
    return Trained({unwrapped(n): p for n, p in model.named_parameters() if p.requires_grad})


def _as_saved(layers: Mapping[str, AdaptedLayer]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_adapter` would write."""
    if any(each.adapter.axis == "input" and each.magnitude is not None for each in layers.values()):
        return input_format(layers), {}
    vera = {each.adapter.method for each in layers.values()} == {"vera"}
    return vera_format(layers, "") if vera else lora_format(layers, "")


def _in_peft(model: Any) -> Trained:
    from peft import get_peft_model_state_dict

    if len(model.active_adapters) != 1:
        raise TrainingError(
            f"the model: has {len(model.active_adapters)} active adapters, one was expected. "
            "Choose it with set_adapter."
        )
    [name] = model.active_adapters
    tensors = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    config = json.loads(json.dumps(model.peft_config[name].to_dict(), default=list))
    found = Trained(tensors, config)
    for path, module in model.named_modules():
        name = unwrapped(path)
        if hasattr(module, "original_module") and hasattr(module, "modules_to_save"):
            originals = module.original_module.named_parameters()
            found.replaced.update({f"{name}.{n}": p for n, p in originals})
        elif hasattr(module, "get_base_layer") and hasattr(module, "merged_adapters"):
            _add_base(found, name, module)
    return found


def _add_base(found: Trained, name: str, module: Any) -> None:
    """The frozen layer inside one of PEFT's; not a quantised one, which is read from its folder."""
    if module.merged_adapters:
        raise TrainingError(
            f"{name}: its adapter is merged into the base, it was expected beside it. "
            "Call unmerge_adapter first."
        )
    base = module.get_base_layer()
    if getattr(getattr(base, "weight", None), "dtype", None) in DTYPES:
        found.bases[name] = kind_of(name, base), base


def base_in_memory(model: nn.Module, found: Trained) -> Checkpoint:
    """What is frozen in a model, as a checkpoint; copied to main memory from a GPU.

    Raises:
        TrainingError: the model no longer has its base.
    """
    start = (found.config or {}).get("init_lora_weights")
    if found.config is None or (isinstance(start, str) and start.lower() not in UNCHANGED):
        what = "full fine-tuning" if found.config is None else f"init_lora_weights={start!r}"
        raise TrainingError(
            f"base: is no folder on this disk, one was expected: {what} changes the model's own. "
            "Name the folder, or call keep before the first step of full fine-tuning."
        )
    weights = {f"{name}.weight": layer.weight for name, (_, layer) in found.bases.items()}
    tensors = {name: held(name, tensor) for name, tensor in (weights | found.replaced).items()}
    return Checkpoint(MEMORY, dict(tensors), (), config_of(model))


def held(name: str, tensor: Tensor) -> LoadedTensor:
    """A tensor as readers of checkpoints take it; where it lies, if that is in main memory."""
    whole = full(tensor).detach().cpu().contiguous()
    flat = whole.reshape(-1)
    plain = (flat.view(torch.int16) if flat.element_size() == 2 else flat).numpy()
    dtype = DTYPES[whole.dtype]
    return LoadedTensor(name, dtype, tuple(whole.shape), MEMORY, plain.view(RAW[dtype]))


def live_base(each: Pair, adapted: Adapted, found: Trained) -> Tensor | None:
    """W0 (out, in) of a pair, from the model; None if it has it in no such form."""
    path = unwrapped(each.tuned_name).split(".")
    names = (".".join(path[:stop]) for stop in range(len(path), 0, -1))
    name = next((name for name in names if name in found.bases), None)
    if name is None:
        return None
    kind, layer = found.bases[name]
    w0 = full(kind.matrix(layer)).detach()
    if w0.shape != adapted.module.shape:
        return None
    w0 = w0.cpu() if w0.device.type == "mps" else w0  # which has no float64
    return w0 if adapted.outputs is None else w0[index(adapted.outputs)]


def config_of(model: nn.Module) -> dict[str, Any]:
    """The model's config.json, {} if it has none."""
    config = getattr(model, "config", {})
    found: dict[str, Any] = config if isinstance(config, dict) else config.to_dict()
    return found
