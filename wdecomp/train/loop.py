"""The training loop: AdamW, a schedule, checkpoints at chosen steps, and exact continuation.

Every step draws its random numbers from a seed of its own and its learning rate from its number.
So parameters, moments and the number of steps done are all that a run has to remember: one that
was killed at any moment and started again ends with the bytes of one that was not.
"""

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from wdecomp.errors import TrainingError
from wdecomp.train.adapting import norms_kept
from wdecomp.train.distributed import Parallel, full, mean_over_processes, parallel, rank, whole
from wdecomp.train.export import save_adapter, save_full
from wdecomp.train.layers import Adapter, AdapterMethod
from wdecomp.train.state import load_state, save_state
from wdecomp.train.trainable import make_trainable

Method = Literal["full", AdapterMethod]
Batch = TypeVar("Batch")
# Writes a whole model into a folder, with these tensors for its state_dict.
Store = Callable[[PreTrainedModel, Path, dict[str, Tensor]], None]


@dataclass(frozen=True)
class Settings:
    """What one run is: on one machine, with one model and its batches, every byte follows from it.

    Attributes:
        method: "full" trains every parameter, the others train adapters on layers that are named.
        base_name: the base model, as an adapter's config names it.
        lr: AdamW's learning rate at its peak.
        steps: optimizer steps.
        save_steps: the steps after which a checkpoint is written.
        adapters: end of the layers' names → what to train there; none for "full".
        modules_to_save: last component of the names of modules that are trained whole beside the
            adapters, and saved with them, as a new head is.
        weight_decay: AdamW's, on every trained tensor that the loss reaches: magnitudes, biases and
            norms as well.
        warmup: steps until the learning rate reaches its peak.
        schedule: what it does from there: fall "linear"ly, as a "cosine", or stay "constant".
        accumulate: batches whose mean gradient makes a step.
        clip: the gradient's largest norm, None for any.
        seed: of the initial A and of dropout.
        progress: draw a progress bar with the time left on stderr.
    """

    method: Method
    base_name: str
    lr: float
    steps: int
    save_steps: tuple[int, ...]
    adapters: Mapping[str, Adapter] = field(default_factory=dict)
    modules_to_save: tuple[str, ...] = ()
    weight_decay: float = 0.0
    warmup: int = 0
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    accumulate: int = 1
    clip: float | None = None
    seed: int = 0
    progress: bool = True


@dataclass(frozen=True)
class Step:
    """What one step of the optimizer saw.

    loss: the mean over its batches; gradient_norm: before any clipping; lr: of this step.
    """

    step: int
    loss: float
    gradient_norm: float
    lr: float


def without_tokenizer(model: PreTrainedModel, folder: Path, state: dict[str, Tensor]) -> None:
    """The `Store` of a model that has no tokenizer."""
    save_full(model, None, folder, state)


def train(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    loss: Callable[[Any, Batch], Tensor],
    settings: Settings,
    out: Path,
    on_step: Callable[[Step], None] = lambda _: None,
    across: Parallel = "none",
    store: Store = without_tokenizer,
) -> list[Step]:
    """Every step of the run; trains `model` in place and writes `out/checkpoint-N`.

    The model keeps the mode it comes in: call `model.train()` before, if its dropout is wanted.
    If `out` holds the state of the same run, interrupted, it goes on from there; `batches` must
    then begin where they began at first.

    Args:
        model: as the base has it.
        batches: `settings.steps × settings.accumulate` of them, or more.
        loss: of the model and a batch.
        settings: all that the result depends on.
        out: the run's folder.
        on_step: told of every step when it is done.
        across: how the processes of a torchrun share the work, see `distributed.py`; `batches` are
            then this process's, and the loss is the mean over all.
        store: writes a checkpoint of "full"; called in the first process.

    Raises:
        TrainingError: the settings do not fit the model or the state in `out`, the batches end
            early, or the loss or its gradient is no longer finite.
    """
    torch.manual_seed(settings.seed)
    make_trainable(model, settings.method, settings.adapters, settings.modules_to_save)
    called = parallel(model, across)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True
    )
    done = [Step(**row) for row in load_state(out, settings, parameters, optimizer)]
    source = iter(batches)
    _skip(source, len(done) * settings.accumulate)
    with _bar(settings, len(done)) as bar:
        for number in range(len(done) + 1, settings.steps + 1):
            step = _step(called, source, loss, settings, parameters, optimizer, number)
            done.append(step)
            on_step(step)
            bar.set_postfix(loss=f"{step.loss:.3f}", refresh=False)
            bar.update()
            if number in settings.save_steps:
                _save(model, out / f"checkpoint-{number}", settings, store)
                rows = [vars(each) for each in done]
                save_state(out, settings, rows, parameters, optimizer)
    return done


