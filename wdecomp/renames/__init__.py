"""Other names under which a parameter is known.

transformers 5 runs many models under other names than it stores them with, and PEFT writes the
running model's names into an adapter; older libraries stored others again. `wdecomp.renames.table`
lists these as pairs (name on disk, name of the running model), component by component.
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from wdecomp import families
from wdecomp.renames.table import EVERYWHERE, TABLE, UNKNOWN

_ALSO_COUNTED = ("experts", "attentions", "resnets", "patch_embeddings", "layer_norm")
_COUNTED = "|".join(sorted([*families.LAYER_WORDS, *_ALSO_COUNTED]))
_INDEXED = re.compile(rf"(?<![^.])(?:{_COUNTED})(?:\.[0-9]+)+(?![^.])")
_INDEX = re.compile(r"(?<=\.)[0-9]+")
_BRACES = re.compile(r"\{([^}]*)\}")

Pair = tuple[str, str]


def spellings(parameter: str, model_type: str | None = None) -> tuple[str, ...]:
    """The other full names of a parameter, from disk to running model and back.

    They are candidates: one that no checkpoint has does no harm. Without a model type, and for one
    that the table does not list, the renames of the most common families are tried.

    >>> spellings("vit.layers.3.attention.q_proj.weight", "vit")
    ('vit.encoder.layer.3.attention.attention.query.weight',)
    >>> spellings("embed_out.weight", "gpt_neox")
    ('lm_head.weight',)
    """
    if "#" in parameter:
        return ()
    indices = [i for found in _INDEXED.findall(parameter) for i in _INDEX.findall(found)]
    template = _INDEXED.sub(lambda found: _INDEX.sub("#", found[0]), parameter)
    return tuple(_filled(other, indices) for other in _templates(template, model_type))


@lru_cache(maxsize=1 << 14)
def _templates(template: str, model_type: str | None) -> tuple[str, ...]:
    """The other spellings of a name whose layer and expert indices are `#`."""
    sections = (*TABLE.get(model_type or "", UNKNOWN), *EVERYWHERE)
    found = {f"^.{template}.$": None}  # a dict keeps the order
    for section in dict.fromkeys(sections):
        pairs = _pairs(section)
        for name in list(found):
            found.setdefault(_renamed(name, pairs))
            found.setdefault(_renamed(name, [(live, disk) for disk, live in reversed(pairs)]))
    bare = (name[2:-2] for name in found)
    return tuple(name for name in bare if name and name != template)


def _renamed(name: str, pairs: Iterable[Pair]) -> str:
    for old, new in pairs:
        if new not in name or new in old:
            name = name.replace(old, new, 1)
    return name


@lru_cache
def _pairs(section: str) -> Sequence[Pair]:
    """The rules of a section with their braces multiplied out, as runs of whole components."""
    pairs: list[Pair] = []
    for line in section.strip().splitlines():
        disk, live = line.split()
        pairs.extend(zip(_expanded(disk), _expanded(live), strict=True))
    return [(_run(disk), _run(live)) for disk, live in pairs]


def _expanded(text: str) -> list[str]:
    """`{q,k}_proj` is q_proj and k_proj; several braces count in step."""
    choices = [found.split(",") for found in _BRACES.findall(text)]
    if not choices:
        return [text]
    outside = _BRACES.split(text)[::2]
    return [
        "".join(word for pair in zip(outside, (*row, ""), strict=True) for word in pair)
        for row in zip(*choices, strict=True)
    ]


def _run(text: str) -> str:
    """Components with the dots around them; `^` and `$` stand at the ends of every name."""
    start = text if text.startswith("^") else f".{text}"
    return f"{start.removesuffix('$')}.$" if text.endswith("$") else f"{start}."


def _filled(template: str, indices: Iterable[str]) -> str:
    left = iter(indices)
    return re.sub("#", lambda _: next(left), template)
