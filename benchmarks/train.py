"""A training step of every method beside PEFT's, on one core.

    python benchmarks/train.py [--rounds 11] [--only PART …]

prints medians over rounds in which all take turns, of ratios within a round (CPU time of the
process):

    steps      forward, backward and AdamW of a sentence encoder (22 M parameters) and of two layers
               of a small Llama, at several numbers of tokens in a batch, without dropout and with
    quantized  the same of the Llama on a base in NF4, that PEFT's layers decode as ours do
    eval       one layer without gradients, beside the layer that it adapts
    live       ΔM and ΔD of all adapted modules of the encoder every 10 steps: their share of a run
    memory     the most that one step holds at a time, as torch's profiler counts it
    saved      what the backward pass keeps with the norm detached and not, beside section 4.3
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn
from train_memory import memory, saved
from train_models import (
    ENCODER,
    LLAMA,
    Seconds,
    Step,
    cpu_seconds,
    encoder,
    in_turns,
    llama,
    ours,
    pefts,
    ratio,
    step_of,
    steps_of,
)

from wdecomp.demo.encoder import packaged_model
from wdecomp.train import Recorder, weights_kept
from wdecomp.train.nf4_base import quantize_linears

TOKENS = (256, 1024, 2048)
EVERY = 10  # steps between two recordings


def steps(rounds: int) -> None:
    """Whole training steps."""
    shapes = {"encoder": (encoder, ENCODER, 128), "llama": (llama, LLAMA, 256)}
    for name, (make, targets, length) in shapes.items():
        torch.manual_seed(0)
        model = make()
        for tokens in TOKENS:
            ids = torch.randint(0, 1000, (tokens // length, length))
            for dropout in (0.0, 0.05):
                models = {
                    "PEFT LoRA": pefts(model, targets, lora_dropout=dropout),
                    "PEFT DoRA": pefts(model, targets, lora_dropout=dropout, use_dora=True),
                    "LoRA": ours(model, targets, method="lora", dropout=dropout),
                    "DoRA": ours(model, targets, method="dora", dropout=dropout),
                    "DoRA exact": ours(
                        model, targets, method="dora", dropout=dropout, norm_gradient="exact"
                    ),
                }
                taken = in_turns(rounds, steps_of(models, ids))
                show(f"{name:<8} {tokens:>5} tokens, dropout {dropout:<4}", taken, "PEFT LoRA")


def show(what: str, taken: Seconds, first: str) -> None:
    """Ratios to the first work, and those that have a bound of their own."""
    found = [f"{name} {ratio(taken, name, first):.3f}" for name in taken if name != first]
    pefts_dora = next(name for name in taken if name.startswith("PEFT") and name.endswith("DoRA"))
    dora = pefts_dora.removeprefix("PEFT ")
    own = [
        f"{pefts_dora}/{dora} {ratio(taken, pefts_dora, dora):.3f}",
        f"exact/detached {ratio(taken, f'{dora} exact', dora):.3f}",
    ]
    print(f"  {what}  of {first}: {'  '.join(found)}    {'  '.join(own)}", flush=True)


def quantized(rounds: int) -> None:
    """Training steps on a base in NF4."""
    torch.manual_seed(0)
    model = llama()
    quantize_linears(model, LLAMA)
    models = {
        "PEFT QLoRA": pefts(model, LLAMA),
        "PEFT QDoRA": pefts(model, LLAMA, use_dora=True),
        "QLoRA": ours(model, LLAMA, method="lora"),
        "QDoRA": ours(model, LLAMA, method="dora"),
        "QDoRA exact": ours(model, LLAMA, method="dora", norm_gradient="exact"),
    }
    for tokens in TOKENS[:2]:
        ids = torch.randint(0, 1000, (tokens // 256, 256))
        show(f"llama    {tokens:>5} tokens", in_turns(rounds, steps_of(models, ids)), "PEFT QLoRA")


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
            taken = in_turns(rounds, works)
        print(f"  {tokens:>5} tokens: DoRA {ratio(taken, 'DoRA', 'base'):.3f} of the base layer")


def live(rounds: int) -> None:
    """Ten steps and a recording in turns, which is a run with its recordings."""
    torch.manual_seed(0)
    model, ids = ours(encoder(), ENCODER, method="dora"), torch.randint(0, 1000, (8, 128))
    step, shares = step_of(model, ids), []
    with TemporaryDirectory() as folder:
        recorder = Recorder(Path(folder) / "live", packaged_model())
        for number in range(1, rounds + 2):
            trained = cpu_seconds(lambda: [step() for _ in range(EVERY)])
            recorded = cpu_seconds(lambda n=number: recorder.record(model, n * EVERY))
            shares.append(recorded / (trained + recorded))
        recorder.finish()
    print(
        f"  encoder, {ids.numel()} tokens, every {EVERY} steps: {np.median(shares[1:]):.2%} of a "
        f"run; {shares[0]:.2%} of its first {EVERY} steps, with the sums of the base"
    )


PARTS = {
    "steps": steps,
    "quantized": quantized,
    "eval": evaluation,
    "live": live,
    "memory": memory,
    "saved": saved,
}


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
