"""DoRA of other libraries: NVlabs' own code, fsdp_qlora.

NVlabs       W' = m·V/‖V‖, V = W0 + (alpha/r)·BA; of W0 alone where a module has only m
fsdp_qlora   the same with V = W0 + BA: no scale. It scales a module's bias too, which is not
             followed here (LLaMA, for which it is made, has none)
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from wdecomp.adapter.adapter import Adapter, ModuleUpdate
from wdecomp.adapter.change import Nothing, Update
from wdecomp.adapter.config import Fields
from wdecomp.adapter.factors import Factors
from wdecomp.adapter.low_rank import LowRank
from wdecomp.adapter.updates import Magnitude
from wdecomp.checkpoint import PlainTensor
from wdecomp.errors import AdapterError

NVLABS = {"lora_A.weight": "A", "lora_B.weight": "B", "weight_m_wdecomp.weight": "m"}
FSDP_QLORA = {
    "dora_layer.lora_A.weight": "A",
    "dora_layer.lora_B.weight": "B",
    "magnitude_layer.magnitude": "m",
}
PREFIX = "base_model.model."
WRAPPERS = re.compile(r"(?:_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.")
SAVED = (".weight", ".bias")  # whole parameters that were trained beside the adapters

Tensors = Mapping[str, PlainTensor]


def is_nvlabs(tensors: Tensors, config: Mapping[str, Any]) -> bool:
    """Whether it is of the DoRA paper's own code."""
    return config.get("peft_type") == "DORA" or _any(tensors, "weight_m_wdecomp.weight")


def read_nvlabs(tensors: Tensors, config: Mapping[str, Any], where: str) -> Adapter:
    """NVlabs' DoRA, with modules of a magnitude alone (Wdecompose_target_modules).

    Raises:
        AdapterError: a factor is missing or has the wrong shape, a field is not what it must be.
    """
    fields = Fields(config, f"{where}: adapter_config.json")
    if fields.flag("fan_in_fan_out"):
        raise AdapterError(
            f"{fields.where}: fan_in_fan_out is true, which NVlabs' layers cannot be trained with. "
            "Set it to false if the adapter is of linear layers."
        )
    scaling = fields.number("lora_alpha") / fields.count("r")
    return _dora("NVlabs DoRA", tensors, NVLABS, scaling, where)


def is_fsdp_qlora(tensors: Tensors) -> bool:
    """Whether it is of the QDoRA recipe of fsdp_qlora."""
    return _any(tensors, "magnitude_layer.magnitude")


def read_fsdp_qlora(tensors: Tensors, where: str) -> Adapter:
    """fsdp_qlora's QDoRA: its LoRA has no scale.

    Raises:
        AdapterError: a factor is missing or has the wrong shape.
    """
    return _dora("fsdp_qlora", tensors, FSDP_QLORA, 1.0, where)


def _dora(
    dialect: str, tensors: Tensors, parts: Mapping[str, str], scaling: float, where: str
) -> Adapter:
    modules: dict[str, dict[str, PlainTensor]] = defaultdict(dict)
    left_out, replaced = [], {}
    for key, tensor in tensors.items():
        name = WRAPPERS.sub("", key).removeprefix(PREFIX)
        part = next((part for part in parts if name.endswith("." + part)), None)
        if part is not None:
            modules[name.removesuffix("." + part)][parts[part]] = tensor
        elif name.endswith(SAVED) and ".lora_" not in name:
            replaced[name] = tensor
        else:
            left_out.append((key, f"no part of an adapter that {dialect} writes"))
    updates = {
        f"{module}.weight": _update(Factors(module, found, where), scaling)
        for module, found in sorted(modules.items())
    }
    if not updates:
        raise AdapterError(f"{where}: holds no adapter of any module. It was saved empty.")
    dora = any(each.magnitude for each in updates.values())
    return Adapter(dialect, "dora" if dora else "lora", updates, replaced, tuple(left_out))


def _update(factors: Factors, scaling: float) -> ModuleUpdate:
    update: Update = Nothing()
    if "A" in factors or "B" in factors:
        update = LowRank(*factors.pair("A", "B"), scaling)
    if "m" not in factors:
        return ModuleUpdate(update)
    outputs = update.shape[0]
    magnitude = factors.get("m")
    if outputs is not None:
        magnitude = factors.vector("m", outputs, "outputs")
    return ModuleUpdate(update, Magnitude(magnitude))


def _any(tensors: Tensors, part: str) -> bool:
    return any(key.endswith("." + part) for key in tensors)
