"""Small models trained for a few steps with PEFT or whole, and what the audit says of them."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft_models import llama, write_base
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import wdecomp
from wdecomp.audit import Finding, findings

TARGETS = ["q_proj", "k_proj", "down_proj"]
ADAPTER = "adapter_model.safetensors"
Q = "model.layers.0.self_attn.q_proj.weight"
MAGNITUDE = "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector"


def base_model(seed: int = 0) -> nn.Module:
    """A LLaMA whose rows are of different lengths, as in a trained model."""
    torch.manual_seed(seed)
    model = llama()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data *= 3 * (0.6 + torch.rand(len(parameter), 1))
    return model


def base(folder: Path, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """It, on disk."""
    write_base(base_model(seed), folder / "base", dtype)
    return folder / "base"


def adapted(model: nn.Module, dora: bool = True, **config: Any) -> PeftModel:
    """Under a LoRA or a DoRA of PEFT."""
    torch.manual_seed(1)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS, "use_dora": dora} | config
    cast = settings.pop("autocast_adapter_dtype", True)
    return get_peft_model(model, LoraConfig(**settings), autocast_adapter_dtype=cast)


def trained(model: nn.Module, steps: int = 6, lr: float = 3e-3, decay: float = 0.0) -> nn.Module:
    """After some steps of AdamW on random tokens."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(wanted, lr=lr, weight_decay=decay)
    random = torch.Generator().manual_seed(2)
    for _ in range(steps):
        ids = torch.randint(0, 96, (2, 12), generator=random)
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    return model


def freeze(model: nn.Module, *parts: str) -> nn.Module:
    """With everything frozen that has one of these in its name."""
    for name, parameter in model.named_parameters():
        if any(part in name for part in parts):
            parameter.requires_grad_(False)
    return model


def dora(folder: Path, **training: Any) -> Path:
    """base/ and a healthy DoRA of it."""
    base(folder)
    trained(adapted(base_model()), **training).save_pretrained(folder / "dora")
    return folder / "dora"


def edited(file: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    """The folder of a safetensors file whose tensors were changed."""
    tensors = load_file(file)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    return file.parent


def found(base: Path, *tuned: Path | str, **options: Any) -> list[Finding]:
    """The findings of a comparison."""
    return findings(wdecomp.compare(base, *tuned, columns="none", **options))


def of_rule(rule: str, among: Iterable[Finding]) -> Finding:
    """The one finding of a rule; that there is no other, but notes."""
    serious = [each for each in among if each.severity != "note" or each.rule.id == rule]
    assert [each.rule.id for each in serious] == [rule], serious
    return serious[0]
