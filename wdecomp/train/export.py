"""Checkpoints on disk: adapters as PEFT 0.21 stores them, full models as transformers does.

A file appears under its name only when it is whole: everything is written into a folder beside
it, flushed to the disk, and moved, the tensors first and the JSON that announces them last.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from wdecomp.errors import TrainingError
from wdecomp.train.layers import AdapterLinear


def save_adapter(model: nn.Module, folder: Path, base_name: str) -> None:
    """Writes the adapters of `model` as `PeftModel.from_pretrained` reads them, in float32.

    `base_name` goes into the config as the base model, a folder or a hub name.

    Raises:
        TrainingError: the model has no adapters, or they are not of one rank, alpha and method.
    """
    adapters = {
        name: module for name, module in model.named_modules() if isinstance(module, AdapterLinear)
    }
    config = _config(adapters, base_name)
    with _published(folder) as draft:
        save_file(_tensors(adapters), draft / "adapter_model.safetensors", {"format": "pt"})
        text = json.dumps(config, indent=2, sort_keys=True)
        (draft / "adapter_config.json").write_text(text + "\n", encoding="utf-8")


def save_full(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path
) -> None:
    """Writes a whole model (and its tokenizer) as `AutoModel.from_pretrained` reads it."""
    with _published(folder) as draft, quiet():
        model.save_pretrained(draft)
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


def _config(adapters: dict[str, AdapterLinear], base_name: str) -> dict[str, Any]:
    kinds = {(a.rank, a.alpha, a.dropout.p, a.magnitude is not None) for a in adapters.values()}
    if len(kinds) != 1:
        raise TrainingError(
            f"the model: has {len(kinds)} kinds of adapter, one was expected. "
            "An adapter_config.json holds one rank, alpha, dropout and method."
        )
    rank, alpha, dropout, use_dora = kinds.pop()
    return {
        "base_model_name_or_path": base_name,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": sorted({name.rpartition(".")[2] for name in adapters}),
        "task_type": None,
        "use_dora": use_dora,
        "use_rslora": False,
    }


def _tensors(adapters: dict[str, AdapterLinear]) -> dict[str, Tensor]:
    """PEFT's names → the trained tensors."""
    tensors = {}
    for name, adapter in adapters.items():
        key = f"base_model.model.{name}"
        tensors[f"{key}.lora_A.weight"] = adapter.lora_A
        tensors[f"{key}.lora_B.weight"] = adapter.lora_B
        if adapter.magnitude is not None:
            tensors[f"{key}.lora_magnitude_vector"] = adapter.magnitude
    return {key: tensor.detach().float().cpu().contiguous() for key, tensor in tensors.items()}


@contextmanager
def _published(folder: Path) -> Iterator[Path]:
    """A folder to write into; what is in it at the end is moved into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as draft:
        yield Path(draft)
        # "….json" after "….safetensors": a config promises tensors that are there.
        for path in sorted(Path(draft).iterdir(), key=lambda path: (path.suffix == ".json", path)):
            _flush(path)
            path.replace(folder / path.name)
    _flush(folder)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
