"""mlx-lm: `adapters.safetensors`, and an adapter_config.json without a peft_type.

LoRA    W' = W0 + s·(a·b)ᵀ, a (in, r), b (r, out); s stands in the config, it is no alpha/r
DoRA    m per output; of an embedding per token, whose outputs in wdecomp are its dimensions
full    whole weights of the last layers
"""

from collections.abc import Mapping
from math import prod
from typing import Any

from wdecomp.adapter.adapter import Adapter, ModuleUpdate
from wdecomp.adapter.config import Fields
from wdecomp.adapter.factors import Factors
from wdecomp.adapter.low_rank import Expert, LowRank
from wdecomp.adapter.updates import Magnitude
from wdecomp.checkpoint import PlainTensor
from wdecomp.errors import AdapterError
from wdecomp.names import is_embedding

DIALECT = "mlx-lm"
PARTS = ("lora_a", "lora_b", "m")
KINDS = ("lora", "dora", "full")
OF_EXPERTS = "mlx-lm's adapter of a stack of experts, which cannot be read yet"

Tensors = Mapping[str, PlainTensor]


def is_mlx(tensors: Tensors, config: Mapping[str, Any]) -> bool:
    """Whether it is of mlx-lm: by its config, or by both factors under its names."""
    ends = {key.rpartition(".")[2] for key in tensors}
    return config.get("fine_tune_type") in KINDS or {"lora_a", "lora_b"} <= ends


def read_mlx(tensors: Tensors, config: Mapping[str, Any], where: str) -> Adapter:
    """An mlx-lm adapter, or the layers that mlx-lm has tuned whole; all stays on disk.

    Raises:
        AdapterError: a factor is missing or has the wrong shape, the scale is not known.
    """
    kind = config.get("fine_tune_type", "lora")
    if kind not in KINDS:
        raise AdapterError(
            f"{where}: adapter_config.json: fine_tune_type is {kind!r}, expected one of "
            f"{', '.join(KINDS)}."
        )
    modules, rest, left_out = _modules(tensors)
    if kind == "full" and not modules:
        return Adapter(DIALECT, "full", {}, replaced=rest)
    scale = _scale(config, where)
    updates = {
        f"{module}.weight": _update(Factors(module, parts, where), scale)
        for module, parts in sorted(modules.items())
    }
    if not updates:
        gone = next((f"{key} is {why}" for key, why in left_out), "it was saved empty")
        raise AdapterError(f"{where}: holds no adapter of any module: {gone}.")
    dora = any(each.magnitude for each in updates.values())
    return Adapter(DIALECT, "dora" if dora else "lora", updates, rest, tuple(left_out))


def _modules(
    tensors: Tensors,
) -> tuple[dict[str, dict[str, PlainTensor]], dict[str, PlainTensor], list[tuple[str, str]]]:
    """Factors by module, whole parameters that were trained beside them, and what is left out."""
    modules: dict[str, dict[str, PlainTensor]] = {}
    rest: dict[str, PlainTensor] = {}
    for key, tensor in tensors.items():
        module, _, part = key.rpartition(".")
        if part in PARTS:
            modules.setdefault(module, {})[part] = tensor
        else:
            rest[key] = tensor
    stacks = [m for m, parts in modules.items() if any(len(t.shape) == 3 for t in parts.values())]
    left_out = [(t.name, OF_EXPERTS) for m in stacks for t in modules.pop(m).values()]
    return modules, rest, left_out


def _scale(config: Mapping[str, Any], where: str) -> float:
    parameters = config.get("lora_parameters")
    if not isinstance(parameters, dict):
        raise AdapterError(
            f"{where}: adapter_config.json has no lora_parameters, expected mlx-lm's, with their "
            "scale. It is not known without them."
        )
    return Fields(parameters, f"{where}: adapter_config.json: lora_parameters").number("scale")


def _update(factors: Factors, scale: float) -> ModuleUpdate:
    """Its factors are PEFT's of the transposed weight, of the one expert that there is."""
    b, a = factors.pair("lora_b", "lora_a")
    update = LowRank(b, a, scale, expert=Expert(0, 1, transposed=True))
    embedding = is_embedding(f"{factors.module}.weight")
    if "m" not in factors:
        return ModuleUpdate(update, of_embedding=embedding)
    outputs, inputs = update.shape
    if embedding:
        magnitude = Magnitude(factors.vector("m", inputs, "tokens"), "input")
    else:
        magnitude = Magnitude(factors.vector("m", outputs, "outputs"))
    if prod(magnitude.values.shape) != magnitude.values.shape[0]:
        raise factors.refuse(f"m is {magnitude.values.shape}", "a vector")
    return ModuleUpdate(update, magnitude, of_embedding=embedding)
