"""Bases, adapters of them as PEFT saves them, and merges by PEFT, right ones and wrong ones."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import torch
from builders import Tensors
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft_models import Make, gpt2, seeded, write_base
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

WEIGHTS = "model.safetensors"
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
QVD = ["q_proj", "v_proj", "down_proj"]
Edit = Callable[[PeftModel], object]


def llama() -> nn.Module:
    """Rows of whole blocks of 64, for NF4."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 96}
    return LlamaForCausalLM(
        LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, attention_bias=True)
    )


KINDS: dict[str, tuple[Make, dict[str, Any]]] = {
    "lora": (llama, {"target_modules": QVD}),
    "dora": (llama, {"target_modules": QVD, "use_dora": True}),
    "rslora": (llama, {"target_modules": QVD, "use_rslora": True}),
    "conv1d": (
        gpt2,
        {"target_modules": ["c_attn", "c_fc"], "use_dora": True, "fan_in_fan_out": True},
    ),
}


def write_kind(
    folder: Path, kind: str, dtype: torch.dtype, size: float = 0.02, seed: int = 1
) -> None:
    """base/ in a dtype, and adapter/ away from its start by a seed, with ‖ΔW‖ by size."""
    make, config = KINDS[kind]
    write_base(seeded(make, dtype), folder / "base", dtype)
    adapted = get_peft_model(seeded(make, dtype), LoraConfig(r=4, lora_alpha=8, **config))
    torch.manual_seed(seed)
    for name, parameter in adapted.named_parameters():
        if "magnitude" in name:
            parameter.data *= 1 + 0.1 * torch.randn_like(parameter)
        elif "lora_B" in name:
            parameter.data = size * torch.randn_like(parameter)
    adapted.save_pretrained(folder / "adapter")


def loaded(folder: Path, kind: str, dtype: torch.dtype, base: str = "base") -> nn.Module:
    """A base as a model."""
    model = KINDS[kind][0]()
    model.load_state_dict(load_file(folder / base / WEIGHTS))
    return model.to(dtype)


def merge(
    folder: Path,
    out: str,
    kind: str,
    dtype: torch.dtype,
    *,
    base: str = "base",
    times: int = 1,
    edit: Edit = lambda _: None,
    autocast: bool = True,
    safe: bool = False,
) -> Path:
    """out/: PEFT's merge of adapter/ into a base, in a dtype.

    Args:
        folder: with the base and adapter/.
        out: the folder to make there.
        kind: of `KINDS`.
        dtype: that the base is loaded in.
        base: the folder that has it.
        times: how often it is merged, each time into what came out.
        edit: what is done to the loaded adapter before.
        autocast: PEFT's default, by which factors are float32; else all is in the dtype.
        safe: PEFT's safe_merge.
    """
    model = loaded(folder, kind, dtype, base)
    for _ in range(times):
        adapted = PeftModel.from_pretrained(
            model, str(folder / "adapter"), autocast_adapter_dtype=autocast
        )
        if not autocast:
            adapted = adapted.to(dtype)
        edit(adapted)
        model = adapted.merge_and_unload(safe_merge=safe)
    return save(model.state_dict(), folder / out, load_file(folder / base / WEIGHTS).keys())


def save(tensors: Tensors, folder: Path, names: Any = None) -> Path:
    """A model folder of some tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: tensors[name].clone().contiguous() for name in names or tensors}
    save_file(kept, folder / WEIGHTS)
    return folder


def layers(adapted: PeftModel) -> list[LoraLayer]:
    """Its adapted layers."""
    return [module for module in adapted.modules() if isinstance(module, LoraLayer)]


def scaled(adapted: PeftModel, by: float = 2.5) -> None:
    """With another alpha than it was trained with."""
    for layer in layers(adapted):
        layer.scaling["default"] *= by


def without_magnitude(adapted: PeftModel) -> None:
    """As a LoRA, what was read of a DoRA."""
    for layer in layers(adapted):
        layer.lora_variant.clear()


def first_layer_only(adapted: PeftModel) -> None:
    """What the second layer's adapters are, is lost."""
    for name, module in adapted.named_modules():
        if isinstance(module, LoraLayer) and ".1." in name:
            for factor in (*module.lora_A.parameters(), *module.lora_B.parameters()):
                factor.data.zero_()
            module.lora_variant.clear()


def write_nf4(folder: Path, dtype: torch.dtype) -> None:
    """nf4/: base/ as bitsandbytes quantises it; dequantised/: what a merge into it starts from."""
    base = load_file(folder / "base" / WEIGHTS)
    stored, dense = dict(base), dict(base)
    for name, weight in base.items():
        if "proj.weight" in name:
            packed, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4")
            stored |= {f"{name}.{k}": v for k, v in state.as_dict(packed=True).items()}
            stored[name] = packed
            dense[name] = bnb.dequantize_4bit(packed, state).to(dtype)
    save(stored, folder / "nf4")
    save(dense, folder / "dequantised")


WRONG: dict[str, Callable[..., Path]] = {
    "not-merged": partial(merge, edit=first_layer_only),
    "merged-twice": partial(merge, times=2),
    "other-scaling": partial(merge, edit=scaled),
    "magnitude-ignored": partial(merge, edit=without_magnitude),
    "other-base": partial(merge, base="dequantised"),
}
