"""The parts of `train.py` that count bytes."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from train_models import ENCODER, LLAMA, Step, encoder, llama, ours, pefts, step_of
from transformers import LlamaConfig, LlamaModel

from wdecomp.train.saved import PlainLayer, plain_layers, saved_bytes

MIB = 2**20
BATCHES = (4, 16)  # of 256 tokens each
LENGTH = 256


def memory(_: int) -> None:
    """The most that is held at a time in a step."""
    torch.manual_seed(0)
    model, ids = llama(), torch.randint(0, 1000, (4, 256))
    models = {
        "PEFT LoRA": pefts(model, LLAMA),
        "PEFT DoRA": pefts(model, LLAMA, use_dora=True),
        "LoRA": ours(model, LLAMA, method="lora"),
        "DoRA": ours(model, LLAMA, method="dora"),
        "DoRA exact": ours(model, LLAMA, method="dora", norm_gradient="exact"),
    }
    found = {key: peak_bytes(step_of(each, ids)) for key, each in models.items()}
    for key, nbytes in found.items():
        print(f"  {key:<10} {nbytes / MIB:7.1f} MiB  {nbytes / found['PEFT LoRA']:.2f}")


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


def saved(_: int) -> None:
    """What the backward pass keeps, with the norm detached and not: section 4.3."""
    print("  In plain autograd detaching saves one tensor (out, in) per module, for any batch;")
    print("  the paper reports -24.4 % of the training memory (LLaMA-7B) and -12.4 % (VL-BART).")
    _saved("encoder, float32", encoder, ENCODER, 16, "cpu")
    for dtype in (torch.float16, torch.float32):
        name = f"a layer of LLaMA-7B, {str(dtype).removeprefix('torch.')}"
        _saved(name, lambda dtype=dtype: llama_7b_layer(dtype), LLAMA, 32, "meta")


def llama_7b_layer(dtype: torch.dtype) -> nn.Module:
    """One, with an embedding of next to nothing; it has shapes, but no numbers."""
    sizes = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32}
    with torch.device("meta"):
        config = LlamaConfig(vocab_size=4, num_hidden_layers=1, **sizes)
        return LlamaModel(config).to(dtype).train()


def _saved(
    name: str, make: Callable[[], nn.Module], targets: tuple[str, ...], rank: int, device: str
) -> None:
    options: dict[str, Any] = {"rank": rank, "alpha": 2 * rank}
    models = {"LoRA, plain": _plain(make(), targets, method="lora", **options)}
    for each in ("exact", "detached"):
        models[f"DoRA {each}, plain"] = _plain(make(), targets, norm_gradient=each, **options)
        with torch.device(device):
            adapted = ours(make(), targets, method="dora", norm_gradient=each, **options)
        models[f"DoRA {each}"] = adapted
    weights = sum(p.numel() * p.element_size() for p in make().parameters())
    for batch in BATCHES:
        ids = torch.zeros(batch, LENGTH, dtype=torch.long, device=device)
        print(f"  {name}, {batch} x {LENGTH} tokens, {len(_plain_of(models))} modules")
        found = {key: _bytes(model, ids) for key, model in models.items()}
        print("   ", "  ".join(f"{key} {nbytes / MIB:.1f} MiB" for key, nbytes in found.items()))
        exact, detached = (found[f"DoRA {each}, plain"] for each in ("exact", "detached"))
        less = exact - detached
        print(
            f"    plain: detached {less / MIB:.1f} MiB less, the weights of these modules being "
            f"{_weights(models) / MIB:.1f} MiB: -{less / exact:.1%} of what is saved, "
            f"-{less / (exact + weights):.1%} of that and all weights"
        )


def _plain(model: nn.Module, targets: tuple[str, ...], **options: Any) -> nn.Module:
    plain_layers(model, targets, **options)
    return model


def _bytes(model: nn.Module, ids: Tensor) -> int:
    return saved_bytes(lambda: model(input_ids=ids).last_hidden_state, model)


def _plain_of(models: dict[str, nn.Module]) -> list[PlainLayer]:
    return [m for m in models["LoRA, plain"].modules() if isinstance(m, PlainLayer)]


def _weights(models: dict[str, nn.Module]) -> int:
    """Σ out·in·itemsize."""
    weights = [layer.base.weight for layer in _plain_of(models)]
    return sum(math.prod(weight.shape) * weight.element_size() for weight in weights)
