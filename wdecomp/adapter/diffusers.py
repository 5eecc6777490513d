"""The diffusers dialect: `pytorch_lora_weights.safetensors`, keys of components, new and old.

    unet.….to_q.lora_A.weight                       since 0.22, with PEFT below
    unet.….to_q.lora.down.weight                    before
    unet.….attn1.processor.to_q_lora.down.weight    the first
    text_encoder.….q_proj.lora_linear_layer.down.weight

Ranks and alphas stand in the header since 0.35. Without them diffusers takes alpha = r.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from wdecomp.adapter.adapter import Adapter, ModuleUpdate
from wdecomp.adapter.config import Fields, by_module
from wdecomp.adapter.factors import Factors
from wdecomp.adapter.kohya import scalar
from wdecomp.adapter.low_rank import LowRank
from wdecomp.adapter.scalings import Added
from wdecomp.adapter.updates import Magnitude
from wdecomp.checkpoint import PlainTensor, strict_json
from wdecomp.errors import AdapterError, some

METADATA = "lora_adapter_metadata"
COMPONENTS = (
    *("unet", "transformer", "transformer_2", "text_encoder", "text_encoder_2", "text_encoder_3"),
    *("controlnet", "prior", "vae"),
)
_OLD = r"\.(?:lora|lora_linear_layer)\.(?P<old>down|up)\.weight"
_FIRST = (
    r"\.processor\.(?P<name>to_[qkv]|to_out|add_[qkv]_proj|to_add_out)_lora"
    r"\.(?P<first>down|up)\.weight"
)
_NEW = r"\.lora_(?P<new>[AB])(?:\.\w+)?\.(?P<leaf>weight|bias)"
_OTHER = r"(?P<dora>\.lora_magnitude_vector)(?:\.weight)?|\.(?P<alpha>(?:network_)?alpha)"
_PART = re.compile(rf"(?:{_NEW}|{_OLD}|{_FIRST}|{_OTHER})$")
_LONGEST_PART = 100
NO_ALPHA = (
    "the file does not say with which alpha it was trained; alpha = r is taken, as diffusers does: "
    "if it was another, the change is smaller or larger than what was trained"
)


def is_diffusers(tensors: Mapping[str, PlainTensor]) -> bool:
    """Whether keys are LoRA's, below a component of a pipeline or in diffusers' old spellings."""
    return any(
        (m := _part(key)) is not None
        and (key.split(".", 1)[0] in COMPONENTS or m["old"] is not None or m["first"] is not None)
        for key in tensors
    )


def read_diffusers(
    tensors: Mapping[str, PlainTensor], metadata: Mapping[str, str], where: str
) -> Adapter:
    """The updates of a diffusers LoRA file; the factors stay on disk.

    Raises:
        AdapterError: a factor is missing or has the wrong shape, the metadata contradict the
            tensors.
    """
    parts, left_out = _modules(tensors)
    config = _config(metadata, where)
    modules = {module: Factors(module, found, where) for module, found in parts.items()}
    pairs = {module: factors.pair("A", "B") for module, factors in modules.items()}
    scalings = _scalings(config, modules, {m: a.shape[0] for m, (a, _) in pairs.items()}, where)
    updates: dict[str, ModuleUpdate] = {}
    for module, (a, b) in pairs.items():
        factors, scaling = modules[module], scalings[module]
        magnitude = None
        if "magnitude" in factors:
            magnitude = Magnitude(factors.vector("magnitude", b.shape[0], "outputs"))
        updates[f"{module}.weight"] = ModuleUpdate(LowRank(a, b, scaling), magnitude)
        if "bias" in factors:
            bias = factors.vector("bias", b.shape[0], "outputs")
            updates[f"{module}.bias"] = ModuleUpdate(Added(bias, scaling))
    if not updates:
        raise AdapterError(f"{where}: holds no LoRA of any module. It was saved empty.")
    dora = any(each.magnitude for each in updates.values())
    told = bool(config) or all("alpha" in factors for factors in modules.values())
    return Adapter(
        dialect="diffusers",
        method="dora" if dora else "lora",
        updates=updates,
        left_out=tuple(left_out),
        notes=() if told else (NO_ALPHA,),
    )


def _modules(
    tensors: Mapping[str, PlainTensor],
) -> tuple[dict[str, dict[str, PlainTensor]], list[tuple[str, str]]]:
    parts: dict[str, dict[str, PlainTensor]] = defaultdict(dict)
    left_out = []
    for key, tensor in tensors.items():
        found = _part(key)
        if found is None:
            left_out.append((key, "no part of a LoRA that diffusers writes"))
            continue
        module, part = _module_and_part(key, found)
        parts[module][part] = tensor
    return dict(sorted(parts.items())), left_out


def _part(key: str) -> re.Match[str] | None:
    return _PART.search(key[-_LONGEST_PART:])


def _module_and_part(key: str, found: re.Match[str]) -> tuple[str, str]:
    module = key[: len(key) - len(found[0])]
    if found["name"]:  # the first spelling: attn1.processor.to_out_lora is the LoRA of to_out.0
        module += "." + (found["name"] + ".0" if found["name"] == "to_out" else found["name"])
    if found["alpha"]:
        return module, "alpha"
    if found["dora"]:
        return module, "magnitude"
    if found["leaf"] == "bias":
        return module, "bias"
    return module, {"A": "A", "B": "B", "down": "A", "up": "B"}[
        found["new"] or found["old"] or found["first"]
    ]


def _config(metadata: Mapping[str, str], where: str) -> dict[str, dict[str, Any]]:
    """PEFT's config of every component, as far as the header has it."""
    text = metadata.get(METADATA)
    if text is None:
        return {}
    config: dict[str, dict[str, Any]] = defaultdict(dict)
    for key, value in strict_json.parse(text.encode(), f"{where}: {METADATA}").items():
        component, _, field = key.partition(".")
        config[component][field] = value
    return config


def _scalings(
    config: Mapping[str, Mapping[str, Any]],
    modules: Mapping[str, Factors],
    ranks: Mapping[str, int],
    where: str,
) -> dict[str, float]:
    """The s of every module: of its own alpha, of its component's config, else 1."""
    found = dict.fromkeys(ranks, 1.0)
    for component, raw in config.items():
        fields = Fields(raw, f"{where}: {METADATA} of {component}")
        inside = {m.removeprefix(component + "."): m for m in ranks if m.startswith(component)}
        alpha, wrong = fields.number("lora_alpha", 8), []
        alphas = by_module(inside, fields.numbers("alpha_pattern"), alpha, fields.where)
        expected = by_module(
            inside, fields.counts("rank_pattern"), fields.count("r", 8), fields.where
        )
        rooted = fields.flag("use_rslora")
        for name, module in inside.items():
            rank = ranks[module]
            wrong += [module] if expected[name] != rank else []
            found[module] = alphas[name] / (rank**0.5 if rooted else rank)
        if wrong:
            raise AdapterError(
                f"{fields.where}: gives other ranks than the tensors have ({some(wrong)}). Config "
                "and weights are not of one adapter."
            )
    for module, factors in modules.items():
        if "alpha" in factors:
            found[module] = scalar(factors, "alpha") / ranks[module]
    return found
