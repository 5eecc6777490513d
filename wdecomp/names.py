"""Where a parameter sits in a model, told from its name alone."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from wdecomp import families

_INDEX = re.compile(r"[0-9]{1,9}")  # int() refuses very long digits, and no model has such a layer
_NUMBERED = re.compile(r"_[0-9]+$")
_LONGEST_KEY = 1 + max(key.count(".") for key in (*families.KINDS, *families.EMBEDDINGS))
_PATTERNS = [(kind, re.compile(text)) for kind, text in families.KIND_PATTERNS.items()]
_GPT2_NAME = re.compile(
    rf"(?:^|\.)h\.[0-9]+\.(?:{'|'.join(map(re.escape, sorted(families.CONV1D_MODULES)))})$"
)


@dataclass(frozen=True)
class Place:
    """Where a parameter sits.

    Attributes:
        stack: "decoder" and "encoder"; "cross" for cross-attention; "vision", "text", "audio" for
            the towers of multimodal models; "down", "mid", "up" of a UNet; "model" for what stands
            outside the layers of a model with one stack.
        layer: the block's index; None for embeddings, heads, final norms.
        module: "q", "k", "v", "o", "qkv", "kv", "gate", "up", "down", "gate_up", "embedding",
            "position", "token_type", "head", "pooler", "norm", "router", "conv", …; the module's
            own name where no family is known that has it.
    """

    stack: str
    layer: int | None
    module: str


@lru_cache(maxsize=1 << 17)
def place(parameter: str) -> Place:
    """The stack, layer and module kind of a parameter; any text has a place.

    The name does not always say which stack it is: a ViT saved without its `vit.` prefix reads as
    an encoder or a decoder, and ModernBERT, whose names are LLaMA's, as a decoder.

    >>> place("model.layers.3.mlp.experts.7.gate_proj.weight")
    Place(stack='decoder', layer=3, module='gate')
    >>> place("model.decoder.layers.0.encoder_attn.q_proj.weight")
    Place(stack='cross', layer=0, module='q')
    """
    path, _ = _split(parameter)
    at = _layer_word(path)
    head = _head_word(path, at)
    if head is not None:
        return Place(_side(path[:head]) or "model", None, "head")
    layer = None if at is None else int(path[at + 1])
    return Place(_stack(path, at), layer, _kind(path) or parameter)


def is_embedding(parameter: str) -> bool:
    """Whether this is the weight of an nn.Embedding: stored (vocab, dim), its output is dim.

    >>> is_embedding("model.embed_tokens.weight"), is_embedding("lm_head.weight")
    (True, False)
    """
    path, stored = _split(parameter)
    if not stored:
        return path[-1] in families.BARE_EMBEDDINGS
    return _stored_whole(stored) and _lookup(_words(path), families.EMBEDDINGS) is not None


def is_head(parameter: str) -> bool:
    """Whether this belongs to a head: lm_head, score, classifier, with all that is inside.

    >>> is_head("classifier.out_proj.weight"), is_head("model.layers.0.self_attn.out_proj.weight")
    (True, False)
    """
    return place(parameter).module == "head"


def stores_input_first(
    parameter: str, model_type: str | None, shape: tuple[int, ...] | None = None
) -> bool:
    """Whether this is a weight of transformers' Conv1D: stored (in, out), unlike nn.Linear.

    `model_type` is the config's. Without one, or where the config wraps another model's
    (`vision-encoder-decoder`), GPT-2's full spelling `h.<N>.attn.c_attn` decides, and `shape`,
    where it is given: modules of that spelling are nn.Linear in GPT-BigCode, GPT-Neo, Qwen 1 and
    nanoGPT, whose `c_attn` is (3d, d) and not (d, 3d). Of the square `attn.c_proj` no shape tells;
    there the answer is GPT-2's.

    >>> stores_input_first("transformer.h.0.attn.c_attn.weight", "gpt2")
    True
    >>> stores_input_first("transformer.h.0.attn.c_attn.weight", None, (96, 32))
    False
    """
    path, stored = _split(parameter)
    if not _stored_whole(stored):
        return False
    if model_type is None or model_type in families.COMPOSITE_MODEL_TYPES:
        by_name = _GPT2_NAME.search(".".join(path)) is not None
        return by_name and not _is_linear(".".join(path[-2:]), shape)
    return (
        model_type in families.CONV1D_MODEL_TYPES and ".".join(path[-2:]) in families.CONV1D_MODULES
    )


def ending(parameter: str, table: Mapping[str, str]) -> str | None:
    """The entry of the longest key that a weight's module path, without its indices, ends in.

    >>> ending("model.layers.3.mlp.experts.gate_up_proj", {"experts.gate_up_proj": "stack"})
    'stack'
    """
    path, stored = _split(parameter)
    whole = not stored or _stored_whole(stored)
    return _lookup(_words(path), table) if whole else None


def _is_linear(module: str, shape: tuple[int, ...] | None) -> bool:
    """Whether a module of GPT-2 that changes the width has the shape that nn.Linear stores."""
    if shape is None or len(shape) != 2:
        return False
    outputs, inputs = shape
    return inputs > outputs if module == "mlp.c_proj" else outputs > inputs


def _split(parameter: str) -> tuple[list[str], list[str]]:
    """The module's path, never empty, and what is stored of it: `a.b.lora_A.weight` at `lora_A`."""
    parts = parameter.split(".")
    for i, part in enumerate(parts[1:], start=1):
        if part in families.STORED:
            return parts[:i], parts[i:]
    return parts, []


