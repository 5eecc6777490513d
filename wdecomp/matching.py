"""Tuned tensor names to base tensor names.

A tuned name is looked for in the base as it is; without the wrappers that training puts around a
model; under the other spellings that its family has (`wdecomp.renames`); each of these with one
leading component (`model.`, `bert.`) exchanged, which is found once for the whole checkpoint; and
last by its end, where only one tensor of the same shape on either side ends so.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product

from wdecomp import families
from wdecomp.errors import PairingError
from wdecomp.renames import spellings

INNER_WRAPPERS = re.compile(
    r"(?<![^.])(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
OUTER_WRAPPER = "base_model.model."
FRONTS_TRIED = 4  # of each side, the most frequent first components
LAYERED = re.compile(rf"(?<![^.])(?:{'|'.join(sorted(families.LAYER_WORDS))})\.[0-9]+\.")

Fits = Callable[[str, str], bool]
Found = dict[str, str | None]


def match(
    base: Iterable[str],
    tuned: Iterable[str],
    model_type: str | None = None,
    fits: Fits | None = None,
) -> Found:
    """The base's name for each tuned name; None where it has none.

    `model_type` is the config's: it says which renames the family has. `fits(tuned, base)` says
    whether two tensors have one shape; without it no name is matched by its end alone.

    Raises:
        PairingError: two tuned names are one name of the base.

    >>> match(["bert.a.weight", "bert.b.weight"], ["module.a.weight", "c.weight"])
    {'module.a.weight': 'bert.a.weight', 'c.weight': None}
    """
    exact = set(base)
    base_name = {unwrapped(name): name for name in exact} | {name: name for name in exact}
    stripped = {name: unwrapped(name) for name in tuned}
    known = _with_spellings(base_name, set(stripped.values()), model_type)
    drop, add = _fronts(known, stripped.values())
    found: Found = {}
    for name, short in stripped.items():
        moved = _exchanged(short, drop, add)
        found[name] = (
            name if name in exact
            else base_name.get(short) or known.get(moved) or known.get(short)
        )  # fmt: skip
    if fits is not None:
        found |= _by_their_ends(base_name, stripped, found, fits)
    _check_unique(found)
    return found


def unwrapped(name: str) -> str:
    """A name without what DDP, FSDP, torch.compile and PEFT put around its module."""
    while True:
        shorter = INNER_WRAPPERS.sub("", name).removeprefix(OUTER_WRAPPER)
        if shorter == name:
            return name
        name = shorter


def _with_spellings(
    base_name: Mapping[str, str], tuned: set[str], model_type: str | None
) -> dict[str, str]:
    """The base's names under all their spellings, but for those that two of them share."""
    known = dict(base_name)
    if tuned <= known.keys():
        return known
    shared = set()
    for short, name in base_name.items():
        if short in tuned:
            continue
        for other in spellings(short, model_type):
            if known.setdefault(other, name) != name and other not in base_name:
                shared.add(other)
    return {short: name for short, name in known.items() if short not in shared}


def _fronts(known: Mapping[str, str], tuned: Iterable[str]) -> tuple[str, str]:
    """The leading component to drop from the tuned names and the one to add: most names agree."""
    names = list(tuned)
    choices = product(_first_components(names), _first_components(known))

    def agreeing(fronts: tuple[str, str]) -> int:
        drop, add = fronts
        return sum(_exchanged(n, drop, add) in known for n in names)

    return max(choices, key=agreeing, default=("", ""))


def _exchanged(name: str, drop: str, add: str) -> str:
    """A name with another leading component; as it is where no module would be left of it."""
    rest = name[len(drop) :]
    return add + rest if name.startswith(drop) and "." in rest else name


def _first_components(names: Iterable[str]) -> list[str]:
    counts = Counter(name.split(".", 1)[0] + "." for name in names if "." in name)
    return ["", *(front for front, _ in counts.most_common(FRONTS_TRIED))]


def _by_their_ends(
    base_name: Mapping[str, str], stripped: Mapping[str, str], found: Found, fits: Fits
) -> Found:
    """Partners for names that have none: the one tensor that ends alike, on both sides."""
    of_base = _ends(base_name.items())
    of_tuned = _ends((short, name) for name, short in stripped.items())
    taken = set(found.values())
    more: Found = {}
    for end, names in of_tuned.items():
        candidates = of_base.get(end, ())
        if len(names) != 1 or found[names[0]] is not None:
            continue
        same = [name for name in candidates if fits(names[0], name)]
        if len(same) == 1 and same[0] not in taken and _agree(names[0], same[0]):
            more[names[0]] = same[0]
    return more


def _ends(names: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Full names by how they end: from its layer on, or the last two components."""
    ends = defaultdict(list)
    for short, name in names:
        layer = LAYERED.search(short)
        end = short[layer.start() :] if layer else ".".join(short.split(".")[-2:])
        if "." in end:
            ends[end].append(name)
    return ends


def _agree(tuned: str, base: str) -> bool:
    """Whether the towers that two names lie in, where both name some, are the same."""
    one, other = (_towers(name.split(".")) for name in (tuned, base))
    return not one or not other or not one.isdisjoint(other)


def _towers(path: Sequence[str]) -> set[str]:
    return {families.STACK_WORDS[word] for word in path if word in families.STACK_WORDS}


def _check_unique(found: Mapping[str, str | None]) -> None:
    first: dict[str, str] = {}
    for name, here in found.items():
        if here is not None and first.setdefault(here, name) != name:
            raise PairingError(
                f"{here}: both {first[here]} and {name} of the tuned checkpoint are this tensor."
            )
