"""An adapter's own settings, checked field by field before any of them is used."""

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from wdecomp.errors import AdapterError

# Flags under which a PEFT LoRA file means something else than W0 + s·BA.
OTHER_MEANINGS = {
    "alora_invocation_tokens": "acts on some tokens only, so it has no static weight",
    "arrow_config": "routes between adapters, so it has no static weight",
    "kasa_config": "truncates the base",
    "layer_replication": "rearranges the layers of the base",
    "loftq_config": "may have changed the base",
    "target_parameters": "adapts parameters that are no layers",
    "use_bdlora": "has block-diagonal factors",
    "use_qalora": "acts on pooled inputs",
}
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
FLAGS = ("use_dora", "use_rslora", "lora_bias")
Setting = TypeVar("Setting", int, float)


@dataclass(frozen=True)
class LoraConfig:
    """The fields of a PEFT LoRA adapter_config.json that decide what its tensors mean."""

    where: str  # for messages
    rank: int
    alpha: float
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]
    use_rslora: bool
    use_dora: bool
    base: str | None

    @property
    def method(self) -> str:
        """As the tables call it: "dora" or "lora"."""
        return "dora" if self.use_dora else "lora"

    def scalings(self, ranks: Mapping[str, int]) -> dict[str, float]:
        """The s of ΔW = s·BA for every module, from the ranks: alpha/r, with rsLoRA alpha/√r.

        A key of a pattern is a regular expression that must match the end of the module's name
        from a dot on; the first that does, in the order of the file, counts, as in PEFT.

        Raises:
            AdapterError: the rank of the tensors is not the one that the config gives.
        """
        expected = _by_module(ranks, self.rank_pattern, self.rank, self.where)
        for module, rank in ranks.items():
            if rank != expected[module]:
                raise AdapterError(
                    f"{self.where}: gives {module} rank {expected[module]}, its tensors have rank "
                    f"{rank}. Config and weights are not of one adapter."
                )
        alphas = _by_module(ranks, self.alpha_pattern, self.alpha, self.where)
        return {
            module: alphas[module] / (math.sqrt(rank) if self.use_rslora else rank)
            for module, rank in ranks.items()
        }


def lora_config(raw: dict[str, Any], where: str) -> LoraConfig:
    """A checked PEFT adapter_config.json.

    Raises:
        AdapterError: it is not a LoRA or DoRA adapter's, or a field is not what it must be.
    """
    kind = raw.get("peft_type")
    if kind != "LORA":
        raise AdapterError(f"{where}: peft_type is {kind!r}, only 'LORA' (with DoRA) can be read.")
    for field, meaning in OTHER_MEANINGS.items():
        if raw.get(field):
            raise AdapterError(f"{where}: {field} is set: this adapter {meaning}.")
    flags = {name: _flag(raw, name, where) for name in FLAGS}
    if flags["lora_bias"]:
        raise AdapterError(f"{where}: lora_bias is true, which cannot be read yet.")
    init = raw.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower().startswith(CHANGES_BASE):
        raise AdapterError(
            f"{where}: init_lora_weights is {init!r}: the adapter was trained on a changed base. "
            "Save it converted to plain LoRA (PEFT: path_initial_model_for_weight_conversion)."
        )
    base = raw.get("base_model_name_or_path")
    return LoraConfig(
        where=where,
        rank=_rank(raw.get("r"), "r", where),
        alpha=_alpha(raw.get("lora_alpha"), "lora_alpha", where),
        rank_pattern=_map(raw, "rank_pattern", _rank, where),
        alpha_pattern=_map(raw, "alpha_pattern", _alpha, where),
        use_rslora=flags["use_rslora"],
        use_dora=flags["use_dora"],
        base=base if isinstance(base, str) and base else None,
    )


def _by_module(
    modules: Iterable[str], pattern: dict[str, Setting], default: Setting, where: str
) -> dict[str, Setting]:
    """Every module's setting.

    The keys are strangers' patterns: RE2, in Arrow, never backtracks, so that none can stall it.
    """
    names = pa.array(list(modules), pa.string())
    found = dict.fromkeys(modules, default)
    for key, value in reversed(pattern.items()):  # so that the first match is written last
        try:
            matching = names.filter(pc.match_substring_regex(names, rf"^(.*\.)?({key})$"))
        except pa.ArrowInvalid as error:
            raise AdapterError(f"{where}: {key!r} is no regular expression ({error}).") from None
        found |= dict.fromkeys(matching.to_pylist(), value)
    return found


def _flag(raw: dict[str, Any], name: str, where: str) -> bool:
    value = raw.get(name, False)
    if not isinstance(value, bool):
        raise AdapterError(f"{where}: {name} is {value!r}, expected true or false.")
    return value


def _rank(value: Any, name: str, where: str) -> int:
    if type(value) is not int or value < 1:
        raise AdapterError(f"{where}: {name} is {value!r}, expected a whole number of at least 1.")
    return value


def _alpha(value: Any, name: str, where: str) -> float:
    if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:
        raise AdapterError(f"{where}: {name} is {value!r}, expected a number.")
    return float(value)


def _map(
    raw: dict[str, Any], name: str, checked: Callable[[Any, str, str], Setting], where: str
) -> dict[str, Setting]:
    value = raw.get(name) or {}
    if not isinstance(value, dict):
        raise AdapterError(f"{where}: {name} is {value!r}, expected a map from module to value.")
    return {key: checked(item, f"{name}[{key!r}]", where) for key, item in value.items()}
