"""A training step of every method beside PEFT's, on one core.

    python benchmarks/train.py [--rounds 11] [--only PART …]

prints, from rounds that take turns, the median over rounds of the ratio to PEFT's LoRA in the same
round (CPU time of the process; forward, backward and AdamW):

    steps     of a sentence encoder (22 M parameters) and of two layers of a small Llama, at several
              numbers of tokens in a batch, without dropout and with
    memory    the most that one step holds at a time, as torch's profiler counts it
    eval      one layer without gradients, beside the layer that it adapts
"""

import argparse
import copy
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModel, LlamaConfig, LlamaModel

from wdecomp.demo.encoder import packaged_model
from wdecomp.train import Adapter, adapt, weights_kept

RANK, ALPHA = 16, 32
ENCODER = ("query", "key", "value", "dense")
LLAMA = ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj")  # the paper's
Step = Callable[[], object]


def encoder() -> nn.Module:
    """All-MiniLM-L6-v2."""
    return AutoModel.from_pretrained(packaged_model(), add_pooling_layer=False).train()


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


def ours(model: nn.Module, targets: tuple[str, ...], **options: Any) -> nn.Module:
    """A copy with our layers."""
    adapted = copy.deepcopy(model)
    adapt(adapted, {target: Adapter(rank=RANK, alpha=ALPHA, **options) for target in targets})
    return adapted


def pefts(model: nn.Module, targets: tuple[str, ...], **options: Any) -> nn.Module:
    """A copy with PEFT's."""
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(targets), **options)
    return get_peft_model(copy.deepcopy(model), config)


def step_of(model: nn.Module, ids: Tensor) -> Step:
    """Forward, backward, AdamW."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)

    def step() -> None:
        model(input_ids=ids).last_hidden_state.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def cpu_seconds(work: Step) -> float:
    """Of this process."""
    start = time.process_time()
    work()
    return time.process_time() - start


def ratios(rounds: int, first: str, works: dict[str, Step]) -> dict[str, float]:
    """To the first one, the median over rounds in which all took turns; one before is dropped."""
    taken = [{name: cpu_seconds(work) for name, work in works.items()} for _ in range(rounds + 1)]
    return {
        name: float(np.median([each[name] / each[first] for each in taken[1:]])) for name in works
    }


def steps(rounds: int) -> None:
    """Whole training steps."""
    shapes = {
        "encoder": (encoder, ENCODER, 128, (256, 1024, 2048)),
        "llama": (llama, LLAMA, 256, (256, 1024, 2048)),
    }
    for name, (make, targets, length, sizes) in shapes.items():
        torch.manual_seed(0)
        model = without_dropout(make())
        for tokens in sizes:
            ids = torch.randint(0, 1000, (tokens // length, length))
            for dropout in (0.0, 0.05):
                models = {
                    "PEFT LoRA": pefts(model, targets, lora_dropout=dropout),
                    "PEFT DoRA": pefts(model, targets, lora_dropout=dropout, use_dora=True),
                    "LoRA": ours(model, targets, method="lora", dropout=dropout),
                    "DoRA": ours(model, targets, method="dora", dropout=dropout),
                }
                if not dropout:
                    models["DoRA exact"] = ours(
                        model, targets, method="dora", norm_gradient="exact"
                    )
                works = {key: step_of(each, ids) for key, each in models.items()}
                found = ratios(rounds, "PEFT LoRA", works)
                print(
                    f"  {name:<8} {tokens:>5} tokens, dropout {dropout:<4}",
                    "  ".join(f"{key} {ratio:.2f}" for key, ratio in found.items()),
                    f"  PEFT DoRA/DoRA {found['PEFT DoRA'] / found['DoRA']:.2f}",
                    flush=True,
                )


def peak_bytes(work: Step) -> int:
    """The most that tensors held at a time beyond what was there before."""
    work()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        work()
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def memory(_: int) -> None:
    """Of forward and backward pass."""
    torch.manual_seed(0)
    model, ids = without_dropout(llama()), torch.randint(0, 1000, (4, 256))
    models = {
        "PEFT LoRA": pefts(model, LLAMA),
        "PEFT DoRA": pefts(model, LLAMA, use_dora=True),
        "LoRA": ours(model, LLAMA, method="lora"),
        "DoRA": ours(model, LLAMA, method="dora"),
        "DoRA exact": ours(model, LLAMA, method="dora", norm_gradient="exact"),
    }
    found = {key: peak_bytes(step_of(each, ids)) for key, each in models.items()}
    for key, nbytes in found.items():
        print(f"  {key:<10} {nbytes / 2**20:7.1f} MiB  {nbytes / found['PEFT LoRA']:.2f}")


def evaluation(rounds: int) -> None:
    """One layer, with its weight kept."""
    torch.manual_seed(0)
    for tokens in (1, 64, 1024):
        block = nn.ModuleDict({"q": nn.Linear(1024, 1024)})
        adapted, x = ours(block, ("q",), method="dora"), torch.randn(tokens, 1024)
        again = max(1, 4000 // tokens)

        def repeated(layer: nn.Module, x: Tensor = x, again: int = again) -> Step:
            return lambda: [layer(x) for _ in range(again)]

        with weights_kept(adapted):
            works = {"base": repeated(block["q"]), "DoRA": repeated(adapted["q"])}
            found = ratios(rounds, "base", works)
        print(f"  {tokens:>5} tokens: DoRA {found['DoRA']:.2f} of the base layer")


PARTS = {"steps": steps, "memory": memory, "eval": evaluation}


def main() -> None:
    """Runs the parts that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.only:
        print(name, flush=True)
        PARTS[name](options.rounds)


if __name__ == "__main__":
    main()
