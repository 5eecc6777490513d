"""Which tuned tensor belongs to which base tensor, and what belongs to none, with the reason."""

from dataclasses import dataclass, field

from wdecomp.adapter import LowRankUpdate, read_adapter
from wdecomp.checkpoint import Checkpoint, Matrix, StoredTensor, core_shape
from wdecomp.dtypes import STORED_AS
from wdecomp.errors import PairingError, some
from wdecomp.matching import match
from wdecomp.names import Place, is_embedding, is_head, place, stores_input_first

VOCABULARY = 1000  # a head with more rows has words in them, which keep their place when some come


@dataclass(frozen=True)
class Pair:
    """A base matrix and what stands beside it in one tuned checkpoint."""

    parameter: str  # the base's name; for a head tied to the base's embedding, the tuned one's
    place: Place
    base: Matrix
    tuned: Matrix | LowRankUpdate
    shape: tuple[int, int]  # (outputs, inputs) that both have

    @property
    def dtype_tuned(self) -> str:
        """As it is stored; an adapter's is that of its factors."""
        return self.tuned.a.dtype if isinstance(self.tuned, LowRankUpdate) else self.tuned.dtype

    @property
    def nbytes(self) -> int:
        """Bytes to read of the tuned side."""
        if isinstance(self.tuned, LowRankUpdate):
            return self.tuned.a.nbytes + self.tuned.b.nbytes
        return self.tuned.tensor.nbytes


@dataclass(frozen=True)
class LeftOut:
    """A tensor that is not compared, or not wholly, and why."""

    tensor: str
    side: str  # "base" or "tuned"
    reason: str


@dataclass(frozen=True)
class Pairing:
    """Every tensor of a base and a tuned checkpoint, accounted for."""

    method: str  # "lora" or "dora" as an adapter's config says, else "full"
    matrices: dict[str, Pair] = field(default_factory=dict)
    vectors: dict[str, Pair] = field(default_factory=dict)  # 1-D: their relative change only
    left_out: list[LeftOut] = field(default_factory=list)


def pair(base: Checkpoint, tuned: Checkpoint) -> Pairing:
    """Base and tuned tensors matched by name.

    Raises:
        PairingError: the two do not describe one model: a shape differs that fine-tuning does not
            change, or no name agrees.
        AdapterError: the tuned checkpoint is an adapter that cannot be read.
    """
    if base.adapter_config is not None:
        raise PairingError(f"{base.path}: is an adapter, expected the base model that it changes.")
    method, entries, left_out = _entries(tuned)
    result = Pairing(method, left_out=left_out)
    result.left_out.extend(LeftOut(name, "base", reason) for name, reason in base.left_out)
    names = _with_tied_heads(base, entries, match(base.tensors, entries))
    for name, entry in entries.items():
        _account_for(result, base, tuned, name, names[name], entry)
    if not result.matrices:
        raise PairingError(_why_none(base, tuned, entries, result.left_out, names))
    if tuned.adapter_config is None:
        met = set(names.values())
        absent = (name for name in base.tensors if name not in met)
        result.left_out.extend(
            LeftOut(n, "base", "no such tensor in the tuned one") for n in absent
        )
    return result


def _why_none(
    base: Checkpoint,
    tuned: Checkpoint,
    entries: dict[str, StoredTensor | LowRankUpdate],
    left_out: list[LeftOut],
    names: dict[str, str | None],
) -> str:
    """What to say where no matrix is left to compare."""
    for checkpoint in (base, tuned):
        if not checkpoint.tensors:
            return f"{checkpoint.path}: holds no tensors."
    for gone in left_out:
        if gone.side == "tuned" and names.get(gone.tensor):
            return (
                f"{tuned.path}: none of its {len(entries)} tensors can be compared with "
                f"{base.path}. {gone.tensor}: {gone.reason}."
            )
    return (
        f"{tuned.path}: none of its {len(entries)} tensors ({some(list(entries))}) is a matrix "
        f"of {base.path} ({some(list(base.tensors))}). These are different models."
    )


def _entries(
    tuned: Checkpoint,
) -> tuple[str, dict[str, StoredTensor | LowRankUpdate], list[LeftOut]]:
    """Method, what is to be paired by parameter name, and what is not."""
    if tuned.adapter_config is None:
        return "full", dict(tuned.tensors), [LeftOut(n, "tuned", r) for n, r in tuned.left_out]
    adapter = read_adapter(tuned)
    updates = {f"{module}.weight": update for module, update in adapter.updates.items()}
    left_out = [LeftOut(name, "tuned", reason) for name, reason in adapter.left_out]
    return adapter.config.method, {**adapter.replaced, **updates}, left_out


