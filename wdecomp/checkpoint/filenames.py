"""The names under which libraries write weights, and the keys by which an adapter is known."""

import re
from collections.abc import Iterable
from pathlib import Path

FULL = ("model", "diffusion_pytorch_model")
FULL_PICKLED = ("pytorch_model", "diffusion_pytorch_model")
ADAPTERS = (
    "adapter_model.safetensors",  # PEFT
    "pytorch_lora_weights.safetensors",  # diffusers
    "adapters.safetensors",  # mlx-lm
)
ADAPTERS_PICKLED = ("adapter_model.bin", "pytorch_lora_weights.bin")
BY_NAME = ("adapter_model", "pytorch_lora_weights")  # hold nothing but adapters
INDEX = re.compile(r"\.index(\.[\w-]+)?\.json$")
SHARD = re.compile(r"-\d{5}-of-\d{5}")
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".distcp")

# What a Trainer, accelerate or DeepSpeed keeps to go on: no weights, and full of other objects.
STATE = re.compile(
    r"optimizer(_\d+)?\.(pt|bin)|scheduler(_\d+)?\.(pt|bin)|scaler\.pt|sampler(_\d+)?\.bin"
    r"|rng_state(_\d+)?\.pth|random_states_\d+\.pkl|training_args\.bin|.*_optim_states\.pt"
)

_ANYWHERE = (
    "lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_a", "lora_b",
    r"lora_down\.weight", r"lora_up\.weight", r"lora\.down\.weight", r"lora\.up\.weight",
    "hada_w1_a", "lokr_w1", "lokr_w1_a", "oft_blocks", "dora_scale", "ia3_l", "vera_lambda_b",
    "oft_R", "boft_R", "hra_u", "delora_A", "ln_tuning_layers", "trainable_tokens_delta",
    "weight_m_wdecomp", r"magnitude_layer\.magnitude",
)  # fmt: skip
_LAST = ("diff", "w_norm", "on_input")  # a model may have a module of such a name
_KEY = re.compile(
    rf"(^|\.)({'|'.join(_ANYWHERE)})(\.|$)|(^|\.)({'|'.join(_LAST)})$"
    r"|_lora\.(down|up)\.weight$|lora_linear_layer\."
    r"|^(lora_(unet|te[123]?|transformer)|lycoris|oft_unet)_"  # kohya and LyCORIS, whatever part
)


def adapter_keys(names: Iterable[str]) -> list[str]:
    """The names among these that only an adapter has, of any dialect.

    >>> adapter_keys(["h.0.attn.lora_A.default.weight", "h.0.attn.weight", "text.diff.weight"])
    ['h.0.attn.lora_A.default.weight']
    """
    return [name for name in names if _KEY.search(name)]


def is_adapter_file(file: Path) -> bool:
    """Whether a file of this name holds an adapter whatever its keys are."""
    return file.name.partition(".")[0] in BY_NAME


def is_pickled(file: Path) -> bool:
    """Whether the name is one under which pickles are written, or the index of such."""
    return INDEX.sub("", file.name).endswith(PICKLED)


def is_index(file: Path) -> bool:
    """Whether the name is that of an index of shards."""
    return INDEX.search(file.name) is not None


def is_state(file: Path) -> bool:
    """Whether the name is that of a trainer's state, which is never opened."""
    return STATE.fullmatch(file.name) is not None
