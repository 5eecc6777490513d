"""The PEFT dialect: an adapter folder, or a whole PeftModel's tensors, with adapter_config.json."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from wdecomp.adapter import peft_others
from wdecomp.adapter.adapter import Adapter, ModuleUpdate
from wdecomp.adapter.config import Fields
from wdecomp.adapter.factors import Factors
from wdecomp.adapter.peft_keys import PeftKeys, sort_keys
from wdecomp.adapter.peft_lora import lora_settings, lora_updates
from wdecomp.adapter.scalings import Added, Tokens
from wdecomp.adapter.through_peft import merged_by_peft
from wdecomp.checkpoint import PlainTensor
from wdecomp.errors import AdapterError

Reader = Callable[[Fields, Mapping[str, Factors]], dict[str, ModuleUpdate]]

READERS: dict[str, Reader] = {
    "ADALORA": peft_others.adalora,
    "BEFT": peft_others.beft,
    "BOFT": peft_others.boft,
    "DELORA": peft_others.delora,
    "HRA": peft_others.hra,
    "IA3": peft_others.ia3,
    "LOHA": peft_others.loha,
    "LOKR": peft_others.lokr,
    "OFT": peft_others.oft,
    "VERA": peft_others.vera,
}
_ALONE = ("C3A", "DEFT", "FOURIERFT", "GRALORA", "HIRA", "MISS", "PEANUT", "ROAD", "SHIRA")
THROUGH_PEFT: dict[str, Reader] = dict.fromkeys((*_ALONE, "SUPERTUNING", "WAVEFT"), merged_by_peft)
REPLACING = ("LN_TUNING", "TRAINABLE_TOKENS")
SUPPORTED = ("LORA", *READERS, *THROUGH_PEFT, *REPLACING)

_PROMPT = "changes no weight: it adds trained vectors to the input or to keys and values"
_ACTIVATIONS = "acts on activations between the layers, so it changes no weight"
_INPUTS = "weighs its parts by the input, so it has no static weight"
_TASKS = "mixes its parts by the task of an input, so it has no one static weight"
_MERGE = "has a merge formula that wdecomp does not have; merge it with PEFT and compare the result"
REFUSED: Mapping[str, str] = {
    **dict.fromkeys(("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING"), _PROMPT),
    **dict.fromkeys(("PREFIX_TUNING", "CPT", "ADAPTION_PROMPT", "CARTRIDGE"), _PROMPT),
    **dict.fromkeys(("XLORA", "LILY"), _INPUTS),
    "POLY": _TASKS,
    "SHADOW": _ACTIVATIONS,
    **dict.fromkeys(("ADAMSS", "FROD", "GLORA", "OSF", "PSOFT", "PVERA", "RANDLORA"), _MERGE),
    **dict.fromkeys(("TINYLORA", "UNILORA", "VBLORA"), _MERGE),
}


def read_peft(tensors: Mapping[str, PlainTensor], config: Mapping[str, Any], where: str) -> Adapter:
    """The updates of a PEFT adapter; the factors stay on disk.

    Raises:
        AdapterError: a factor is missing or has the wrong shape, config and tensors contradict
            each other, or the adapter is of a kind that cannot be read.
    """
    fields = Fields(config, f"{where}: adapter_config.json")
    kind = _kind(fields)
    keys = sort_keys(tensors, kind, where)
    modules = {
        module: Factors(module, parts, where) for module, parts in sorted(keys.modules.items())
    }
    method, updates = _updates(kind, fields, modules, keys)
    updates = _on_replaced(updates, keys) | _tokens(fields, keys)
    if not updates and kind not in REPLACING:
        raise AdapterError(_none_found(kind, keys, where))
    base = config.get("base_model_name_or_path")
    return Adapter(
        dialect="PEFT",
        method=method,
        updates=updates,
        replaced=keys.replaced,
        left_out=tuple(keys.left_out),
        base=base if isinstance(base, str) and base else None,
    )


def _kind(fields: Fields) -> str:
    kind = fields.raw.get("peft_type")
    if isinstance(kind, str) and kind in REFUSED:
        raise AdapterError(f"{fields.where}: peft_type is {kind!r}, which {REFUSED[kind]}.")
    if kind not in SUPPORTED:
        raise AdapterError(
            f"{fields.where}: peft_type is {kind!r}, expected one of {', '.join(SUPPORTED)}."
        )
    return str(kind)


def _updates(
    kind: str, fields: Fields, modules: Mapping[str, Factors], keys: PeftKeys
) -> tuple[str, dict[str, ModuleUpdate]]:
    """Method and updates."""
    if kind == "LORA":
        settings = lora_settings(fields)
        return "dora" if settings.use_dora else "lora", lora_updates(settings, modules)
    if kind in REPLACING:
        for module, factors in modules.items():
            for part, tensor in factors.tensors.items():
                leaf = "bias" if part.endswith(".bias") else "weight"
                keys.replaced[f"{module}.{leaf}"] = tensor
        return kind.lower(), {}
    updates = (READERS | THROUGH_PEFT)[kind](fields, modules)
    dora = any(each.magnitude for each in updates.values())
    return ("dvora" if kind == "VERA" and dora else kind.lower()), updates


def _on_replaced(updates: Mapping[str, ModuleUpdate], keys: PeftKeys) -> dict[str, ModuleUpdate]:
    """Biases that were trained themselves and have a change on top: each is one update."""
    found = {}
    for name, each in updates.items():
        instead = keys.replaced.pop(name, None)
        if instead is not None and isinstance(each.update, Added):
            each = ModuleUpdate(replace(each.update, instead=instead))
        elif instead is not None:
            raise AdapterError(
                f"{instead.file}: {instead.name} and {each.tensors[0].name} change one parameter, "
                "expected one of them."
            )
        found[name] = each
    return found


def _tokens(fields: Fields, keys: PeftKeys) -> dict[str, ModuleUpdate]:
    """New rows of embeddings (and of heads tied to them)."""
    return {
        f"{module}.weight": ModuleUpdate(Tokens(rows, _which(fields, module, rows)))
        for module, rows in keys.tokens.items()
    }


def _which(fields: Fields, module: str, rows: PlainTensor) -> tuple[int, ...]:
    """The tokens whose rows are new: a list, or a list for each module."""
    name = "token_indices" if "token_indices" in fields.raw else "trainable_token_indices"
    value = fields.raw.get(name)
    if isinstance(value, dict):
        named = [v for key, v in value.items() if f".{module}".endswith(f".{key}")]
        value = named[0] if named else next(iter(value.values()), None)
    tokens = value if isinstance(value, list) else [None]
    if not all(type(i) is int and i >= 0 for i in tokens) or len(set(tokens)) < len(tokens):
        raise AdapterError(
            f"{fields.where}: {name} is {value!r}, expected a list of token indices, each once."
        )
    if len(rows.shape) != 2 or rows.shape[0] != len(tokens):
        raise AdapterError(
            f"{fields.where}: {name} has {len(tokens)} tokens, {rows.name} is {rows.shape}. "
            "Config and weights are not of one adapter."
        )
    return tuple(tokens)


def _none_found(kind: str, keys: PeftKeys, where: str) -> str:
    others = [*keys.replaced, *(key for key, _ in keys.left_out)]
    found = f"its tensors are {', '.join(others[:3])}" if others else "it was saved empty"
    return f"{where}: holds no tensors of a {kind} adapter: {found}."
