"""What `train.py` measures: the models, the layers put into them, and how time is taken."""

import copy
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModel, LlamaConfig, LlamaModel

from wdecomp.demo.encoder import packaged_model
from wdecomp.train import Adapter, adapt
from wdecomp.train.export import quiet
from wdecomp.train.nf4 import Nf4Linear

RANK, ALPHA = 16, 32
ENCODER = ("query", "key", "value", "dense")
LLAMA = ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj")  # the paper's
Step = Callable[[], object]
Seconds = Mapping[str, np.ndarray]  # of each work, a number per round


def encoder() -> nn.Module:
    """All-MiniLM-L6-v2."""
    with quiet():
        model = AutoModel.from_pretrained(packaged_model(), add_pooling_layer=False)
    return without_dropout(model.train())


def llama() -> nn.Module:
    """Two layers, as wide as a model of 0.5 B parameters."""
    sizes = {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16}
    return LlamaModel(LlamaConfig(vocab_size=1000, num_hidden_layers=2, **sizes)).train()


def without_dropout(model: nn.Module) -> nn.Module:
    """Of its own: what is compared is the adapters."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


class AsLinear(nn.Linear):
    """A layer in NF4 in the guise that PEFT adapts: it decodes as ours, and keeps as little."""

    def __init__(self, coded: Nf4Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = coded.in_features, coded.out_features
        self.coded = coded

    @property
    def weight(self) -> Tensor:
        """W0 (out, in), decoded now."""
        return self.coded.weight

    @property
    def bias(self) -> Tensor | None:
        """The coded layer's."""
        return self.coded.bias

    def forward(self, x: Tensor) -> Tensor:
        """X W0ᵀ + bias."""
        return self.coded(x)


def ours(model: nn.Module, targets: tuple[str, ...], **options: Any) -> nn.Module:
    """A copy with our layers."""
    adapted = copy.deepcopy(model)
    adapt(adapted, dict.fromkeys(targets, Adapter(**{"rank": RANK, "alpha": ALPHA} | options)))
    return adapted


def pefts(model: nn.Module, targets: tuple[str, ...], **options: Any) -> nn.Module:
    """A copy with PEFT's."""
    copied = copy.deepcopy(model)
    for name, module in list(copied.named_modules()):
        if isinstance(module, Nf4Linear):
            parent, _, child = name.rpartition(".")
            setattr(copied.get_submodule(parent), child, AsLinear(module))
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(targets), **options)
    return get_peft_model(copied, config)


def step_of(model: nn.Module, ids: Tensor) -> Step:
    """Forward, backward, AdamW."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)

    def step() -> None:
        model(input_ids=ids).last_hidden_state.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def steps_of(models: Mapping[str, nn.Module], ids: Tensor) -> dict[str, Step]:
    """A step of each."""
    return {name: step_of(model, ids) for name, model in models.items()}


def cpu_seconds(work: Step) -> float:
    """Of this process."""
    start = time.process_time()
    work()
    return time.process_time() - start


def in_turns(rounds: int, works: Mapping[str, Step]) -> Seconds:
    """CPU seconds of every work, each round begun by another one; a first round is dropped."""
    names = list(works)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            taken[name].append(cpu_seconds(works[name]))
    return {name: np.array(seconds[1:]) for name, seconds in taken.items()}


def ratio(taken: Seconds, one: str, other: str) -> float:
    """The median over rounds."""
    return float(np.median(taken[one] / taken[other]))
