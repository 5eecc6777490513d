"""PEFT's LoRA and its relatives: LoRA, rsLoRA, DoRA, PiSSA and OLoRA saved as trained."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from wdecomp.adapter.adapter import ModuleUpdate
from wdecomp.adapter.change import Update
from wdecomp.adapter.config import Fields, by_module
from wdecomp.adapter.factors import Factors
from wdecomp.adapter.low_rank import ExpertStack, LowRank
from wdecomp.adapter.peft_experts import stacked_parameters
from wdecomp.adapter.principal import FromPrincipal, Kind
from wdecomp.adapter.scalings import Added
from wdecomp.adapter.updates import Magnitude
from wdecomp.checkpoint import PlainTensor
from wdecomp.errors import AdapterError, some

# Flags under which a PEFT LoRA file means something else than W0 + s·BA.
OTHER_MEANINGS = {
    "alora_invocation_tokens": "acts on some tokens only, so it has no static weight",
    "arrow_config": "routes between adapters, so it has no static weight",
    "kasa_config": "truncates the base",
    "layer_replication": "rearranges the layers of the base",
    "use_bdlora": "has block-diagonal factors",
    "use_qalora": "acts on pooled inputs",
}
OUT_PROJ = ".base_layer.out_proj"
# init_lora_weights that take something from the base which cannot be told from the base alone.
BASE_CHANGED = {
    "pissa_niter": "a randomised decomposition",
    "corda": "training data",
    "loftq": "a quantiser",
    "lora_ga": "training data",
}


@dataclass(frozen=True)
class LoraSettings:
    """The fields of a LoRA config that decide what its tensors mean."""

    fields: Fields
    rank: int
    use_dora: bool
    use_rslora: bool
    lora_bias: bool
    principal: Kind | None
    stacked: tuple[str, ...]  # target_parameters

    def ranks(self, names: Mapping[str, str]) -> dict[str, int]:
        """The r that the config gives every module, from the names that patterns are about."""
        patterns, where = self.fields.counts("rank_pattern"), self.fields.where
        found = by_module(names.values(), patterns, self.rank, where)
        return {module: found[name] for module, name in names.items()}

    def scalings(self, names: Mapping[str, str], ranks: Mapping[str, int]) -> dict[str, float]:
        """The s of ΔW = s·BA for every module: alpha/r, with rsLoRA alpha/√r."""
        patterns, where = self.fields.numbers("alpha_pattern"), self.fields.where
        alphas = by_module(names.values(), patterns, self.fields.number("lora_alpha"), where)
        return {
            module: alphas[name] / (math.sqrt(ranks[module]) if self.use_rslora else ranks[module])
            for module, name in names.items()
        }


def lora_settings(fields: Fields) -> LoraSettings:
    """The checked settings.

    Raises:
        AdapterError: a field is not what it must be, or makes something else of the adapter.
    """
    for field, meaning in OTHER_MEANINGS.items():
        if fields.raw.get(field):
            raise AdapterError(f"{fields.where}: {field} is set: this adapter {meaning}.")
    fields.number("lora_alpha")
    return LoraSettings(
        fields=fields,
        rank=fields.count("r"),
        use_dora=fields.flag("use_dora"),
        use_rslora=fields.flag("use_rslora"),
        lora_bias=fields.flag("lora_bias"),
        principal=_principal(fields),
        stacked=fields.texts("target_parameters"),
    )


def lora_updates(settings: LoraSettings, modules: Mapping[str, Factors]) -> dict[str, ModuleUpdate]:
    """The updates of all modules, by parameter name.

    Raises:
        AdapterError: a factor is missing or has the wrong shape; config and tensors contradict
            each other.
    """
    stacks = stacked_parameters(settings.stacked, modules, settings.fields.where)
    names = {module: stacks.get(module, _outer(module)) for module in modules}
    ranks = settings.ranks(names)
    scalings = settings.scalings(names, ranks)
    attention = {module for module in modules if module + OUT_PROJ in modules}
    updates: dict[str, ModuleUpdate] = {}
    for module, factors in modules.items():
        a, b = _pair(factors)
        if module in stacks:
            experts = _experts(factors, ranks[module])
            updates[stacks[module]] = ModuleUpdate(ExpertStack(a, b, scalings[module], experts))
            continue
        _check_rank(settings, factors, ranks[module])
        parameter, scaling = _parameter(module, attention, scalings[module])
        low_rank = LowRank(a, b, scaling)
        update: Update = low_rank
        if settings.principal and "lora_A" in factors:  # of embeddings PEFT takes nothing
            update = FromPrincipal(low_rank, settings.principal)
        magnitude = _magnitude(settings, factors, low_rank)
        of_embedding = "lora_embedding_A" in factors
        updates[parameter] = ModuleUpdate(update, magnitude, of_embedding)
        if _has_bias(settings, factors):
            bias = factors.vector("lora_B.bias", b.shape[0], "outputs")
            updates[parameter.removesuffix("weight") + "bias"] = ModuleUpdate(Added(bias, scaling))
    _check_magnitudes(settings, updates)
    _check_biases(settings, [m for m, f in modules.items() if "lora_A" in f and m not in stacks],
                  updates)  # fmt: skip
    return updates


def _principal(fields: Fields) -> Kind | None:
    init = fields.raw.get("init_lora_weights", True)
    if not isinstance(init, str):
        return None
    init = init.lower()
    if init == "pissa":
        return "pissa"
    if init == "olora":
        return "olora"
    needs = next((why for start, why in BASE_CHANGED.items() if init.startswith(start)), None)
    if needs or fields.raw.get("loftq_config"):
        raise AdapterError(
            f"{fields.where}: init_lora_weights is {init!r}: the adapter was trained on a base "
            f"changed by {needs or 'a quantiser'}. Save it converted to plain LoRA (PEFT: "
            "path_initial_model_for_weight_conversion)."
        )
    return None


def _pair(factors: Factors) -> tuple[PlainTensor, PlainTensor]:
    if "lora_embedding_A" in factors or "lora_embedding_B" in factors:
        return factors.pair("lora_embedding_A", "lora_embedding_B")
    return factors.pair("lora_A", "lora_B")


def _parameter(module: str, attention: set[str], scaling: float) -> tuple[str, float]:
    """The parameter of a module, and the scaling with which PEFT merges it.

    nn.MultiheadAttention has one LoRA for in_proj_weight and one for its out_proj, which PEFT adds
    twice, in its forward pass as in its merge.
    """
    if module in attention:
        return f"{module}.in_proj_weight", scaling
    if _outer(module) in attention:
        return _outer(module) + ".out_proj.weight", 2 * scaling
    return f"{module}.weight", scaling


def _outer(module: str) -> str:
    """The module that was targeted: nn.MultiheadAttention, whose out_proj has the same settings."""
    return module.removesuffix(OUT_PROJ)


def _magnitude(settings: LoraSettings, factors: Factors, update: LowRank) -> Magnitude | None:
    if "lora_magnitude_vector" not in factors:
        return None
    if not settings.use_dora:
        raise AdapterError(
            f"{settings.fields.where}: use_dora is false, but there are lora_magnitude_vectors "
            f"({factors.get('lora_magnitude_vector').name}). "
            f"Config and weights of {factors.where} are not of one adapter."
        )
    return Magnitude(factors.vector("lora_magnitude_vector", update.shape[0], "outputs"))


def _check_magnitudes(settings: LoraSettings, updates: Mapping[str, ModuleUpdate]) -> None:
    without = [
        name
        for name, each in updates.items()
        if each.magnitude is None and isinstance(each.update, LowRank | FromPrincipal)
    ]
    if settings.use_dora and without:
        raise AdapterError(
            f"{settings.fields.where}: use_dora is true, but lora_magnitude_vector is missing for "
            f"{len(without)} of {len(updates)} modules ({some(without)}). "
            "It was saved incompletely."
        )


def _check_biases(
    settings: LoraSettings, modules: list[str], updates: Mapping[str, ModuleUpdate]
) -> None:
    without = [m for m in modules if f"{m}.bias" not in updates] if settings.lora_bias else []
    if without:
        raise AdapterError(
            f"{settings.fields.where}: lora_bias is true, but lora_B.bias is missing for "
            f"{len(without)} of {len(modules)} modules ({some(without)}). "
            "It was saved incompletely."
        )


def _has_bias(settings: LoraSettings, factors: Factors) -> bool:
    present = "lora_B.bias" in factors
    if present and not settings.lora_bias:
        raise AdapterError(
            f"{settings.fields.where}: lora_bias is false, but there is "
            f"{factors.get('lora_B.bias').name}. "
            f"Config and weights of {factors.where} are not of one adapter."
        )
    return present


def _check_rank(settings: LoraSettings, factors: Factors, rank: int) -> None:
    found = _pair(factors)[0].shape[0]
    if found != rank:
        raise AdapterError(
            f"{settings.fields.where}: gives {factors.module} rank {rank}, its tensors have rank "
            f"{found}. Config and weights are not of one adapter."
        )


def _experts(factors: Factors, rank: int) -> int:
    """How many experts share the rows of A."""
    a, _ = _pair(factors)
    if a.shape[0] % rank:
        raise factors.refuse(f"lora_A has {a.shape[0]} rows", f"a multiple of its rank {rank}")
    return a.shape[0] // rank
