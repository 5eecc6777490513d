"""A base and a tuned checkpoint, tensor by tensor."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from wdecomp.adapter import Adapted, ModuleUpdate, Vera
from wdecomp.checkpoint import Checkpoint, Matrix, Weight
from wdecomp.errors import PairingError, some
from wdecomp.names import is_embedding, is_head
from wdecomp.pairing.adapted import adapted_pair
from wdecomp.pairing.entries import Entries, Entry, entries_of, key_of
from wdecomp.pairing.records import LeftOut, Pair, Pairing
from wdecomp.pairing.remarks import remarks
from wdecomp.pairing.slots import Slot, no_weight, oriented, slots, unknown_stack
from wdecomp.pairing.targets import VOCABULARY, Target, find_targets


def pair(base: Checkpoint, tuned: Checkpoint) -> Pairing:
    """Base and tuned tensors matched by name.

    Raises:
        PairingError: the two do not describe one model: a shape differs that fine-tuning does not
            change, or no name agrees.
        AdapterError: the tuned checkpoint is an adapter that cannot be read.
    """
    if base.is_adapter:
        raise PairingError(f"{base.path}: is an adapter, expected the base model that it changes.")
    entries = entries_of(tuned)
    result = Pairing(entries.method, entries.dialect, entries.notes)
    result.left_out.extend(LeftOut(name, "tuned", reason) for name, reason in entries.left_out)
    result.left_out.extend(LeftOut(name, "base", reason) for name, reason in base.left_out)
    targets = find_targets(base, tuned, entries)
    for name in entries.entries:
        _account_for(result, base, tuned, entries, name, targets[name])
    if not result.matrices and not (tuned.is_adapter and result.vectors):  # as of LN tuning
        raise PairingError(_why_none(base, tuned, entries, result.left_out, targets))
    if not tuned.is_adapter:
        met = {target.slot.name for each in targets.values() for target in each}
        absent = (name for name in base.tensors if name not in met)
        result.left_out.extend(
            LeftOut(n, "base", "no such tensor in the tuned one") for n in absent
        )
    _widen_vera(result)
    notes = (*result.notes, *remarks(base, result.matrices.values()))
    return replace(result, notes=notes)


def _why_none(
    base: Checkpoint,
    tuned: Checkpoint,
    entries: Entries,
    left_out: list[LeftOut],
    targets: dict[str, list[Target]],
) -> str:
    """What to say where no matrix is left to compare."""
    for checkpoint in (base, tuned):
        if not checkpoint.tensors:
            return f"{checkpoint.path}: holds no tensors."
    for gone in left_out:
        if gone.side == "tuned" and targets.get(gone.tensor):
            return (
                f"{tuned.path}: none of its {len(entries.entries)} tensors can be compared with "
                f"{base.path}. {gone.tensor}: {gone.reason}."
            )
    return (
        f"{tuned.path}: none of its {len(entries.entries)} tensors ({some(list(entries.entries))}) "
        f"is a matrix of {base.path} ({some(list(base.tensors))}). These are different models."
    )


def _account_for(
    result: Pairing,
    base: Checkpoint,
    tuned: Checkpoint,
    entries: Entries,
    name: str,
    targets: list[Target],
) -> None:
    """Puts one tuned tensor where it belongs: matrices, a vector, or left out."""
    entry = entries.entries[name]
    if not targets and _is_of_its_weight(entries, name):
        return
    if not targets:
        why = _why_unpaired(base, tuned, entries, name)
        result.left_out.append(LeftOut(key_of(name, entry), "tuned", why))
        return
    for target in targets:
        reason = no_weight("base", target.slot.matrix.tensor) or unknown_stack(target.slot)
        if reason is None and not isinstance(entry, ModuleUpdate):
            reason = no_weight("tuned", entry)
        if reason is None:
            found, reason = _pair(base, tuned, name, entry, target)
            if found:
                of_its_kind = result.vectors if found.base.is_vector else result.matrices
                of_its_kind[found.parameter] = found
        if reason:
            result.left_out.append(LeftOut(key_of(name, entry), "tuned", reason))


def _is_of_its_weight(entries: Entries, name: str) -> bool:
    """Whether a bias is changed by the tensor that changes its weight: none is lost with it."""
    entry = entries.entries[name]
    weight = entries.entries.get(name.removesuffix("bias") + "weight")
    if not name.endswith(".bias") or not isinstance(weight, ModuleUpdate):
        return False
    return isinstance(entry, ModuleUpdate) and entry.tensors[:1] == weight.tensors[:1]


def _why_unpaired(base: Checkpoint, tuned: Checkpoint, entries: Entries, name: str) -> str:
    """Why a tuned entry has no partner.

    Raises:
        PairingError: it is an adapter's, and must have one.
    """
    entry = entries.entries[name]
    if not isinstance(entry, ModuleUpdate):
        return "no such tensor in the base"
    if name.endswith("bias"):
        return "the base has no such bias"
    component = name.split(".", 1)[0]
    if entries.flat_names or entries.dialect == "diffusers":
        return f"the base has no such module ({component} is not in it, or has other names)"
    raise PairingError(
        f"{tuned.path}: adapts {name.removesuffix('.weight')}, a name that {base.path} does not "
        "have. The adapter is of another base, or of a library that renames its modules."
    )


def _pair(
    base: Checkpoint, tuned: Checkpoint, name: str, entry: Entry, target: Target
) -> tuple[Pair | None, str | None]:
    """The pair, if it is one, and what is to be said of what only one side has."""
    slot = target.slot
    if isinstance(entry, ModuleUpdate):
        return adapted_pair(base, tuned, name, entry, target), None
    right, _ = oriented(slot.name, entry, tuned.config_of(name) or base.config_of(slot.name),
                        target.layout)  # fmt: skip
    if target.of_part:
        right = replace(right, plane=target.plane, picked=target.outputs)
    elif slot.label:
        right = _same_part(slot, right, entry, tuned.config_of(name) or base.config_of(slot.name))
    if right.shape == slot.matrix.shape and _same_rank(slot, entry):
        return _side_by_side(slot, right, name), None
    return _of_other_shape(slot, right, tuned, name)


def _side_by_side(slot: Slot, right: Matrix, name: str) -> Pair:
    return Pair(slot.parameter, slot.place, slot.matrix, right, slot.matrix.shape, name, slot.why)


def _same_part(slot: Slot, right: Matrix, entry: Weight, config: Mapping[str, Any]) -> Matrix:
    """The same part of a tuned tensor that is fused as the base's is; else all of it.

    Each side has its own layout: quantised experts lie the other way round than unquantised ones.
    """
    parts = slots(slot.name, entry, config)
    return next((part.matrix for part in parts if part.label == slot.label), right)


def _same_rank(slot: Slot, entry: Weight) -> bool:
    """A convolution is no linear layer, even where both are matrices of one shape."""
    return (
        bool(slot.label)
        or len(entry.shape) == len(slot.matrix.tensor.shape)
        or (1 in entry.shape or 1 in slot.matrix.tensor.shape)
    )


def _of_other_shape(
    slot: Slot, right: Matrix, tuned: Checkpoint, name: str
) -> tuple[Pair | None, str | None]:
    left, parameter = slot.matrix, slot.parameter
    stored, theirs = left.tensor.shape, right.tensor.shape
    if slot.place.module == "position" and theirs[-1:] == stored[-1:]:
        return None, f"another number of positions: {stored} in the base, {theirs} tuned"
    rows = min(stored[0], theirs[0])
    of_words = is_embedding(slot.name) or (is_head(slot.name) and rows >= VOCABULARY)
    if of_words and len(theirs) == len(stored) and theirs[1:] == stored[1:]:
        shape = min(left.shape[0], right.shape[0]), min(left.shape[1], right.shape[1])
        note = f"resized: {stored[0]} rows in the base, {theirs[0]} tuned; {rows} are compared"
        return replace(_side_by_side(slot, right, name), shape=shape), note
    if is_head(slot.name):
        return None, f"another head: {stored} in the base, {theirs} tuned"
    raise PairingError(
        f"{parameter}: base is {stored}, tuned is {theirs} in {tuned.path}. "
        "These checkpoints are not of one architecture."
    )


def _widen_vera(result: Pairing) -> None:
    """VeRA's shared matrices, where they are not saved, are as wide as the widest module."""
    found = [
        each.tuned
        for each in result.matrices.values()
        if isinstance(each.tuned, Adapted) and isinstance(each.tuned.update, Vera)
    ]
    if not found:
        return
    widest = (
        max(each.module.shape[0] for each in found),
        max(each.module.shape[1] for each in found),
    )
    for name, each in result.matrices.items():
        if isinstance(each.tuned, Adapted) and isinstance(each.tuned.update, Vera):
            update = replace(each.tuned.update, widest=widest)
            result.matrices[name] = replace(each, tuned=replace(each.tuned, update=update))
