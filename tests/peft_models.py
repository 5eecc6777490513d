"""Small models of every kind of layer that PEFT adapts, and adapters of them as PEFT saves them."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)


def llama() -> nn.Module:
    """Grouped queries, biases on q, k, v and o."""
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32,
            intermediate_size=56,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=96,
            attention_bias=True,
        )
    )


def gpt2() -> nn.Module:
    """Transformers' Conv1D, of which attn.c_proj is square."""
    config = {"n_embd": 24, "n_layer": 2, "n_head": 2, "vocab_size": 64}
    return GPT2LMHeadModel(GPT2Config(**config, tie_word_embeddings=False))


def bert() -> nn.Module:
    """A classifier with a head of its own."""
    return BertForSequenceClassification(
        BertConfig(
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=2,
            vocab_size=64,
        )
    )


class Mixed(nn.Module):
    """Convolutions of one, two and three dimensions, a linear layer and an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(6, 10, 3)
        self.conv2 = nn.Conv2d(10, 16, 3)
        self.conv3 = nn.Conv3d(4, 8, 2)
        self.point = nn.Conv2d(8, 24, 1)
        self.linear = nn.Linear(12, 20)
        self.embed_in = nn.Embedding(30, 12)


class Attention(nn.Module):
    """torch's own attention, which keeps q, k and v in one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(16, 2)
        self.out = nn.Linear(16, 8)


Make = Callable[[], nn.Module]


def seeded(make: Make, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A model by a fixed seed, in float32, of numbers that a dtype can hold."""
    torch.manual_seed(0)
    model = make()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype).float()
    return model


def write_base(model: nn.Module, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """A model folder, its weights in a dtype."""
    folder.mkdir(parents=True)
    stored = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    save_file({name: t.clone() for name, t in stored.items()}, folder / "model.safetensors")
    if hasattr(model, "config"):
        (folder / "config.json").write_text(json.dumps(model.config.to_dict(), default=str))


def away_from_start(adapted: nn.Module) -> None:
    """Puts every trained parameter where training might have brought it, by a seed."""
    torch.manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if not parameter.requires_grad:
            continue
        if "magnitude" in name:
            parameter.data *= 1 + 0.2 * torch.rand_like(parameter)
        elif any(part in name for part in ("ia3_l", "boft_s", "w_norm")):
            parameter.data = 1 + 0.3 * torch.randn_like(parameter)
        else:
            parameter.data = parameter.data + 0.1 * torch.randn_like(parameter)


def write_case(
    folder: Path, make: Make, config: PeftConfig, dtype: torch.dtype = torch.float32
) -> None:
    """base/ in a dtype, adapter/ as PEFT saves it, merged/ as PEFT merges what it reloads."""
    write_base(seeded(make, dtype), folder / "base", dtype)
    adapted = get_peft_model(seeded(make, dtype), config)
    away_from_start(adapted)
    adapted.save_pretrained(folder / "adapter")
    write_merged(folder, make, dtype)


def write_merged(folder: Path, make: Make, dtype: torch.dtype = torch.float32) -> None:
    """merged/ of base/ and adapter/, in float32."""
    reloaded = PeftModel.from_pretrained(seeded(make, dtype), str(folder / "adapter"))
    merged: dict[str, Tensor] = reloaded.merge_and_unload().state_dict()
    names = load_file(folder / "base/model.safetensors")
    (folder / "merged").mkdir()
    kept = {name: merged[name].detach().clone() for name in names}
    save_file(kept, folder / "merged/model.safetensors")
