"""Checkpoints on disk: adapters as PEFT 0.21 stores them, full models as transformers does.

A file appears under its name only when it is whole: everything is written into a folder beside
it, flushed to the disk, and moved, the tensors first and the JSON that announces them last.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from wdecomp.checkpoint.steps import COPY
from wdecomp.errors import TrainingError
from wdecomp.table.files import sync
from wdecomp.train.adapting import adapted_layers
from wdecomp.train.peft_format import input_format, lora_format, vera_format, whole_modules


def save_adapter(
    model: nn.Module, folder: Path, base_name: str, modules_to_save: Sequence[str] = ()
) -> None:
    """Writes the adapters of `model`, in float32, as `PeftModel.from_pretrained` reads them.

        adapter_model.safetensors, adapter_config.json    LoRA, DoRA, VeRA; DVoRA as a DoRA
        compact/adapter_model.safetensors, …              DVoRA as VeRA's vectors and magnitudes
        pytorch_lora_weights.safetensors                  alone, where magnitudes are of inputs

    `wdecomp compare` reads the first of these; named by its own path, `compact/` as well.

    `base_name` goes into the config as the base model, a folder or a hub name. `modules_to_save`
    are modules by their last name that were trained whole: they are saved with the adapters.

    Raises:
        TrainingError: the model has no adapters, or they do not fit into one file.
    """
    layers = adapted_layers(model)
    if not layers:
        raise TrainingError(f"{folder}: the model has no adapters, so there is nothing to save.")
    methods = {layer.adapter.method for layer in layers.values()}
    others = [name for name, _ in model.named_modules() if name not in layers]
    with_magnitude = [layer for layer in layers.values() if layer.magnitude is not None]
    if any(layer.adapter.axis == "input" for layer in with_magnitude):
        with published(folder) as draft:
            file = draft / "pytorch_lora_weights.safetensors"
            save_file(input_format(layers), file, {"format": "pt"})
        return
    whole = whole_modules(model, modules_to_save)
    if methods == {"vera"}:
        _write_adapter(folder, *vera_format(layers, base_name, others), whole, modules_to_save)
        return
    _write_adapter(folder, *lora_format(layers, base_name, others), whole, modules_to_save)
    if methods == {"dvora"}:
        tensors, config = vera_format(layers, base_name, others)
        _write_adapter(folder / "compact", tensors, config | COPY, whole, modules_to_save)


def _write_adapter(
    folder: Path,
    tensors: dict[str, Tensor],
    config: dict[str, Any],
    whole: dict[str, Tensor],
    modules_to_save: Sequence[str],
) -> None:
    if whole:
        tensors = tensors | whole
        config = config | {"modules_to_save": sorted(modules_to_save)}
    with published(folder) as draft:
        save_file(tensors, draft / "adapter_model.safetensors", {"format": "pt"})
        text = json.dumps(config, indent=2, sort_keys=True)
        (draft / "adapter_config.json").write_text(text + "\n", encoding="utf-8")


def save_full(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: Path,
    state: dict[str, Tensor] | None = None,
) -> None:
    """Writes a whole model (and its tokenizer) as `AutoModel.from_pretrained` reads it.

    `state` takes the place of the model's own state_dict, of which a process may have a part.
    """
    with published(folder) as draft, quiet():
        model.save_pretrained(draft, state_dict=state)
        if tokenizer is not None:
            tokenizer.save_pretrained(draft)


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers from drawing its progress bars and load reports into ours."""
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


@contextmanager
def published(folder: Path) -> Iterator[Path]:
    """A folder to write into; what is in it at the end is moved into `folder`.

    Raises:
        TrainingError: the disk is full, read-only or failing; `folder` is as it was.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as draft:
            yield Path(draft)
            for path in sorted(Path(draft).iterdir(), key=_announced_last):
                sync(path)
                path.replace(folder / path.name)
        sync(folder)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise TrainingError(f"{folder}: cannot be written ({reason}).") from None


def _announced_last(path: Path) -> tuple[bool, Path]:
    """A config promises tensors that are there."""
    return path.suffix == ".json", path
