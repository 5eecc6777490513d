"""What a tuned checkpoint has to be paired: whole weights, or what an adapter does to weights."""

from dataclasses import dataclass

from wdecomp.adapter import ExpertStack, ModuleUpdate, read_adapter
from wdecomp.checkpoint import Checkpoint, Weight

Entry = Weight | ModuleUpdate


@dataclass(frozen=True)
class Entries:
    """The tuned side, by parameter name.

    flat_names: the names have `_` for `.`.
    """

    method: str
    entries: dict[str, Entry]
    left_out: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()
    dialect: str = ""
    flat_names: bool = False


def entries_of(tuned: Checkpoint) -> Entries:
    """Method, what is to be paired by parameter name, and what is not.

    Raises:
        AdapterError: the tuned checkpoint is an adapter that cannot be read.
    """
    if not tuned.is_adapter:
        return Entries("full", dict(tuned.tensors), tuned.left_out)
    adapter = read_adapter(tuned)
    return Entries(
        adapter.method,
        {**adapter.replaced, **adapter.updates},
        (*tuned.left_out, *adapter.left_out),
        adapter.notes,
        adapter.dialect,
        adapter.flat_names,
    )


def shape_of(entry: Entry) -> tuple[int | None, ...]:
    """The stored shape of a weight; of an update (outputs, inputs), as far as it says."""
    if not isinstance(entry, ModuleUpdate):
        return entry.shape
    if isinstance(entry.update, ExpertStack):
        return entry.update.experts, *entry.update.sides
    return entry.update.shape


def key_of(name: str, entry: Entry) -> str:
    """The name on disk: of an adapter, its first key."""
    if isinstance(entry, ModuleUpdate):
        return entry.tensors[0].name if entry.tensors else name
    return entry.name
