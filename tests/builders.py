"""Tiny real checkpoints on disk: non-square matrices, written by safetensors."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

Tensors = dict[str, Tensor]


def write_full(
    folder: Path, tensors: Tensors, shards: int = 1, config: Mapping[str, Any] | None = None
) -> Path:
    """A model folder: one file, or shards with their index."""
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    weight_map = {}
    for i in range(shards):
        name = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = dict(list(tensors.items())[i::shards])
        save_file(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def write_adapter(
    folder: Path,
    factors: Mapping[str, tuple[Tensor, Tensor]],
    magnitudes: Mapping[str, Tensor] | None = None,
    **config: Any,
) -> Path:
    """A PEFT-format adapter: (A, B) by module, and magnitudes for DoRA."""
    tensors = {}
    for module, (a, b) in factors.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = b
    for module, magnitude in (magnitudes or {}).items():
        tensors[f"base_model.model.{module}.lora_magnitude_vector"] = magnitude
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    rank = next(iter(factors.values()))[0].shape[0]
    fields = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 2 * rank,
        "use_dora": magnitudes is not None,
    }
    (folder / "adapter_config.json").write_text(json.dumps(fields | config))
    return folder


def tiny_llama(layers: int = 3, seed: int = 0) -> Tensors:
    """Names and proportions of a LLaMA with grouped queries, by a seed."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random) * 0.1

    tensors = {"model.embed_tokens.weight": normal(50, 24), "model.norm.weight": normal(24)}
    for i in range(layers):
        front = f"model.layers.{i}"
        tensors[f"{front}.self_attn.q_proj.weight"] = normal(32, 24)
        tensors[f"{front}.self_attn.v_proj.weight"] = normal(8, 24)
        tensors[f"{front}.mlp.down_proj.weight"] = normal(24, 56)
    return tensors


def moved(tensors: Tensors, size: float = 1e-3, seed: int = 1) -> Tensors:
    """Every tensor with noise of a size added, by a seed."""
    random = torch.Generator().manual_seed(seed)
    return {
        name: tensor + size * torch.randn(tensor.shape, generator=random)
        for name, tensor in tensors.items()
    }


def low_rank(tensors: Tensors, rank: int = 2, seed: int = 2) -> dict[str, tuple[Tensor, Tensor]]:
    """LoRA factors with B ≠ 0 for every q_proj and v_proj, by a seed."""
    random = torch.Generator().manual_seed(seed)
    return {
        name.removesuffix(".weight"): (
            torch.randn(rank, tensor.shape[1], generator=random) * 0.1,
            torch.randn(tensor.shape[0], rank, generator=random) * 0.1,
        )
        for name, tensor in tensors.items()
        if "q_proj" in name or "v_proj" in name
    }
