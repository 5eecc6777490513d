"""The ways in which one weight's outputs belong to several matrices.

Every one of them is a comb: the outputs are some equal blocks, and each block has the same pieces.
Side by side is one block, interleaved by head a block per head, taking turns a block per pair.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate

from wdecomp.layouts.config import Numbers
from wdecomp.layouts.parts import Pieces

CODEGEN_BLOCKS = 4  # the number of TPU cores that it was trained on
GEGLU = ("geglu", "swiglu")
CHATGLM_GROUPS = ("multi_query_group_num",)


@dataclass(frozen=True)
class Comb:
    """blocks times the pieces (label, size), in order."""

    blocks: int
    pieces: tuple[tuple[str, int], ...]

    @property
    def outputs(self) -> dict[str, Pieces]:
        """Which outputs each label has."""
        period = sum(size for _, size in self.pieces)
        starts = accumulate((size for _, size in self.pieces), initial=0)
        return {
            label: self._indices(start, size, period)
            for (label, size), start in zip(self.pieces, starts, strict=False)
        }

    def _indices(self, start: int, size: int, period: int) -> Pieces:
        if size == 1:
            return (range(start, self.blocks * period, period),)
        firsts = range(start, self.blocks * period, period)
        return tuple(range(first, first + size) for first in firsts)

    def __str__(self) -> str:
        pieces = "[" + " | ".join(f"{label} {size}" for label, size in self.pieces) + "]"
        return f"outputs {pieces}" if self.blocks == 1 else f"{self.blocks} blocks of {pieces}"


Scheme = Callable[
    [int, int, Numbers], Comb | str
]  # outputs, inputs → the comb, or why there is none


def scheme(name: str) -> Scheme:
    """The function behind a name of `wdecomp.layouts.table`."""
    return _SCHEMES[name]


def halves(first: str, second: str) -> Scheme:
    """Two matrices side by side."""

    def found(outputs: int, inputs: int, numbers: Numbers) -> Comb | str:
        if outputs % 2:
            return f"{outputs} outputs are not two equal halves"
        return Comb(1, ((first, outputs // 2), (second, outputs // 2)))

    return found


def turns(outputs: int, inputs: int, numbers: Numbers) -> Comb | str:
    """Gate 0, up 0, gate 1, up 1 and so on: gpt-oss."""
    if outputs % 2:
        return f"{outputs} outputs are not pairs"
    return Comb(outputs // 2, (("gate", 1), ("up", 1)))


def _side_by_side(outputs: int, inputs: int, numbers: Numbers) -> Comb | str:
    """[q | k | v]: all the heads of each."""
    if numbers.heads is None or numbers.key_value_heads in (None, numbers.heads):
        size = numbers.head_size
        own_width = size is not None and outputs == 3 * size * (numbers.heads or 0)
        if outputs == 3 * inputs or own_width:
            return _thirds(outputs, inputs, numbers)
        if numbers.heads is None:
            return _NO_HEADS
        return f"{outputs} outputs are not three times the {inputs} inputs"
    heads = _heads(outputs, inputs, numbers)
    if isinstance(heads, str):
        return heads
    of_queries, of_keys, size = heads
    return Comb(1, (("q", of_queries * size), ("k", of_keys * size), ("v", of_keys * size)))


def _thirds(outputs: int, inputs: int, numbers: Numbers) -> Comb | str:
    if outputs % 3:
        return f"{outputs} outputs are not three equal parts"
    return Comb(1, tuple((label, outputs // 3) for label in "qkv"))


def _each_head(outputs: int, inputs: int, numbers: Numbers) -> Comb | str:
    """[heads, 3, head size]: q, k and v of a head, then of the next."""
    heads = numbers.heads
    if heads is None:
        return _NO_HEADS
    size, rest = divmod(outputs, 3 * heads)
    if rest or (numbers.head_size or size) != size:
        return f"{outputs} outputs are not q, k and v of {heads} heads"
    return Comb(heads, (("q", size), ("k", size), ("v", size)))


def _each_group(outputs: int, inputs: int, numbers: Numbers) -> Comb | str:
    """[groups, query heads of one + 2, head size]: a group's queries, its key, its value."""
    heads = _heads(outputs, inputs, numbers)
    if isinstance(heads, str):
        return heads
    of_queries, groups, size = heads
    if of_queries % groups:
        return f"{of_queries} heads are not {groups} equal groups"
    return Comb(groups, (("q", of_queries // groups * size), ("k", size), ("v", size)))


def _heads(outputs: int, inputs: int, numbers: Numbers) -> tuple[int, int, int] | str:
    """Query heads, key heads and head size, where they add up to the outputs."""
    of_queries = numbers.heads
    if of_queries is None:
        return _NO_HEADS
    of_keys = numbers.key_value_heads or of_queries
    size, rest = divmod(outputs, of_queries + 2 * of_keys)
    if rest or (numbers.head_size or inputs // of_queries) != size:
        return (
            f"{outputs} outputs are not those of {of_queries} heads and {of_keys} key-value heads"
        )
    return of_queries, of_keys, size


def _with_keys(numbers: Numbers, heads: int) -> Numbers:
    """The same numbers with another count of key heads."""
    return Numbers(numbers.model_types, {**numbers.config, "num_key_value_heads": heads})


def _falcon(outputs: int, inputs: int, numbers: Numbers) -> Comb | str:
    """RW: each head; 7B: all queries, one key, one value; 40B: each group."""
    if numbers.flag("new_decoder_architecture", False) or "n_head_kv" in numbers.config:
        groups = numbers.number(("num_kv_heads", "n_head_kv")) or numbers.heads
        return _each_group(outputs, inputs, _with_keys(numbers, groups or 0))
    if numbers.flag("multi_query", True):
        return _side_by_side(outputs, inputs, _with_keys(numbers, 1))
    return _each_head(outputs, inputs, numbers)


def _bigcode(outputs: int, inputs: int, numbers: Numbers) -> Comb | str:
    if not numbers.flag("multi_query", True):
        return _each_head(outputs, inputs, numbers)
    return _side_by_side(outputs, inputs, _with_keys(numbers, 1))


def _chatglm(outputs: int, inputs: int, numbers: Numbers) -> Comb | str:
    if not numbers.flag("multi_query_attention", False):
        return _each_head(outputs, inputs, numbers)
    groups = numbers.number(CHATGLM_GROUPS) or 0
    return _side_by_side(outputs, inputs, _with_keys(numbers, groups))


def _chatglm_mlp(outputs: int, inputs: int, numbers: Numbers) -> Comb | str:
    """Gated from ChatGLM2 on, which has `ffn_hidden_size`; in the first, one matrix."""
    gated = outputs == 2 * (numbers.number(("ffn_hidden_size",)) or 0)
    return halves("gate", "up")(outputs, inputs, numbers) if gated else ""


def _codegen(outputs: int, inputs: int, numbers: Numbers) -> Comb | str:
    """Four blocks of [q | v | k], the value before the key."""
    size, rest = divmod(outputs, 3 * CODEGEN_BLOCKS)
    if rest:
        return f"{outputs} outputs are not {CODEGEN_BLOCKS} blocks of three"
    return Comb(CODEGEN_BLOCKS, (("q", size), ("v", size), ("k", size)))


def _c_attn(outputs: int, inputs: int, numbers: Numbers) -> Comb | str:
    """Without a known family: more than one stores (3d, d), in different orders."""
    if outputs == 3 * inputs:
        return NO_FAMILY
    size, rest = divmod(outputs - inputs, 2)
    if rest or not 0 < size < inputs:
        return NO_FAMILY
    return Comb(1, (("q", inputs), ("k", size), ("v", size)))


def _geglu(outputs: int, inputs: int, numbers: Numbers) -> Comb | str:
    """diffusers: [value | gate] where the activation is gated, which the width may tell."""
    activation = numbers.config.get("activation_fn")
    gated = activation in GEGLU if activation else outputs == 8 * inputs
    if gated:
        return halves("up", "gate")(outputs, inputs, numbers)
    return "" if activation or outputs == 4 * inputs else _NO_GATE


def _flux_single(outputs: int, inputs: int, numbers: Numbers) -> Comb | str:
    if outputs <= 3 * inputs:
        return f"{outputs} outputs are no q, k, v and MLP of {inputs} inputs"
    return Comb(1, (*((label, inputs) for label in "qkv"), ("mlp", outputs - 3 * inputs)))


def _added(outputs: int, inputs: int, numbers: Numbers) -> Comb | str:
    comb = _side_by_side(outputs, inputs, numbers)
    if isinstance(comb, str):
        return comb
    return Comb(1, tuple((f"add_{label}", size) for label, size in comb.pieces))


_NO_HEADS = "the config gives no num_attention_heads"
NO_FAMILY = "families order the outputs of this name differently, and no model_type tells which"
_NO_GATE = "the config gives no activation_fn, which may be gated"

_SCHEMES: Mapping[str, Scheme] = {
    "q k v": _side_by_side,
    "thirds": _thirds,
    "each head": _each_head,
    "each group": _each_group,
    "falcon": _falcon,
    "bigcode": _bigcode,
    "chatglm": _chatglm,
    "chatglm mlp": _chatglm_mlp,
    "codegen": _codegen,
    "c_attn": _c_attn,
    "add q k v": _added,
    "q k v mlp": _flux_single,
    "k v": halves("k", "v"),
    "gate up": halves("gate", "up"),
    "up gate": halves("up", "gate"),
    "geglu": _geglu,
    "unknown": lambda *_: NO_FAMILY,
}
