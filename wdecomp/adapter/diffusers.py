"""The diffusers dialect: `pytorch_lora_weights.safetensors`, keys of components, new and old.

    unet.….to_q.lora_A.weight                       since 0.22, with PEFT below
    unet.….to_q.lora.down.weight                    before
    unet.….attn1.processor.to_q_lora.down.weight    the first
    text_encoder.….q_proj.lora_linear_layer.down.weight
    text_encoder.….self_attn.to_q_lora.down.weight  the first, of text encoders

A single component (`save_lora_adapter`) has no prefix. Ranks and alphas stand in the header since
0.35. Without them diffusers takes alpha = r.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from wdecomp.adapter.adapter import Adapter, ModuleUpdate
from wdecomp.adapter.config import Fields, by_module
from wdecomp.adapter.factors import Factors
from wdecomp.adapter.kohya_parts import scaling_of
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
    r"(?:\.processor)?\.(?P<name>to_[qkv]|to_out|add_[qkv]_proj|to_add_out)_lora"
    r"\.(?:(?P<first>down|up)\.weight|(?P<first_alpha>alpha))"
)
_NEW = r"\.lora_(?P<new>[AB])(?:\.\w+)?\.(?P<leaf>weight|bias)"
_OTHER = r"(?P<dora>\.lora_magnitude_vector)(?:\.weight)?|\.(?P<alpha>(?:network_)?alpha)"
_PART = re.compile(rf"(?:{_NEW}|{_OLD}|{_FIRST}|{_OTHER})$")
_LONGEST_PART = 100
# What the first spelling calls the projections of a text encoder's `self_attn`.
OF_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # init_lora_weights
NO_ALPHA = (
    "the file does not say with which alpha it was trained; alpha = r is taken, as diffusers does: "
    "if it was another, the change is smaller or larger than what was trained"
)


def is_diffusers(tensors: Mapping[str, PlainTensor], metadata: Mapping[str, str]) -> bool:
    """Whether keys are LoRA's, below a component of a pipeline or in diffusers' old spellings.

    Those of a single component are PEFT's but for the prefix; there the header tells.
    """
    return any(
        (m := _part(key)) is not None
        and (
            METADATA in metadata
            or key.split(".", 1)[0] in COMPONENTS
            or any(m[spelling] for spelling in ("old", "first"))
        )
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
    modules = {module: Factors(module, found, where) for module, found in parts.items()}
    pairs = {module: factors.pair("A", "B") for module, factors in modules.items()}
    configs = _configs(metadata, where)
    scalings = _scalings(configs, modules, {m: a.shape[0] for m, (a, _) in pairs.items()}, where)
    updates: dict[str, ModuleUpdate] = {}
    for module, (a, b) in pairs.items():
        factors, scaling = modules[module], scalings.get(module, 1.0)
        magnitude = None
        if "magnitude" in factors:
            magnitude = Magnitude(factors.vector("magnitude", b.shape[0], "outputs"))
        _check_magnitude(configs, module, magnitude, where)
        updates[f"{module}.weight"] = ModuleUpdate(LowRank(a, b, scaling), magnitude)
        if "bias" in factors:
            bias = factors.vector("bias", b.shape[0], "outputs")
            updates[f"{module}.bias"] = ModuleUpdate(Added(bias, scaling))
    if not updates:
        raise AdapterError(f"{where}: holds no LoRA of any module. It was saved empty.")
    dora = any(each.magnitude for each in updates.values())
    return Adapter(
        dialect="diffusers",
        method="dora" if dora else "lora",
        updates=updates,
        left_out=tuple(left_out),
        notes=() if scalings.keys() == modules.keys() else (NO_ALPHA,),
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
    module = (key[: len(key) - len(found[0])] + ".").replace(".processor.", ".")[:-1]
    if found["name"]:
        module += "." + _first_name(module, found["name"])
    if found["alpha"] or found["first_alpha"]:
        return module, "alpha"
    if found["dora"]:
        return f"{module}.0" if module.endswith(".to_out") else module, "magnitude"
    if found["leaf"] == "bias":
        return module, "bias"
    return module, {"A": "A", "B": "B", "down": "A", "up": "B"}[
        found["new"] or found["old"] or found["first"]
    ]


def _first_name(attention: str, name: str) -> str:
    """attn1.processor.to_out_lora is the LoRA of attn1.to_out.0; a text encoder's of out_proj."""
    if attention.endswith("self_attn"):
        return OF_TEXT.get(name, name)
    return "to_out.0" if name == "to_out" else name


