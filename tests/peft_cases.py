"""Tiny models, and adapters of them as PEFT saves them after some training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

Make = Callable[[], nn.Module]


def llama(**config: Any) -> PreTrainedModel:
    """Grouped queries, biases, nothing square but q and o."""
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 96,
        "attention_bias": True,
        "mlp_bias": True,
    }
    return LlamaForCausalLM(LlamaConfig(**sizes | config))


def gpt2(**config: Any) -> PreTrainedModel:
    """Conv1D, of which attn.c_proj is square."""
    sizes = {"n_embd": 24, "n_layer": 2, "n_head": 2, "vocab_size": 64, "n_positions": 20}
    return GPT2LMHeadModel(GPT2Config(**{**sizes, "tie_word_embeddings": False, **config}))


def bert() -> PreTrainedModel:
    """A classifier."""
    return BertForSequenceClassification(
        BertConfig(
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=2,
            vocab_size=64,
            max_position_embeddings=20,
        )
    )


def experts(family: str, width: int = 24) -> PreTrainedModel:
    """Three experts, hidden size 32; `width` of each expert."""
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 64,
        "head_dim": 8,
    }
    of_family = {
        "mixtral": {"intermediate_size": width, "num_local_experts": 3},
        "qwen3_moe": {
            "intermediate_size": 40,
            "moe_intermediate_size": width,
            "num_experts": 3,
            "num_experts_per_tok": 2,
        },
        "gpt_oss": {"intermediate_size": width, "num_local_experts": 3},
        "llama4_text": {
            "intermediate_size": width,
            "intermediate_size_mlp": 40,
            "num_local_experts": 3,
            "moe_layers": [0, 1],
        },
    }
    config = AutoConfig.for_model(family, **sizes, **of_family[family])
    return AutoModelForCausalLM.from_config(config)


class Plain(nn.Module):
    """Layers of every kind that an adapter changes, outside of any library."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(30, 12)
        self.fc = nn.Linear(12, 20)
        self.wide = nn.Linear(18, 6)
        self.conv1 = nn.Conv1d(6, 10, 3)
        self.conv2 = nn.Conv2d(4, 10, (3, 2))
        self.square = nn.Conv2d(4, 10, 3)
        self.pointwise = nn.Conv2d(4, 10, 1)
        self.conv3 = nn.Conv3d(3, 10, (2, 1, 3))
        self.attn = nn.MultiheadAttention(12, 2)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Never called."""
        return x


def write(
    folder: Path,
    make: Make,
    config: PeftConfig,
    dtype: torch.dtype = torch.float32,
    prepare: Callable[[PeftModel], None] | None = None,
    save: dict[str, Any] | None = None,
) -> PeftModel:
    """base/, adapter/ and merged/ (float32), in a state away from initialisation."""
    torch.manual_seed(0)
    model = make()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
        parameter.data = parameter.data.to(dtype).float()
    save_model(model.to(dtype), folder / "base")
    adapted = get_peft_model(model.float(), config)
    move(adapted)
    if prepare:
        prepare(adapted)
    adapted.save_pretrained(folder / "adapter", **(save or {}))
    merge(folder, make)
    return adapted


def move(model: nn.Module) -> None:
    """Everything that is trained, off its initial value."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data *= 1 + 0.3 * (2 * torch.rand_like(parameter) - 1)
            if "magnitude" not in name and "norm" not in name:
                parameter.data += 0.04 * torch.randn_like(parameter)


def merge(folder: Path, make: Make, adapter: str = "adapter") -> None:
    """merged/: what the library makes of base/ and an adapter's folder."""
    torch.manual_seed(2)
    reloaded = PeftModel.from_pretrained(again(folder, make), folder / adapter)
    save_model(reloaded.merge_and_unload(), folder / "merged")


def again(folder: Path, make: Make) -> nn.Module:
    """The base, in float32."""
    model = make()
    if isinstance(model, PreTrainedModel):
        return type(model).from_pretrained(folder / "base", dtype=torch.float32)
    model.load_state_dict(load_file(folder / "base" / "model.safetensors"))
    return model.float()


def save_model(model: nn.Module, folder: Path) -> None:
    """As the library does, or as safetensors alone."""
    if isinstance(model, PreTrainedModel):
        model.save_pretrained(folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
