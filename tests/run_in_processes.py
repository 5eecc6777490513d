"""One training as each of several processes runs it: `torchrun run_in_processes.py METHOD HOW OUT`.

Every step's loss goes to OUT/losses.json; alone (HOW "none") a process sees all of each batch.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from wdecomp.train import Adapter, Settings, train
from wdecomp.train.distributed import process_group, rank, world

STEPS = 20


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, num_hidden_layers=2, **sizes))


def settings(method: Any) -> Settings:
    adapters = {}
    if method != "full":
        kind = "dora" if method == "exact" else method
        norm_gradient: Any = "exact" if method == "exact" else "detached"
        adapter = Adapter(kind, 4, 8, norm_gradient=norm_gradient)
        adapters = {"q_proj": adapter, "down_proj": adapter}
        if kind == "dora":
            adapters["up_proj"] = Adapter("magnitude")
    method = "dora" if method == "exact" else method
    return Settings(
        method=method,
        base_name="base",
        lr=3e-3,
        steps=STEPS,
        save_steps=(STEPS // 2, STEPS),
        adapters=adapters,
        weight_decay=0.1,
        warmup=2,
        progress=False,
    )


def batches() -> Iterator[Tensor]:
    random = torch.Generator().manual_seed(5)
    while True:
        whole = torch.randint(0, 50, (4, 9), generator=random)
        yield whole[rank() :: world()]


def loss(called: Any, ids: Tensor) -> Tensor:
    return called(input_ids=ids, labels=ids).loss


if __name__ == "__main__":
    method, how, out = sys.argv[1:]
    torch.set_num_threads(1)
    with process_group():
        steps = train(model(), batches(), loss, settings(method), Path(out), across=how)
        if rank() == 0:
            (Path(out) / "losses.json").write_text(json.dumps([step.loss for step in steps]))
    # All is written. Gloo's threads outlive the group (DTensor's caches keep it), and one that
    # still holds a tensor when the interpreter goes aborts the process: pytorch/pytorch#179291.
    os._exit(0)
