"""Which tensor of which file of the result is made of what, from headers alone."""

from collections import defaultdict
from pathlib import Path

from wdecomp.adapter import Adapter, read_adapter
from wdecomp.checkpoint import Checkpoint, Matrix, PlainTensor, QuantizedTensor, Weight
from wdecomp.errors import CheckpointError, PairingError
from wdecomp.matching import match
from wdecomp.merging.records import Plan, Written
from wdecomp.names import stores_input_first
from wdecomp.pairing import Pair, Pairing, pair

# Files of these hold a whole pipeline's adapters, of which a base may be one component.
OF_PIPELINES = ("kohya/LyCORIS", "diffusers")


def plan_merge(base: Checkpoint, tuned: Checkpoint, dtype: str | None) -> Plan:
    """The files of the base, with what the adapter changes of them.

    A head that the base stores as its embedding, and that the adapter changes alone, becomes a
    tensor of its own: that is what was trained. PEFT's merge would change the embedding with it.

    Raises:
        PairingError: `tuned` is no adapter of the base, or changes what cannot be written.
        AdapterError: the adapter cannot be read.
        CheckpointError: a changed weight is quantised, and no dtype is asked for.
    """
    if not tuned.is_adapter:
        raise PairingError(
            f"{tuned.path}: is a full checkpoint, expected an adapter of {base.path}. "
            "There is nothing to merge: use it as it is."
        )
    pairing, adapter = pair(base, tuned), read_adapter(tuned)
    _require_all(base, tuned, pairing, adapter)
    of_tensor: dict[int, list[Pair]] = defaultdict(list)
    for each in (*pairing.matrices.values(), *pairing.vectors.values()):
        of_tensor[id(each.base.tensor)].append(each)
    added, instead = _unpaired(base, pairing, adapter)
    files: dict[Path, list[Written]] = defaultdict(list)
    untied = False
    for key, weight in base.tensors.items():
        if key in instead:
            weight_here = instead[key]
            items = [Written(_stored(base, key), weight_here.dtype, weight_here.shape, weight_here)]
        else:
            own, heads = _own_and_heads(key, of_tensor[id(weight)])
            items = _items(base, key, weight, own, dtype)
            items += [_item(base, name, weight, of, dtype) for name, of in heads.items()]
            untied |= bool(heads)
        for item in items:
            file = weight.file if key in instead else item.source.file
            files[_below(base, file)].append(item)
    files[max(files)] += [Written(n, t.dtype, t.shape, t) for n, t in added.items()]
    decoded = dtype is not None and any(
        isinstance(weight, QuantizedTensor) for weight in base.tensors.values()
    )
    notes = (*pairing.notes, *_notes(base, pairing, adapter, added, instead))
    return Plan(dict(files), pairing.method, dtype, decoded, untied, notes)


def _items(
    base: Checkpoint, key: str, weight: Weight, pairs: list[Pair], dtype: str | None
) -> list[Written]:
    """One tensor of the base in the result; a quantised one that nothing changes as its parts."""
    if isinstance(weight, QuantizedTensor) and not pairs and dtype is None:
        return [Written(p.name, p.dtype, p.shape, p) for p in weight.parts.values()]
    return [_item(base, key, weight, pairs, dtype)]


def _item(
    base: Checkpoint, key: str, weight: Weight, pairs: list[Pair], dtype: str | None
) -> Written:
    name = _stored(base, key)
    if not isinstance(weight, QuantizedTensor):
        own = dtype if pairs and dtype is not None else weight.dtype
        return Written(name, own, weight.shape, weight, tuple(pairs))
    if dtype is None:
        raise CheckpointError(
            f"{weight.file}: {key} is stored as {weight.dtype}, to which a merged weight is not "
            "rounded again. Say what to decode it to: --dtype bfloat16 or --dtype float32."
        )
    turned = weight.input_first is not None and weight.input_first != _input_first(base, key)
    shape = (*weight.shape[:-2], *reversed(weight.shape[-2:])) if turned else weight.shape
    return Written(name, dtype, shape, weight, tuple(pairs), turned)


def _input_first(base: Checkpoint, key: str) -> bool:
    """Whether a weight's unquantised rows are inputs, where its packed ones do not tell.

    Of gpt-oss's experts, the only stacks that are packed, they are.
    """
    return len(base.tensors[key].shape) == 3 or stores_input_first(key, base.model_type_of(key))


