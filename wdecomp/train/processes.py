"""`wdecomp train` in several processes, as torchrun starts them: where each is, and what it sees.

The rows of a batch are dealt out in turn: process i of n has rows i, i + n, … The loss of a batch
is a mean over terms: its rows, or the tokens that are to be continued. A share with t_i of all t
terms counts n·t_i/t times, so that the mean over processes is the mean of the batch.
"""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel

from wdecomp.errors import TrainingError, WdecompError
from wdecomp.train.data import Task
from wdecomp.train.distributed import rank, world
from wdecomp.train.holding import require_device
from wdecomp.train.tasks import Example, Loss

SAYING = 2.0  # seconds for a process to say what went wrong: torchrun ends all when one has ended


@dataclass(frozen=True)
class Share:
    """What one process sees of a batch.

    weight: how many times its loss counts; 1 where it has all of the batch.
    """

    examples: Sequence[Example]
    weight: float


@contextmanager
def processes(device: str) -> Iterator[None]:
    """The group that torchrun's variables describe; nothing where they describe one process.

    Raises:
        TrainingError: there is no such device, or the processes do not find each other.
    """
    own = own_device(device)
    if not _several() or dist.is_initialized():
        yield
        return
    try:
        if own.type == "cuda":
            torch.cuda.set_device(own)
        dist.init_process_group("nccl" if own.type == "cuda" else "gloo")
    except (ValueError, RuntimeError, LookupError) as error:
        reason = str(error).partition("\n")[0]
        raise TrainingError(
            f"WORLD_SIZE: is {os.environ['WORLD_SIZE']}, but the processes do not find each other "
            f"({reason}). Start them with torchrun."
        ) from None
    try:
        yield
    finally:
        dist.destroy_process_group()


def own_device(name: str) -> torch.device:
    """This process's device: of several processes on GPUs each has its own.

    Raises:
        TrainingError: there is none of this name, or there are more processes than GPUs.
    """
    if _several() and name not in ("cpu", "cuda"):
        raise TrainingError(
            f"device: is {name!r} in several processes, cpu or cuda was expected. "
            "With cuda each has a GPU of its own."
        )
    if _several() and name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    require_device(name)
    return torch.device(name)


def require_shares(task: Task, rows: int, batches: int) -> None:
    """Raises TrainingError if a batch cannot be dealt out to all processes.

    Args:
        task: what is learnt.
        rows: in an epoch.
        batches: that these make, whose sizes differ by 1 at most.
    """
    if world() == 1:
        return
    if task == "pairs":
        raise TrainingError(
            f"task: is pairs in {world()} processes, classify or lm was expected. A pair is told "
            "from all others of its batch: train pairs in one process."
        )
    if rows // batches < world():
        raise TrainingError(
            f"batch: some are of {rows // batches} rows, at least {world()} were expected, one "
            "for each process. Use larger ones, or fewer processes."
        )


def share_of(examples: Sequence[Example], task: Task) -> Share:
    """What this process sees of a batch."""
    if world() == 1:
        return Share(examples, 1.0)
    own = examples[rank() :: world()]
    return Share(own, world() * _terms(own, task) / _terms(examples, task))


def share_loss(model: PreTrainedModel, share: Share, loss: Loss) -> Tensor:
    """The loss of a share, as often as it counts."""
    return share.weight * loss(model, share.examples)


@contextmanager
def together() -> Iterator[None]:
    """Lets all processes go on, or none: what one raises inside ends the others, too.

    Of several errors that are the same, one is said. No process may wait for another inside.
    """
    raised: WdecompError | None = None
    try:
        yield
    except WdecompError as error:
        raised = error
    said: list[Any] = [None if raised is None else str(raised)]
    if world() > 1:
        said = [None] * world()
        dist.all_gather_object(said, None if raised is None else str(raised))
    if raised is not None and said.index(str(raised)) == rank():
        raise raised
    if any(each is not None for each in said):
        time.sleep(SAYING)
        sys.exit(1)


def _several() -> bool:
    return os.environ.get("WORLD_SIZE", "1") != "1"


def _terms(examples: Sequence[Example], task: Task) -> int:
    """How many terms the mean is over that is their loss."""
    if task != "lm":
        return len(examples)
    return sum(len(each.ids) - max(1, each.prompt) for each in examples)
