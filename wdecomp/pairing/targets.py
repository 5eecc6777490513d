"""Which place of the base each tuned entry is about.

Names decide: first whole tensors, then parts of fused tensors of the base that the tuned side has
alone, then fused tensors of the tuned side whose parts the base has alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from wdecomp.adapter import ExpertStack, ModuleUpdate
from wdecomp.checkpoint import Checkpoint, Ranges
from wdecomp.flat_names import match_flat
from wdecomp.layouts import Layout, layout
from wdecomp.matching import match
from wdecomp.names import is_embedding, is_head, place
from wdecomp.pairing.entries import Entries, Entry, shape_of
from wdecomp.pairing.slots import Slot, part_slots, slots

VOCABULARY = 1000  # a head with more rows has words in them, which keep their place when some come


@dataclass(frozen=True)
class Target:
    """One slot of the base and the part of a tuned entry that belongs to it.

    of_part: the entry is fused and the base is not: only a part of the entry belongs to the slot.
    plane, outputs: which part of the entry that is, as in `Matrix`.
    layout: of the entry.
    """

    slot: Slot
    of_part: bool = False
    plane: int | None = None
    outputs: Ranges | None = None
    layout: Layout = Layout()  # noqa: RUF009


def find_targets(base: Checkpoint, tuned: Checkpoint, entries: Entries) -> dict[str, list[Target]]:
    """The base's slots for each tuned name; none where it has none.

    Raises:
        PairingError: two tuned names are one name of the base.
    """
    if entries.flat_names:
        return _by_flat_names(base, entries)
    found = _by_name(base, tuned, entries)
    targets = {
        name: [Target(slot) for slot in _slots_of(base, tuned, name, here)] if here else []
        for name, here in found.items()
    }
    alone = [name for name, here in found.items() if here is None]
    if alone:
        targets |= _parts_of_base(base, tuned, alone)
        fused = [name for name in alone if not targets[name]]
        targets |= _parts_of_tuned(base, tuned, {name: entries.entries[name] for name in fused})
    return targets


def _by_name(base: Checkpoint, tuned: Checkpoint, entries: Entries) -> dict[str, str | None]:
    fits = _fits(base, entries.entries)
    model_type = base.model_type or tuned.model_type
    return _with_tied_heads(base, entries, match(base.tensors, entries.entries, model_type, fits))


def _by_flat_names(base: Checkpoint, entries: Entries) -> dict[str, list[Target]]:
    """Of a module that the base has in several tensors, each takes the outputs that come next."""
    names = match_flat(base.tensors, entries.entries, _fits(base, entries.entries))
    targets: dict[str, list[Target]] = {}
    for name, here in names.items():
        targets[name], first = [], 0
        for each in here:
            [slot, *_] = found = slots(each, base.tensors[each], base.config_of(each))
            if len(here) == 1:
                targets[name] = [Target(slot) for slot in found]
                continue
            last = first + slot.module.shape[0]
            targets[name].append(Target(slot, True, None, (range(first, last),)))
            first = last
    return targets


def _fits(base: Checkpoint, entries: Mapping[str, Entry]) -> Callable[[str, str], bool]:
    """Whether a tuned entry and a base tensor have the same lengths, in whatever order."""

    def fits(name: str, here: str) -> bool:
        entry, weight = entries[name], base.tensors[here]
        if not isinstance(entry, ModuleUpdate):
            return entry.shape == weight.shape
        if isinstance(entry.update, ExpertStack):
            return sorted(weight.shape) == sorted(
                size for size in shape_of(entry) if size is not None
            )
        if entry.of_embedding:
            return entry.update.fits((weight.shape[-1], weight.shape[0]))
        [slot, *parts] = slots(here, weight, base.config_of(here))
        return bool(parts) or entry.update.fits(slot.matrix.shape)

    return fits


def _slots_of(base: Checkpoint, tuned: Checkpoint, name: str, here: str) -> list[Slot]:
    """The slots of a base tensor; under the tuned name for a head that is tied to the embedding."""
    parameter = name if is_head(name) and is_embedding(here) else here
    config = base.config_of(here) or tuned.config_of(name)
    return slots(parameter, base.tensors[here], config)


def _with_tied_heads(
    base: Checkpoint, entries: Entries, names: dict[str, str | None]
) -> dict[str, str | None]:
    """Heads that the base does not store, because they are its input embedding."""
    embeddings = [
        name
        for name, tensor in base.tensors.items()
        if is_embedding(name) and place(name).module == "embedding" and len(tensor.shape) == 2
    ]
    if len(embeddings) != 1:
        return names
    vocabulary, width = base.tensors[embeddings[0]].shape
    tied = {}
    for name, entry in entries.entries.items():
        if names[name] is None and is_head(name) and name.endswith(".weight"):
            rows, *columns = shape_of(entry)
            if columns == [width] and rows is not None and rows >= min(vocabulary, VOCABULARY):
                tied[name] = embeddings[0]
    return {**names, **tied}


def _parts_of_base(
    base: Checkpoint, tuned: Checkpoint, names: Sequence[str]
) -> dict[str, list[Target]]:
    """Entries that are a part of a fused tensor of the base."""
    by_name: dict[str, Slot] = {}
    for slot in part_slots(base):
        for spelled in slot.split_names:
            by_name.setdefault(spelled, slot)
    found = match(by_name, names, base.model_type or tuned.model_type)
    return {name: [Target(by_name[here])] if here else [] for name, here in found.items()}


def _parts_of_tuned(
    base: Checkpoint, tuned: Checkpoint, entries: Mapping[str, Entry]
) -> dict[str, list[Target]]:
    """Fused entries whose parts the base stores alone."""
    config = tuned.config or base.config
    layouts = {name: _layout(name, entry, config) for name, entry in entries.items()}
    wanted = {
        (name, i): part.split_names
        for name, found in layouts.items()
        for i, part in enumerate(found.parts)
    }
    here = _first_spelling(base, wanted, base.model_type or tuned.model_type)
    targets: dict[str, list[Target]] = {name: [] for name in entries}
    for (name, i), base_name in here.items():
        part = layouts[name].parts[i]
        for slot in slots(base_name, base.tensors[base_name], base.config_of(base_name)):
            targets[name].append(Target(slot, True, part.plane, part.outputs, layout=layouts[name]))
    return targets


def _layout(name: str, entry: Entry, config: Mapping[str, object]) -> Layout:
    if not isinstance(entry, ModuleUpdate):
        return layout(name, entry.shape, config)
    shape = shape_of(entry)
    if isinstance(entry.update, ExpertStack):
        inputs_last = shape[0], shape[2], shape[1]  # as transformers' experts are, but for a few
        return layout(name, tuple(size or 0 for size in inputs_last), config)
    return Layout() if None in shape else layout(name, tuple(size or 0 for size in shape), config)


def _first_spelling(
    base: Checkpoint, wanted: Mapping[tuple[str, int], tuple[str, ...]], model_type: str | None
) -> dict[tuple[str, int], str]:
    """The base's name of every part, under the likeliest spelling that the base has."""
    found: dict[tuple[str, int], str] = {}
    for attempt in range(max((len(names) for names in wanted.values()), default=0)):
        asked = {
            names[attempt]: key
            for key, names in wanted.items()
            if key not in found and attempt < len(names)
        }
        for spelled, here in match(base.tensors, asked, model_type).items():
            if here is not None:
                found[asked[spelled]] = here
    return found
