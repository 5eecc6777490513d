"""Several processes, one run: what `torchrun` starts, with DDP or FSDP2.

    ddp     every process has the model; gradients are averaged
    fsdp    every process has a part of every parameter (`fully_shard`), block by block

Batches are split by whoever makes them: process i of n sees its share of each.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from wdecomp.errors import TrainingError

Parallel = Literal["none", "ddp", "fsdp"]


@contextmanager
def process_group() -> Iterator[None]:
    """The group that torchrun's variables describe; nothing where there are none."""
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():
        yield
        return
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """Of this process, 0 where it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def parallel(model: nn.Module, how: Parallel) -> nn.Module:
    """The model to compute losses with; `model` itself, sharded in place, for fsdp.

    To be called after the adapters are in (their norms are of whole weights) and before the
    optimizer is made.

    Raises:
        TrainingError: there is no group of processes.
    """
    if how == "none":
        return model
    if not dist.is_initialized():
        raise TrainingError(
            f"parallel: is {how!r}, but this is one process. Start it with torchrun."
        )
    if how == "ddp":
        return DistributedDataParallel(model)
    for block in _blocks(model):
        fully_shard(block)
    fully_shard(model)
    return model


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Every parameter of `model` in full, in every process, for as long as it lasts."""
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in sharded:
        module.unshard()
    try:
        yield
    finally:
        for module in sharded:
            module.reshard()


def full(tensor: Tensor) -> Tensor:
    """All of a tensor, of which this process may have a part; to be called in every process."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def as_part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """Of a whole tensor what belongs to this process, distributed as `like` is."""
    there = tensor.to(device=like.device, dtype=like.dtype)
    if not isinstance(like, DTensor):
        return there
    return distribute_tensor(there, like.device_mesh, like.placements)


def mean_over_processes(value: float) -> float:
    """The mean of a number that every process has one of."""
    if world() == 1:
        return value
    numbers: list[Any] = [None] * world()
    dist.all_gather_object(numbers, value)
    return float(sum(numbers)) / len(numbers)


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The layers of the model's stacks: the modules of its longest lists."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        return []
    most = max(map(len, lists))
    return [block for each in lists if len(each) == most for block in each]
