"""Which tensor of the merged checkpoint is to be held beside what, from headers alone."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from wdecomp.adapter import Adapted, Adapter, read_adapter
from wdecomp.checkpoint import Checkpoint, Matrix, QuantizedTensor, Weight
from wdecomp.dtypes import STORED_AS
from wdecomp.errors import CheckpointError, PairingError
from wdecomp.matching import match
from wdecomp.names import is_embedding, is_head, place
from wdecomp.pairing import Pair, Pairing, pair
from wdecomp.verifying.records import Gone

# Files of these hold a whole pipeline's adapters, of which a base may be one component.
OF_PIPELINES = ("kohya/LyCORIS", "diffusers")
# Buffers that a model computes when it is made; some versions of transformers save them.
COMPUTED = ("inv_freq", "position_ids", "masked_bias")


@dataclass(frozen=True)
class Item:
    """One matrix or vector to be looked at.

    base: what it has to be, but for the change.
    merged: what it is.
    change: what the adapter does to it, an update or a whole tensor in its place; None if nothing.
    instead: "head" where the merged checkpoint has only the embedding that a head is tied to,
        "adapter" where the adapter's own tensor, of another shape than the base's, is the base.
    """

    parameter: str
    base: Matrix
    merged: Matrix
    shape: tuple[int, int]
    change: Adapted | Matrix | None = None
    instead: Literal["", "head", "adapter"] = ""

    @property
    def nbytes(self) -> int:
        """Bytes to read."""
        return self.base.nbytes + self.merged.nbytes

    @property
    def size(self) -> int:
        """How many weights it has."""
        return self.shape[0] * self.shape[1]


@dataclass(frozen=True)
class Lineup:
    """All tensors of a base, an adapter and a merged checkpoint, accounted for.

    missing: not in the merged checkpoint; extra: in it alone; unplaced: updates that have no place
    in the base; unread: stored in a way that cannot be read.
    """

    method: str
    items: tuple[Item, ...]
    missing: tuple[Gone, ...]
    extra: tuple[Gone, ...]
    unplaced: tuple[Gone, ...]
    unread: tuple[Gone, ...]
    notes: tuple[str, ...]


def line_up(base: Checkpoint, merged: Checkpoint, tuned: Checkpoint) -> Lineup:
    """The three, tensor by tensor.

    Raises:
        PairingError: they are not of one model, or `merged` is an adapter, or `tuned` is none.
        AdapterError: the adapter cannot be read.
        CheckpointError: a weight that the adapter changes is quantised in the merged checkpoint.
    """
    _require_kinds(base, merged, tuned)
    whole, changes, adapter = pair(base, merged), pair(base, tuned), read_adapter(tuned)
    pairs, changed = whole.matrices | whole.vectors, changes.matrices | changes.vectors
    own, lost = _instead(merged, changed.values(), adapter)
    taken = {id(item.merged.tensor) for item in own}
    paired = [_item(each, changed.get(name)) for name, each in pairs.items()]
    items = [item for item in paired if id(item.merged.tensor) not in taken]
    absent = [gone.tensor for gone in whole.left_out if gone.side == "base"]
    absent = [name for name in absent if name in base.tensors and not _is_computed(name)]
    absent += [name for name in changed if name not in pairs]
    heads = [head for name in absent for head in _tied_head(name, base, merged, changed)]
    met = {item.parameter for item in (*items, *heads, *own)}
    unread, extra, notes = _left_out(base, merged, whole, taken)
    unplaced = _unplaced(changes, adapter)
    of_pipeline = changes.dialect in OF_PIPELINES
    notes += [f"{gone.name} is not in the base: {gone.reason}" for gone in unplaced if of_pipeline]
    missing = [Gone(name, "not in it") for name in dict.fromkeys([*absent, *lost])]
    unreadable = {gone.name for gone in unread}
    return Lineup(
        changes.method,
        tuple(_checked(item) for item in (*items, *heads, *own)),
        tuple(gone for gone in missing if gone.name not in met | unreadable),
        tuple(extra),
        () if of_pipeline else tuple(unplaced),
        tuple(unread),
        (*adapter.notes, *notes),
    )


def _require_kinds(base: Checkpoint, merged: Checkpoint, tuned: Checkpoint) -> None:
    if merged.is_adapter:
        raise PairingError(
            f"{merged.path}: is an adapter, expected a merged checkpoint. "
            "Name it with --adapter, and the checkpoint that it was merged into first."
        )
    if not tuned.is_adapter:
        raise PairingError(
            f"{tuned.path}: is a full checkpoint, expected the adapter that was merged into "
            f"{base.path}."
        )


def _item(each: Pair, changed: Pair | None) -> Item:
    """A pair with what the adapter says of it, oriented as the adapter knows it to be."""
    assert isinstance(each.tuned, Matrix)
    if changed is None:
        return Item(each.parameter, each.base, each.tuned, each.shape)
    assert isinstance(changed.tuned, (Adapted, Matrix))
    merged, shape = each.tuned, each.shape
    if changed.base.input_first != each.base.input_first:
        merged = replace(merged, input_first=not merged.input_first)
        shape = shape[1], shape[0]
    return Item(each.parameter, changed.base, merged, shape, changed.tuned)


def _checked(item: Item) -> Item:
    if item.change is not None and isinstance(item.merged.tensor, QuantizedTensor):
        raise CheckpointError(
            f"{item.merged.tensor.file}: {item.parameter} is stored as {item.merged.dtype}, whose "
            "rounding hides most adapters, expected plain weights. Verify the merge before it is "
            "quantised."
        )
    return item


def _instead(
    merged: Checkpoint, pairs: Iterable[Pair], adapter: Adapter
) -> tuple[list[Item], list[str]]:
    """Whole tensors of the adapter that the base has not, or in another shape; those not found."""
    fitting = {
        id(each.tuned.tensor)
        for each in pairs
        if isinstance(each.tuned, Matrix) and each.tuned.shape == each.base.shape
    }
    rest = {name: t for name, t in adapter.replaced.items() if id(t) not in fitting}
    found = match(merged.tensors, rest, merged.model_type) if rest else {}
    items, lost = [], []
    for name, here in found.items():
        if here is None or merged.tensors[here].shape != rest[name].shape:
            lost.append(name)
        else:
            own, theirs = Matrix(rest[name], False), Matrix(merged.tensors[here], False)
            items.append(Item(name, own, theirs, own.shape, None, "adapter"))
    return items, lost


def _tied_head(
    name: str, base: Checkpoint, merged: Checkpoint, changed: Mapping[str, Pair]
) -> Iterator[Item]:
    """A head that the merged checkpoint does not store, beside its embedding."""
    if not is_head(name) or not name.endswith("weight"):
        return
    here = changed.get(name)
    head = here.base if here is not None else Matrix(base.tensors[name], False)
    for other, tensor in merged.tensors.items():
        of_tokens = is_embedding(other) and place(other).module == "embedding"
        if of_tokens and tensor.shape == head.tensor.shape:
            embedding = Matrix(tensor, head.input_first)
            change = here.tuned if here is not None else None
            assert change is None or isinstance(change, (Adapted, Matrix))
            yield Item(name, head, embedding, head.shape, change, "head")
            return


def _left_out(
    base: Checkpoint, merged: Checkpoint, whole: Pairing, taken: set[int]
) -> tuple[list[Gone], list[Gone], list[str]]:
    """Of what the merged checkpoint has: what cannot be read, what the base has not, and notes."""
    there = {tensor.name: tensor for tensor in merged.tensors.values()}
    buffers = {tensor.name for tensor in base.tensors.values() if not _is_weight(tensor)}
    unread, extra, notes = [], [], []
    for gone in whole.left_out:
        tensor = there.get(gone.tensor)
        if gone.side != "tuned" or id(tensor) in taken:
            continue
        found = Gone(gone.tensor, gone.reason)
        if tensor is None or gone.tensor in buffers or _is_computed(gone.tensor):
            notes.append(f"{gone.tensor} is not looked at: {gone.reason}")
        elif not _is_weight(tensor):
            unread.append(found)
        else:
            extra.append(found)
    return unread, extra, notes


def _is_computed(name: str) -> bool:
    return name.rpartition(".")[2] in COMPUTED


def _is_weight(tensor: Weight) -> bool:
    return isinstance(tensor, QuantizedTensor) or tensor.dtype in STORED_AS


def _unplaced(changes: Pairing, adapter: Adapter) -> list[Gone]:
    """Updates that have no place in the base, and why."""
    updates = {tensor.name for each in adapter.updates.values() for tensor in each.tensors}
    of_tuned = (gone for gone in changes.left_out if gone.side == "tuned")
    return [Gone(gone.tensor, gone.reason) for gone in of_tuned if gone.tensor in updates]