def _step(
    model: nn.Module,
    source: Iterator[Batch],
    loss: Callable[[Any, Batch], Tensor],
    settings: Settings,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.AdamW,
    number: int,
) -> Step:
    """Gradients of some batches, and the optimizer's step."""
    torch.manual_seed((settings.seed * 1_000_003 + number) * 1009 + rank())
    value = 0.0
    with norms_kept(model):
        for i in range(settings.accumulate):
            batch = next(source, None)
            if batch is None:
                raise _ended(number, i, settings)
            share = loss(model, batch) / settings.accumulate
            share.backward()  # type: ignore[no-untyped-call]
            value += share.item()
    value = mean_over_processes(value)
    gradients = [p.grad for p in parameters.values() if p.grad is not None]
    norm = full(torch.nn.utils.get_total_norm(gradients))
    _check_finite(number, value, norm.item(), settings)
    if settings.clip is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters.values(), settings.clip, norm)
    lr = settings.lr * lr_factor(number - 1, settings)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad()
    return Step(number, value, norm.item(), lr)


def lr_factor(step: int, settings: Settings) -> float:
    """The learning rate of 0-based `step` over its peak, in (0, 1].

    It rises as 1/warmup, 2/warmup, …, 1. With x the share of the steps after that which is over,
    it is then 1 − x (linear), (1 + cos πx)/2 (cosine) or 1 (constant).
    """
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    over = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    if settings.schedule == "cosine":
        return (1 + math.cos(math.pi * over)) / 2
    return 1 - over if settings.schedule == "linear" else 1.0


def _skip(source: Iterator[Batch], count: int) -> None:
    """Lets go of the batches that a run has seen before it was interrupted."""
    next(islice(source, count, count), None)


def _bar(settings: Settings, done: int) -> "tqdm[Any]":
    label = f"{settings.method}, decay {settings.weight_decay:g}"
    hidden = not settings.progress or rank() > 0
    return tqdm(
        total=settings.steps, initial=done, desc=label, disable=hidden, file=sys.stderr, unit="step"
    )


def _ended(number: int, extra: int, settings: Settings) -> TrainingError:
    had = (number - 1) * settings.accumulate + extra
    wanted = settings.steps * settings.accumulate
    return TrainingError(
        f"batches: ended after {had}, {wanted} were expected. Use fewer steps or more data."
    )


def _check_finite(step: int, loss: float, norm: float, settings: Settings) -> None:
    for name, value in (("loss", loss), ("gradient norm", norm)):
        if not math.isfinite(value):
            raise TrainingError(
                f"step {step}: the {name} is {value}, a finite number was expected. "
                f"Lower the learning rate ({settings.lr:g})."
            )


def _save(model: PreTrainedModel, folder: Path, settings: Settings, store: Store) -> None:
    """A checkpoint, by the first process, of what all of them have together."""
    if settings.method == "full":
        state = {name: full(tensor) for name, tensor in model.state_dict().items()}
        if rank() == 0:
            store(model, folder, state)
        return
    with whole(model):
        if rank() == 0:
            save_adapter(model, folder, settings.base_name, settings.modules_to_save)