def _with_tied_heads(
    base: Checkpoint,
    entries: dict[str, StoredTensor | LowRankUpdate],
    names: dict[str, str | None],
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
    tied = {
        name: embeddings[0]
        for name, entry in entries.items()
        if names[name] is None
        and is_head(name)
        and name.endswith(".weight")
        and entry.shape[1:] == (width,)
        and (entry.shape[0] == vocabulary or entry.shape[0] >= VOCABULARY)
    }
    return {**names, **tied}


def _account_for(
    result: Pairing,
    base: Checkpoint,
    tuned: Checkpoint,
    name: str,
    here: str | None,
    entry: StoredTensor | LowRankUpdate,
) -> None:
    """Puts one tuned tensor where it belongs: a matrix, a vector, or left out."""
    if here is None:
        if isinstance(entry, LowRankUpdate):
            module = name.removesuffix(".weight")
            raise PairingError(
                f"{tuned.path}: adapts {module}, a name that {base.path} does not have. "
                "The adapter is of another base, or of a library that renames its modules."
            )
        result.left_out.append(LeftOut(name, "tuned", "no such tensor in the base"))
        return
    stored = base.tensors[here]
    reason = _no_weight("base", stored)
    if reason is None and isinstance(entry, StoredTensor):
        reason = _no_weight("tuned", entry)
    if reason is None:
        parameter = name if is_head(name) and is_embedding(here) else here
        found, reason = _pair(base, tuned, parameter, stored, entry)
        if found:
            of_its_kind = result.vectors if found.base.is_vector else result.matrices
            of_its_kind[parameter] = found
    if reason:
        result.left_out.append(LeftOut(name, "tuned", reason))


def _no_weight(side: str, tensor: StoredTensor) -> str | None:
    """Why a tensor is no weight that has columns, if it is none."""
    if tensor.dtype not in STORED_AS:
        return f"{side} is stored as {tensor.dtype}, which is no weight that can be read"
    if not tensor.shape or 0 in tensor.shape:
        return f"{side} has shape {tensor.shape}: no column"
    if len(tensor.shape) == 3 and "experts" in tensor.name:
        return "a stack of experts, which cannot be split yet"
    return None


def _pair(
    base: Checkpoint,
    tuned: Checkpoint,
    parameter: str,
    stored: StoredTensor,
    entry: StoredTensor | LowRankUpdate,
) -> tuple[Pair | None, str | None]:
    """The pair, if it is one, and what is to be said of what only one side has."""
    model_type = base.model_type or tuned.model_type
    with_batch = core_shape(stored.shape) != stored.shape  # then it is a table of (item, dim)
    input_first = len(core_shape(stored.shape)) == 2 and (
        with_batch or is_embedding(parameter) or stores_input_first(parameter, model_type)
    )
    left = Matrix(stored, input_first)
    right = entry if isinstance(entry, LowRankUpdate) else Matrix(entry, input_first)
    at = place(parameter)
    if isinstance(right, LowRankUpdate):
        if right.shape == left.shape:
            return Pair(parameter, at, left, right, left.shape), None
        raise PairingError(
            f"{parameter}: base is {left.shape} (output, input), the adapter in {tuned.path} is "
            f"for {right.shape}. It was trained on another base."
        )
    theirs = right.tensor.shape
    if theirs == stored.shape:
        return Pair(parameter, at, left, right, left.shape), None
    if at.module == "position" and theirs[-1:] == stored.shape[-1:]:
        return None, f"another number of positions: {stored.shape} in the base, {theirs} tuned"
    rows = min(stored.shape[0], theirs[0])
    of_words = is_embedding(parameter) or (is_head(parameter) and rows >= VOCABULARY)
    if of_words and len(theirs) == len(stored.shape) and theirs[1:] == stored.shape[1:]:
        shape = min(left.shape[0], right.shape[0]), min(left.shape[1], right.shape[1])
        note = (
            f"resized: {stored.shape[0]} rows in the base, {theirs[0]} tuned; {rows} are compared"
        )
        return Pair(parameter, at, left, right, shape), note
    if is_head(parameter):
        return None, f"another head: {stored.shape} in the base, {theirs} tuned"
    raise PairingError(
        f"{parameter}: base is {stored.shape}, tuned is {theirs} in {tuned.path}. "
        "These checkpoints are not of one architecture."
    )
