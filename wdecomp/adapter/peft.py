"""The PEFT dialect: which update every key of an adapter folder belongs to.

PEFT names a tensor `base_model.model.` + the module's path in the running model + a suffix. Other
dialects become modules beside this one and end in the same `Adapter`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from wdecomp.adapter.config import LoraConfig, lora_config
from wdecomp.adapter.updates import LowRankUpdate
from wdecomp.checkpoint import Checkpoint, StoredTensor
from wdecomp.dtypes import STORED_AS
from wdecomp.errors import AdapterError, some

PREFIX = "base_model.model."
A, B, MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"
NOT_READ = {
    ".lora_embedding_A": "the adapter of an embedding, which cannot be read yet",
    ".lora_embedding_B": "the adapter of an embedding, which cannot be read yet",
    ".base_layer.weight": "a copy of the base",
    ".base_layer.bias": "a trained bias: 1-D, no matrix",
    ".trainable_tokens_delta": "trainable tokens, which cannot be read yet",
    ".lora_B.bias": "a bias of the adapter: 1-D, no matrix",
}


@dataclass(frozen=True)
class Adapter:
    """What an adapter does to which module of its base."""

    config: LoraConfig
    updates: dict[str, LowRankUpdate]  # by module path in the running model
    replaced: dict[str, StoredTensor]  # whole parameters (modules_to_save), by parameter name
    left_out: tuple[tuple[str, str], ...]  # (key, reason)


def read_adapter(checkpoint: Checkpoint) -> Adapter:
    """The updates of a PEFT LoRA or DoRA adapter; the factors stay on disk.

    Raises:
        AdapterError: a factor is missing or has the wrong shape, config and tensors contradict
            each other, or the adapter is of a kind that cannot be read.
    """
    where = str(checkpoint.path)
    config = lora_config(checkpoint.adapter_config or {}, f"{where}: adapter_config.json")
    tensors = {key.removesuffix(".weight") if key.endswith(MAGNITUDE + ".weight") else key: tensor
               for key, tensor in checkpoint.tensors.items()}  # fmt: skip
    modules = sorted({key[: -len(end)] for key in tensors for end in (A, B) if key.endswith(end)})
    factors = {_running(module): _factors(module, tensors, where) for module in modules}
    if not factors:
        gone = (f"{key} is {reason}" for key, reason in _left_out(tensors))
        raise AdapterError(
            f"{where}: holds no lora_A and lora_B: {next(gone, 'it was saved empty')}."
        )
    scalings = config.scalings({module: a.shape[0] for module, (a, _, _) in factors.items()})
    updates = {module: LowRankUpdate(*factors[module], scalings[module]) for module in factors}
    _check_magnitudes(config, updates, where)
    used = {module + end for module in modules for end in (A, B, MAGNITUDE)}
    rest = {key: tensor for key, tensor in tensors.items() if key not in used}
    left_out = (*checkpoint.left_out, *_left_out(rest))
    skipped = {key for key, _ in left_out}
    replaced = {_running(key): tensor for key, tensor in rest.items() if key not in skipped}
    return Adapter(config, updates, replaced, left_out)


def _running(key: str) -> str:
    return key.removeprefix(PREFIX)


def _left_out(tensors: dict[str, StoredTensor]) -> Iterator[tuple[str, str]]:
    for key in tensors:
        reason = next((why for end, why in NOT_READ.items() if key.endswith(end)), None)
        if reason is None and ".lora_" in key:
            reason = "a key of no LoRA or DoRA layer that can be read"
        if reason:
            yield key, reason


def _factors(
    module: str, tensors: dict[str, StoredTensor], where: str
) -> tuple[StoredTensor, StoredTensor, StoredTensor | None]:
    """A, B and magnitude of one module, of shapes that fit."""
    for end in (A, B):
        if module + end not in tensors:
            raise AdapterError(f"{where}: {module + end} is missing. It was saved incompletely.")
    a, b = tensors[module + A], tensors[module + B]
    for tensor in (a, b):
        if 0 in tensor.shape:
            raise AdapterError(
                f"{where}: {tensor.name} has shape {tensor.shape}: no elements. It was saved "
                "without gathering its shards (ZeRO-3, FSDP)."
            )
        if len(tensor.shape) != 2 or tensor.dtype not in STORED_AS:
            raise AdapterError(
                f"{where}: {tensor.name} is {tensor.dtype} of shape {tensor.shape}, expected a "
                "floating-point matrix. Only adapters of linear layers can be read yet."
            )
    if a.shape[0] != b.shape[1]:
        raise AdapterError(
            f"{where}: {module}: lora_A is {a.shape}, lora_B is {b.shape}, expected (r, in) and "
            "(out, r) of one r."
        )
    magnitude = tensors.get(module + MAGNITUDE)
    if magnitude and (magnitude.shape != b.shape[:1] or magnitude.dtype not in STORED_AS):
        raise AdapterError(
            f"{where}: {magnitude.name} is {magnitude.dtype} of shape {magnitude.shape}, expected "
            f"one floating-point magnitude per output, {b.shape[:1]}."
        )
    return a, b, magnitude


def _check_magnitudes(config: LoraConfig, updates: dict[str, LowRankUpdate], where: str) -> None:
    without = [module for module, update in updates.items() if update.magnitude is None]
    if config.use_dora and without:
        raise AdapterError(
            f"{config.where}: use_dora is true, but lora_magnitude_vector is missing for "
            f"{len(without)} of {len(updates)} modules ({some(without)}). "
            "It was saved incompletely."
        )
    if not config.use_dora and len(without) < len(updates):
        raise AdapterError(
            f"{config.where}: use_dora is false, but there are lora_magnitude_vectors. "
            f"Config and weights of {where} are not of one adapter."
        )