def _configs(metadata: Mapping[str, str], where: str) -> dict[str, Fields]:
    """PEFT's config of every component, as far as the header has it; "" for a single one.

    Raises:
        AdapterError: it is no config, or of an adapter that was trained on a changed base.
    """
    text = metadata.get(METADATA)
    if text is None:
        return {}
    parsed = strict_json.parse(text.encode(), f"{where}: {METADATA}")
    if not isinstance(parsed, dict):
        raise AdapterError(f"{where}: {METADATA} holds a {type(parsed).__name__}, expected a map.")
    raw: dict[str, dict[str, Any]] = defaultdict(dict)
    for key, value in parsed.items():
        component, _, field = key.rpartition(".")
        raw[component][field] = value
    found = {each: Fields(fields, _named(where, each)) for each, fields in raw.items()}
    for fields in found.values():
        init = fields.raw.get("init_lora_weights", True)
        if isinstance(init, str) and init.lower().startswith(CHANGES_BASE):
            raise AdapterError(
                f"{fields.where}: init_lora_weights is {init!r}: the adapter was trained on a "
                "changed base. Save it converted to plain LoRA."
            )
    return found


def _named(where: str, component: str) -> str:
    return f"{where}: {METADATA}" + (f" of {component}" if component else "")


def _component(module: str, configs: Mapping[str, Fields]) -> tuple[str, str] | None:
    """The component whose config counts for a module, and the module's name in it."""
    front, _, inside = module.partition(".")
    if front in configs:
        return front, inside
    return ("", module) if "" in configs else None


def _scalings(
    configs: Mapping[str, Fields],
    modules: Mapping[str, Factors],
    ranks: Mapping[str, int],
    where: str,
) -> dict[str, float]:
    """The s of every module of which it is told: by its own alpha, or its component's config."""
    found: dict[str, float] = {}
    inside: dict[str, dict[str, str]] = defaultdict(dict)
    for module in ranks:
        component = _component(module, configs)
        if component:
            inside[component[0]][component[1]] = module
    for each, names in inside.items():
        ranks_inside = {name: ranks[module] for name, module in names.items()}
        for name, scaling in _by_config(configs[each], ranks_inside).items():
            found[names[name]] = scaling
    for module, factors in modules.items():
        if "alpha" in factors:
            found[module] = scaling_of(factors, ranks[module])
    return found


def _by_config(fields: Fields, ranks: Mapping[str, int]) -> dict[str, float]:
    """The s of one component's modules.

    Raises:
        AdapterError: the tensors are of other ranks.
    """
    expected = by_module(ranks, fields.counts("rank_pattern"), fields.count("r", 8), fields.where)
    wrong = [name for name, rank in ranks.items() if expected[name] != rank]
    if wrong:
        raise AdapterError(
            f"{fields.where}: gives other ranks than the tensors have ({some(wrong)}). Config "
            "and weights are not of one adapter."
        )
    alphas = by_module(
        ranks, fields.numbers("alpha_pattern"), fields.number("lora_alpha", 8), fields.where
    )
    rooted = fields.flag("use_rslora")
    return {n: alphas[n] / (rank**0.5 if rooted else rank) for n, rank in ranks.items()}


def _check_magnitude(
    configs: Mapping[str, Fields], module: str, magnitude: Magnitude | None, where: str
) -> None:
    component = _component(module, configs)
    if component is None:
        return
    fields = configs[component[0]]
    if fields.flag("use_dora") != (magnitude is not None):
        there = "has no" if magnitude is None else "has a"
        raise AdapterError(
            f"{fields.where}: use_dora is {fields.flag('use_dora')}, {module} {there} "
            f"lora_magnitude_vector in {where}. Config and weights are not of one adapter."
        )
