"""DoRA and LoRA of other libraries: NVlabs' own code, mlx-lm, fsdp_qlora."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from wdecomp.adapter.adapter import Adapter, ModuleUpdate
from wdecomp.adapter.change import Nothing, Update
from wdecomp.adapter.config import Fields
from wdecomp.adapter.factors import Factors
from wdecomp.adapter.low_rank import Expert, LowRank
from wdecomp.adapter.updates import Magnitude
from wdecomp.checkpoint import PlainTensor
from wdecomp.errors import AdapterError

NVLABS = {"lora_A.weight": "A", "lora_B.weight": "B", "weight_m_wdecomp.weight": "m"}
FSDP_QLORA = {
    "dora_layer.lora_A.weight": "A",
    "dora_layer.lora_B.weight": "B",
    "magnitude_layer.magnitude": "m",
}
MLX = {"lora_a": "A", "lora_b": "B", "m": "m"}
PREFIX = "base_model.model."

Tensors = Mapping[str, PlainTensor]


def is_nvlabs(tensors: Tensors, config: Mapping[str, Any]) -> bool:
    """Whether it is of the DoRA paper's own code."""
    return config.get("peft_type") == "DORA" or _any(tensors, "weight_m_wdecomp.weight")


def read_nvlabs(tensors: Tensors, config: Mapping[str, Any], where: str) -> Adapter:
    """NVlabs' DoRA: m·V/‖V‖ with V = W0 + s·BA, or of W0 itself where a module has only m.

    Raises:
        AdapterError: a factor is missing or has the wrong shape, a field is not what it must be.
    """
    fields = Fields(config, f"{where}: adapter_config.json")
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


def is_mlx(tensors: Tensors) -> bool:
    """Whether it is of mlx-lm."""
    return _any(tensors, "lora_a") and _any(tensors, "lora_b")


def read_mlx(tensors: Tensors, config: Mapping[str, Any], where: str) -> Adapter:
    """mlx-lm's LoRA and DoRA: ΔW = scale·(a·b)ᵀ with a (in, r) and b (r, out).

    Raises:
        AdapterError: a factor is missing or has the wrong shape, the scale is not known.
    """
    parameters = config.get("lora_parameters")
    if not isinstance(parameters, dict):
        raise AdapterError(
            f"{where}: adapter_config.json has no lora_parameters, expected mlx-lm's, with their "
            "scale. It is not known without them."
        )
    fields = Fields(parameters, f"{where}: adapter_config.json: lora_parameters")
    return _dora("mlx-lm", tensors, MLX, fields.number("scale"), where)


def _dora(
    dialect: str, tensors: Tensors, parts: Mapping[str, str], scaling: float, where: str
) -> Adapter:
    modules: dict[str, dict[str, PlainTensor]] = defaultdict(dict)
    left_out = []
    for key, tensor in tensors.items():
        part = next((part for part in parts if key.endswith("." + part)), None)
        if part is None:
            left_out.append((key, f"no part of an adapter that {dialect} writes"))
        else:
            module = key.removesuffix("." + part).removeprefix(PREFIX)
            modules[module][parts[part]] = tensor
    updates = {
        f"{module}.weight": _update(Factors(module, found, where), scaling, parts is MLX)
        for module, found in sorted(modules.items())
    }
    if not updates:
        raise AdapterError(f"{where}: holds no adapter of any module. It was saved empty.")
    dora = any(each.magnitude for each in updates.values())
    return Adapter(dialect, "dora" if dora else "lora", updates, left_out=tuple(left_out))


def _update(factors: Factors, scaling: float, input_first: bool) -> ModuleUpdate:
    update: Update = Nothing()
    if "A" in factors or "B" in factors:
        a, b = factors.pair("B", "A") if input_first else factors.pair("A", "B")
        turned = Expert(0, 1, transposed=True) if input_first else None
        update = LowRank(a, b, scaling, expert=turned)
    if "m" not in factors:
        return ModuleUpdate(update)
    outputs = update.shape[0]
    magnitude = factors.get("m")
    if outputs is not None:
        magnitude = factors.vector("m", outputs, "outputs")
    return ModuleUpdate(update, Magnitude(magnitude))


def _any(tensors: Tensors, part: str) -> bool:
    return any(key.endswith("." + part) for key in tensors)
