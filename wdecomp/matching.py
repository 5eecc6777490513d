"""Tuned tensor names to base tensor names.

Names agree after the wrappers that training puts around a model are stripped. Where they still
differ by a leading component (`model.`, `bert.`), it is found once for the whole checkpoint.
"""

import re
from collections import Counter
from collections.abc import Iterable
from itertools import product

from wdecomp.errors import PairingError

INNER_WRAPPERS = re.compile(r"(?:_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.")
OUTER_WRAPPERS = ("module.", "base_model.model.")
FRONTS_TRIED = 4  # of each side, the most frequent first components


def match(base: Iterable[str], tuned: Iterable[str]) -> dict[str, str | None]:
    """The base's name for each tuned name; None where it has none.

    Raises:
        PairingError: two tuned names are one name of the base.

    >>> match(["bert.a.weight", "bert.b.weight"], ["module.a.weight", "c.weight"])
    {'module.a.weight': 'bert.a.weight', 'c.weight': None}
    """
    base_name = {unwrapped(name): name for name in base}
    stripped = {name: unwrapped(name) for name in tuned}
    drop, add = _fronts(base_name, stripped.values())
    found = {}
    for name, short in stripped.items():
        moved = add + short[len(drop) :] if short.startswith(drop) else short
        found[name] = base_name.get(short) or base_name.get(moved)
    _check_unique(found)
    return found


def unwrapped(name: str) -> str:
    """A name without what DDP, FSDP, torch.compile and PEFT put around its module."""
    while True:
        shorter = INNER_WRAPPERS.sub("", name)
        for front in OUTER_WRAPPERS:
            shorter = shorter.removeprefix(front)
        if shorter == name:
            return name
        name = shorter


def _fronts(base: Iterable[str], tuned: Iterable[str]) -> tuple[str, str]:
    """The leading component to drop from the tuned names and the one to add: most names agree."""
    known, names = set(base), list(tuned)
    choices = product(_first_components(names), _first_components(known))

    def agreeing(fronts: tuple[str, str]) -> int:
        drop, add = fronts
        return sum(n.startswith(drop) and add + n[len(drop) :] in known for n in names)

    return max(choices, key=agreeing, default=("", ""))


def _first_components(names: Iterable[str]) -> list[str]:
    counts = Counter(name.split(".", 1)[0] + "." for name in names if "." in name)
    return ["", *(front for front, _ in counts.most_common(FRONTS_TRIED))]


def _check_unique(found: dict[str, str | None]) -> None:
    first: dict[str, str] = {}
    for name, here in found.items():
        if here is not None and first.setdefault(here, name) != name:
            raise PairingError(
                f"{here}: both {first[here]} and {name} of the tuned checkpoint are this tensor."
            )
