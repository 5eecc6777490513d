"""What a model's config.json says about the part of the model that a parameter belongs to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wdecomp.names import place

Config = Mapping[str, Any]

TOWERS: Mapping[str, Sequence[str]] = {
    "vision": ("vision_config", "visual"),
    "audio": ("audio_config", "audio_encoder"),
}
LANGUAGE = ("text_config", "llm_config", "language_config")
WRAPPED = ("thinker_config",)
FLATTENED = ("attn_config", "ffn_config")  # MPT, DBRX
TEXT_SUFFIX = "_text"

HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
KEY_VALUE_HEADS = ("num_key_value_heads", "n_head_kv", "num_kv_heads", "kv_n_heads")
HEAD_SIZE = ("head_dim", "kv_channels", "attention_head_dim")
HIDDEN = ("hidden_size", "n_embd", "d_model")


@dataclass(frozen=True)
class Numbers:
    """The config of one half of a model, and the model types that it goes by, closest first."""

    model_types: tuple[str, ...]
    config: Config

    def number(self, keys: Sequence[str]) -> int | None:
        """The first of these keys that has a positive integer."""
        values = (self.config.get(key) for key in keys)
        return next((v for v in values if type(v) is int and v > 0), None)

    def flag(self, key: str, default: bool) -> bool:
        """A yes or no, or the default where the config is silent."""
        value = self.config.get(key)
        return value if isinstance(value, bool) else default

    @property
    def heads(self) -> int | None:
        """The number of query heads."""
        return self.number(HEADS)

    @property
    def key_value_heads(self) -> int | None:
        """The number of key heads, where the config tells it from that of the query heads."""
        return self.number(KEY_VALUE_HEADS)

    @property
    def head_size(self) -> int | None:
        """Features of one head."""
        return self.number(HEAD_SIZE)

    @property
    def hidden(self) -> int | None:
        """The width of the residual stream."""
        return self.number(HIDDEN)


def numbers(config: Config, parameter: str) -> Numbers:
    """The numbers of the tower that a parameter lies in.

    A vision tower whose config is not given has no numbers: those of its language model would be
    wrong.
    """
    found, types = config, [config.get("model_type")]
    side = parameter.split(".", 1)[0]
    for keys in (WRAPPED, (side,) if side in ("encoder", "decoder") else ()):
        found = _inner(found, keys) or found
    stack = place(parameter).stack
    if stack in TOWERS:
        found = _inner(found, TOWERS[stack]) or {}
    else:
        found = _inner(found, LANGUAGE) or found
    types = [found.get("model_type"), *types]
    known = [t for t in types if isinstance(t, str)]
    bare = [t.removesuffix(TEXT_SUFFIX) for t in known]
    flat = {k: v for key in FLATTENED for k, v in (_inner(found, (key,)) or {}).items()}
    return Numbers(tuple(dict.fromkeys([*known[:1], *bare, *known])), {**flat, **found})


def _inner(config: Config, keys: Sequence[str]) -> Config | None:
    return next((config[key] for key in keys if isinstance(config.get(key), Mapping)), None)