def _own_and_heads(key: str, pairs: list[Pair]) -> tuple[list[Pair], dict[str, list[Pair]]]:
    """The changes of a tensor itself, and of heads that are tied to it, by their names."""
    own, heads = [], defaultdict(list)
    for each in pairs:
        if each.parameter == key or each.parameter.startswith(f"{key}["):
            own.append(each)
        else:
            heads[each.parameter].append(each)
    return own, heads


def _unpaired(
    base: Checkpoint, pairing: Pairing, adapter: Adapter
) -> tuple[dict[str, PlainTensor], dict[str, PlainTensor]]:
    """Whole tensors of the adapter that no pair has, as a head with other labels.

    First those that are new; then others by the name of the base's tensor that they replace.
    """
    pairs = (*pairing.matrices.values(), *pairing.vectors.values())
    used = {id(each.tuned.tensor) for each in pairs if isinstance(each.tuned, Matrix)}
    rest = {name: t for name, t in adapter.replaced.items() if id(t) not in used}
    found = match(base.tensors, rest, base.model_type) if rest else {}
    added = {name: tensor for name, tensor in rest.items() if found[name] is None}
    instead = {here: rest[name] for name, here in found.items() if here is not None}
    return added, instead


def _require_all(base: Checkpoint, tuned: Checkpoint, pairing: Pairing, adapter: Adapter) -> None:
    """Nothing that the adapter says may be missing in the result."""
    for each in pairing.matrices.values():
        if isinstance(each.tuned, Matrix) and each.tuned.shape != each.base.shape:
            raise PairingError(
                f"{each.parameter}: base is {each.base.shape} (output, input), the adapter in "
                f"{tuned.path} has {each.tuned.shape}. Resize the base first (transformers: "
                "resize_token_embeddings), save it, and merge into that."
            )
    for gone in _lost(pairing, adapter):
        if pairing.dialect not in OF_PIPELINES:
            raise PairingError(
                f"{tuned.path}: {gone[0]} cannot be merged into {base.path}: {gone[1]}. "
                "It is of another base."
            )


def _lost(pairing: Pairing, adapter: Adapter) -> list[tuple[str, str]]:
    """Updates that have no place in the base, and why."""
    updates = {tensor.name for each in adapter.updates.values() for tensor in each.tensors}
    of_tuned = (gone for gone in pairing.left_out if gone.side == "tuned")
    return [(gone.tensor, gone.reason) for gone in of_tuned if gone.tensor in updates]


def _notes(
    base: Checkpoint,
    pairing: Pairing,
    adapter: Adapter,
    added: dict[str, PlainTensor],
    instead: dict[str, PlainTensor],
) -> list[str]:
    lost = _lost(pairing, adapter)
    notes = [f"{name} is not in the base: added" for name in added]
    notes += [f"{name}: {base.tensors[name].shape} in the base, {tensor.shape} now"
              for name, tensor in instead.items()]  # fmt: skip
    if lost:
        notes.append(f"{len(lost)} updates are not merged ({lost[0][0]}: {lost[0][1]})")
    left = [gone for gone in pairing.left_out if gone.side == "base"]
    return notes + [f"{gone.tensor} is not in the result ({gone.reason})" for gone in left]


def _stored(base: Checkpoint, key: str) -> str:
    """A tensor's name in its file: a pipeline's have their component's name before it."""
    return key.partition(".")[2] if base.components else key


def root_of(base: Checkpoint) -> Path:
    """The folder that a checkpoint is in."""
    return base.path if base.path.is_dir() else base.path.parent


def safe_name(name: str) -> str:
    """What a weights file or index is called once it holds safetensors.

    >>> safe_name("pytorch_model.bin.index.json"), safe_name("model.safetensors")
    ('model.safetensors.index.json', 'model.safetensors')
    """
    if ".safetensors" in name:
        return name
    end = ".index.json" if name.endswith(".index.json") else ""
    stem = name.removesuffix(".index.json").rpartition(".")[0]
    return stem.replace("pytorch_model", "model", 1) + ".safetensors" + end


def _below(base: Checkpoint, file: Path) -> Path:
    return file.relative_to(root_of(base)).with_name(safe_name(file.name))
