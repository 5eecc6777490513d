"""The training loop: AdamW, a warm-up, a linear decay, and checkpoints at chosen steps."""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from wdecomp.errors import TrainingError
from wdecomp.train.export import save_adapter, save_full
from wdecomp.train.layers import adapt

Method = Literal["full", "lora", "dora"]
Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Settings:
    """What one run is: on one machine, with one model and its batches, every byte follows from it.

    Attributes:
        method: "full" trains every parameter, "lora" and "dora" train adapters on `targets`.
        base_name: the base model, as an adapter's config names it.
        lr: AdamW's learning rate at its peak.
        steps: optimizer steps.
        save_steps: the steps after which a checkpoint is written.
        targets: last name components of the adapted layers.
        rank, alpha, dropout: of the adapters; their scaling is alpha / rank.
        weight_decay: AdamW's, on every trained tensor that the loss reaches: magnitudes, biases and
            norms as well.
        warmup: steps until the learning rate reaches its peak.
        seed: of the initial A and of dropout.
        progress: draw a progress bar with the time left on stderr.
    """

    method: Method
    base_name: str
    lr: float
    steps: int
    save_steps: tuple[int, ...]
    targets: tuple[str, ...] = ()
    rank: int = 16
    alpha: float = 32
    dropout: float = 0.0
    weight_decay: float = 0.0
    warmup: int = 0
    seed: int = 0
    progress: bool = True


def train(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    loss: Callable[[PreTrainedModel, Batch], Tensor],
    settings: Settings,
    out: Path,
) -> list[float]:
    """The loss of every step; trains `model` in place and writes `out/checkpoint-N`.

    The model keeps the mode it comes in: call `model.train()` before, if its dropout is wanted.

    Raises:
        TrainingError: the settings do not fit the model, the batches end early, or the loss or
            its gradient is no longer finite.
    """
    torch.manual_seed(settings.seed)
    parameters = _prepare(model, settings)
    optimizer = torch.optim.AdamW(
        parameters, lr=settings.lr, weight_decay=settings.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, settings))
    losses: list[float] = []
    label = f"{settings.method}, decay {settings.weight_decay:g}"
    hidden = not settings.progress
    with tqdm(total=settings.steps, desc=label, disable=hidden, file=sys.stderr) as bar:
        for step, batch in zip(range(1, settings.steps + 1), batches, strict=False):
            value = loss(model, batch)
            value.backward()  # type: ignore[no-untyped-call]
            losses.append(value.item())
            norm = torch.nn.utils.get_total_norm(_gradients(parameters))
            _check_finite(step, losses[-1], norm.item(), settings)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
            bar.update()
            if step in settings.save_steps:
                _save(model, out / f"checkpoint-{step}", settings)
    if len(losses) < settings.steps:
        raise TrainingError(
            f"batches: ended after {len(losses)}, {settings.steps} were expected. "
            "Use fewer steps or more data."
        )
    return losses


def lr_factor(step: int, settings: Settings) -> float:
    """The learning rate of 0-based `step` over its peak, in (0, 1].

    It rises as 1/warmup, 2/warmup, …, 1 and then falls by equal steps; it would reach 0 one step
    after the last.
    """
    rising = (step + 1) / max(1, settings.warmup)
    falling = (settings.steps - step) / max(1, settings.steps - settings.warmup)
    return min(rising, falling, 1.0)


def _prepare(model: PreTrainedModel, settings: Settings) -> list[nn.Parameter]:
    """The parameters to train, after the adapters (if any) have been put in."""
    if settings.method == "full":
        model.requires_grad_(True)
    else:
        adapt(
            model,
            settings.targets,
            settings.method,
            settings.rank,
            settings.alpha,
            settings.dropout,
        )
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _gradients(parameters: list[nn.Parameter]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


def _check_finite(step: int, loss: float, norm: float, settings: Settings) -> None:
    for name, value in (("loss", loss), ("gradient norm", norm)):
        if not abs(value) < float("inf"):
            raise TrainingError(
                f"step {step}: the {name} is {value}, a finite number was expected. "
                f"Lower the learning rate ({settings.lr:g})."
            )


def _save(model: PreTrainedModel, folder: Path, settings: Settings) -> None:
    if settings.method == "full":
        save_full(model, None, folder)
    else:
        save_adapter(model, folder, settings.base_name)
