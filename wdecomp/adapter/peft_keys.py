"""The keys of a PEFT adapter: which part of which module's adapter every tensor is.

PEFT names a tensor `base_model.model.` + the module's path in the running model + the part + what
torch adds (`.weight`). A whole `PeftModel` state dict has the adapter's name in between.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from wdecomp.checkpoint import PlainTensor
from wdecomp.errors import AdapterError, some

PREFIXES = ("base_model.model.", "base_model.")
WRAPPERS = ("module.", "_orig_mod.")
LEAVES = ("weight", "bias")
COPIES = ("base_layer", "original_module")
TOKENS = "trainable_tokens_delta"
# The parts that PEFT's layers have, as of 0.21, each of which begins what follows the module.
PARTS_OF: Mapping[str, tuple[str, ...]] = {
    "LORA": ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector"),
    "ADALORA": ("lora_A", "lora_B", "lora_E"),
    "VERA": ("vera_A", "vera_B", "vera_lambda_b", "vera_lambda_d", "vera_magnitude_vector"),
    "LOHA": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    "LOKR": ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    "OFT": ("oft_R", "oft_r", "oft_embedding_R"),
    "BOFT": ("boft_R", "boft_s"),
    "IA3": ("ia3_l",),
    "HRA": ("hra_u",),
    "DELORA": ("delora_A", "delora_B", "delora_lambda", "delora_w_norm"),
    "LN_TUNING": ("ln_tuning_layers",),
    "BEFT": ("beft_bias",),
    # Through PEFT's own code:
    "C3A": ("c3a_kernel",),
    "DEFT": ("deft_P", "deft_R"),
    "FOURIERFT": ("fourierft_spectrum",),
    "GRALORA": ("gralora_A", "gralora_B", "gralora_A_general", "gralora_B_general"),
    "HIRA": ("hira_A", "hira_B"),
    "MISS": ("miss_block",),
    "PEANUT": ("peanut_A", "peanut_B"),
    "ROAD": ("road_theta", "road_alpha"),
    "SHIRA": ("shira_weight", "shira_indices"),
    "SUPERTUNING": (
        *("supertuning_values", "supertuning_indices"),
        *("supertuning_lora_A", "supertuning_lora_B"),
    ),
    "WAVEFT": ("waveft_spectrum",),
}
PARTS = frozenset(part for parts in PARTS_OF.values() for part in parts)
# What training needs and the merge does not (VeLoRA, MonteCLoRA, AdaLoRA).
OF_TRAINING = ("lora_velora_embed", "lora_velora_initialized", "lora_monteclora_sampler", "ranknum")
PART_LIKE = re.compile(rf"(?:{'|'.join(sorted({p.split('_')[0] for p in PARTS} - {'ln'}))})_\w+")


@dataclass(frozen=True)
class PeftKeys:
    """The tensors of an adapter, sorted.

    modules: by module path in the running model, then by part; a part's bias as `lora_B.bias`.
    replaced: whole parameters, by parameter name.
    tokens: new rows of embeddings, by module path.
    left_out: (key, reason).
    """

    modules: dict[str, dict[str, PlainTensor]] = field(default_factory=lambda: defaultdict(dict))
    replaced: dict[str, PlainTensor] = field(default_factory=dict)
    tokens: dict[str, PlainTensor] = field(default_factory=dict)
    left_out: list[tuple[str, str]] = field(default_factory=list)


def sort_keys(tensors: Mapping[str, PlainTensor], kind: str, where: str) -> PeftKeys:
    """Every tensor of a PEFT adapter where it belongs.

    Raises:
        AdapterError: two keys are one tensor; there are several adapters in the file; a part is
            one that adapters of this kind (a peft_type) do not have.
    """
    keys, adapters = PeftKeys(), set()
    for key, tensor in tensors.items():
        path = unprefixed(key).split(".")
        if any(word in OF_TRAINING for word in path):
            keys.left_out.append((key, "of the training, not of the weights"))
            continue
        at = next((i for i, word in enumerate(path) if word in PARTS), None)
        if at is None:
            _not_a_part(keys, path, tensor, where)
            continue
        if path[at] not in PARTS_OF.get(kind, ()):
            raise _unknown(where, key, kind)
        rest = path[at + 1 :]
        leaf = rest.pop() if rest and rest[-1] in LEAVES else None
        adapters.add(".".join(rest))
        part = path[at] + (".bias" if leaf == "bias" else "")
        module = keys.modules[".".join(path[:at])]
        if module.setdefault(part, tensor) is not tensor:
            _refuse_both(where, module[part], tensor, adapters)
    if len(adapters) > 1:
        raise AdapterError(
            f"{where}: holds several adapters ({some(sorted(adapters))}). Save the one that is "
            "meant: save_pretrained(..., selected_adapters=[NAME])."
        )
    return keys


def unprefixed(key: str) -> str:
    """A key from the module's path in the running model on."""
    for wrapper in WRAPPERS:
        key = key.removeprefix(wrapper)
    return next((key.removeprefix(p) for p in PREFIXES if key.startswith(p)), key)


def _refuse_both(where: str, one: PlainTensor, other: PlainTensor, adapters: set[str]) -> None:
    several = f"of adapters {some(sorted(adapters))}" if len(adapters) > 1 else "one tensor"
    raise AdapterError(
        f"{where}: {one.name} and {other.name} are {several}, expected each once. "
        "Remove one, or save one adapter alone."
    )


def _unknown(where: str, key: str, kind: str) -> AdapterError:
    return AdapterError(
        f"{where}: {key} is no part of a {kind} adapter that is known here. Config and weights are "
        "not of one adapter, or of a variant that is newer than wdecomp."
    )


def _not_a_part(keys: PeftKeys, path: list[str], tensor: PlainTensor, where: str) -> None:
    """What is no part of an adapter layer: replaced parameters, new tokens, copies of the base."""
    if TOKENS in path:
        module = [word for word in path[: path.index(TOKENS)] if word != "token_adapter"]
        _put(keys.tokens, ".".join(module), tensor, where)
    elif "modules_to_save" in path:
        at = path.index("modules_to_save")
        _put(keys.replaced, ".".join([*path[:at], path[-1]]), tensor, where)
    elif path[-2:] == ["base_layer", "bias"]:  # may have been trained
        module = [word for word in path[:-1] if word != "base_layer"]
        _put(keys.replaced, ".".join([*module, "bias"]), tensor, where)
    elif any(word in path for word in COPIES):
        keys.left_out.append((tensor.name, "a copy of the base"))
    elif any(PART_LIKE.fullmatch(word) for word in path[-3:]):
        raise AdapterError(
            f"{where}: {tensor.name} is a part of an adapter that is not known here. It is of a "
            "variant that is newer than wdecomp."
        )
    else:
        _put(keys.replaced, ".".join(path), tensor, where)


def _put(into: dict[str, PlainTensor], name: str, tensor: PlainTensor, where: str) -> None:
    if into.setdefault(name, tensor) is not tensor:
        _refuse_both(where, into[name], tensor, set())
