"""A base matrix beside the update of the module that it is, or is a part of."""

from dataclasses import replace

from wdecomp.adapter import NEEDS_MODULE, Adapted, ExpertStack, ModuleUpdate
from wdecomp.checkpoint import Checkpoint
from wdecomp.errors import PairingError
from wdecomp.pairing.entries import key_of
from wdecomp.pairing.experts import expert_of
from wdecomp.pairing.records import Pair
from wdecomp.pairing.slots import Slot
from wdecomp.pairing.targets import Target


def adapted_pair(
    base: Checkpoint, tuned: Checkpoint, name: str, entry: ModuleUpdate, target: Target
) -> Pair:
    """A pair of a base matrix and an adapter's update of the module that it is in."""
    slot = _as_embedding(target.slot) if entry.of_embedding else target.slot
    if isinstance(entry.update, ExpertStack):
        adapted = expert_of(entry.update, target, base, tuned)
    elif target.of_part:  # the adapter's module is fused, the base's is not
        adapted = Adapted(entry.update, entry.magnitude, slot.matrix, target.outputs)
        _check_part(tuned, slot, adapted)
    else:
        adapted = Adapted(entry.update, entry.magnitude, slot.module, slot.outputs)
        if not entry.update.fits(slot.module.shape) and entry.update.fits(slot.matrix.shape):
            adapted = Adapted(entry.update, entry.magnitude, slot.matrix)  # of the part alone
        _check_fit(base, tuned, slot, adapted)
    return Pair(
        slot.parameter, slot.place, slot.matrix, adapted, slot.matrix.shape, key_of(name, entry),
        slot.why,
    )  # fmt: skip


def _as_embedding(slot: Slot) -> Slot:
    """A slot whose name does not say that it is an embedding, but whose adapter does."""
    matrix = replace(slot.matrix, input_first=True)
    return replace(slot, matrix=matrix, module=matrix, why="embedding: its adapter says so")


def _check_fit(base: Checkpoint, tuned: Checkpoint, slot: Slot, adapted: Adapted) -> None:
    if adapted.update.fits(adapted.module.shape):
        return
    raise PairingError(
        f"{slot.parameter}: base is {slot.module.shape} (output, input), the adapter in "
        f"{tuned.path} is for {_wanted(adapted)}. It was trained on another base."
    )


def _check_part(tuned: Checkpoint, slot: Slot, adapted: Adapted) -> None:
    """An update of a fused module that can be told for a part of its outputs alone."""
    outputs, inputs = adapted.update.shape
    last = adapted.outputs[-1][-1] if adapted.outputs else 0
    if outputs is None or last >= outputs or inputs not in (None, slot.matrix.shape[1]):
        raise PairingError(
            f"{slot.parameter}: is {slot.matrix.shape} (output, input), a part of a module that "
            f"the adapter in {tuned.path} has for {_wanted(adapted)}. It was trained on another "
            "base."
        )
    of_all = adapted.magnitude is not None and adapted.magnitude.axis == "input"
    if of_all or isinstance(adapted.update, NEEDS_MODULE):
        raise PairingError(
            f"{slot.parameter}: the adapter in {tuned.path} changes a module that {slot.name} is a "
            "part of by a formula that needs all of it. Compare with a base that has it fused."
        )


def _wanted(adapted: Adapted) -> str:
    shape = adapted.update.shape
    if shape == (None, None):
        return f"another ({adapted.tensors[0].name} is {adapted.tensors[0].shape})"
    return f"({', '.join('any' if size is None else str(size) for size in shape)})"
