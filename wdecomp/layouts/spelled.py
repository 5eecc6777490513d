"""The names under which a checkpoint that does not fuse or stack has the parts."""

from wdecomp.layouts.config import Numbers
from wdecomp.layouts.table import ALONE, ATTENTIONS, SEPARATE_ATTENTIONS
from wdecomp.renames import spellings

SUFFIX = ".weight"


def of_fused(parameter: str, label: str, numbers: Numbers) -> tuple[str, ...]:
    """Of a part that stands beside others: `….self_attn.q_proj.weight`."""
    block = parameter.removesuffix(SUFFIX).rpartition(".")[0]
    outer, _, attention = block.rpartition(".")
    blocks = [block]
    if attention in ATTENTIONS:
        blocks += [_joined(outer, other) for other in SEPARATE_ATTENTIONS]
    return _with_spellings(blocks, label, numbers)


def of_expert(parameter: str, expert: int, label: str, numbers: Numbers) -> tuple[str, ...]:
    """Of an expert: `….experts.3.gate_proj.weight`."""
    block = parameter.removesuffix(SUFFIX).rpartition(".")[0]
    before, found, _ = f".{block}.".rpartition(".experts.")
    experts = f"{before}.experts"[1:] if found else _joined(block, "experts")
    return _with_spellings([f"{experts}.{expert}"], label, numbers)


def _with_spellings(blocks: list[str], label: str, numbers: Numbers) -> tuple[str, ...]:
    plain = [_joined(b, word) + SUFFIX for word in ALONE.get(label, ()) for b in blocks]
    types = numbers.model_types or (None,)
    others = (other for name in plain for t in types for other in spellings(name, t))
    return tuple(dict.fromkeys([*plain, *others]))


def _joined(block: str, word: str) -> str:
    return f"{block}.{word}" if block else word