def _stored_whole(stored: Sequence[str]) -> bool:
    return bool(stored) and stored[0] in families.WHOLE_WEIGHT and stored[-1] == "weight"


def _layer_word(path: Sequence[str]) -> int | None:
    """The position of the first layer word that an index follows."""
    for i, (word, index) in enumerate(pairwise(path)):
        if word in families.LAYER_WORDS and _INDEX.fullmatch(index):
            return i
    return None


def _head_word(path: Sequence[str], layer_word: int | None) -> int | None:
    """The position of the first word outside the layers that names a head."""
    for i, word in enumerate(path[:layer_word]):
        if word in families.HEADS:
            return i
    alone = families.WRAPPERS.issuperset(path[:-1]) and path[-1] in families.TOP_HEADS
    return len(path) - 1 if alone else None


def _stack(path: Sequence[str], layer_word: int | None) -> str:
    if not families.CROSS_ATTENTION.isdisjoint(path):
        return "cross"
    implied = "model" if layer_word is None else families.LAYER_WORDS[path[layer_word]]
    return _side(path[:-1]) or implied


def _side(containers: Sequence[str]) -> str | None:
    """The half of the model that these words lead into, None where they name none."""
    sides = [families.STACK_WORDS[word] for word in containers if word in families.STACK_WORDS]
    return next((side for side in sides if side in families.MODALITIES), next(iter(sides), None))


def _words(path: Sequence[str]) -> list[str]:
    """The path without its indices: experts.7.w1 → experts.w1."""
    return [word for word in path if not _INDEX.fullmatch(word)]


def _kind(path: Sequence[str]) -> str:
    words = _words(path) or list(path)
    known = _lookup(words, families.KINDS) or _lookup(words, families.EMBEDDINGS)
    return known or next((kind for kind, p in _PATTERNS if p.search(words[-1])), words[-1])


def _lookup(words: Sequence[str], table: Mapping[str, str]) -> str | None:
    """The entry of the longest key that the words end in; tapas numbers its embeddings `…_0`."""
    if not words:
        return None
    tail = [*words[-_LONGEST_KEY:-1], _NUMBERED.sub("", words[-1])]
    for ending in (words[-_LONGEST_KEY:], tail):
        for start in range(len(ending)):
            kind = table.get(".".join(ending[start:]))
            if kind is not None:
                return kind
    return None
