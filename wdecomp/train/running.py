"""`wdecomp train`: a model, a training set and a configuration made into a run.

    out/train.json               what the run is, all defaults resolved
    out/steps.csv                a row for each step: step, loss, gradient_norm, lr
    out/training.svg, .png       its curves, when it is finished
    out/checkpoint-N, out/training.state    as the loop writes them
    out/base-nf4                 the quantised base, under adapters: --base-dequantized of compare
    out/live                     ΔM and ΔD every so many steps, as `wdecomp.read_results` opens them

The same call again goes on where an interrupted one stopped, and ends with the same bytes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from wdecomp.checkpoint import open_checkpoint
from wdecomp.errors import TrainingError
from wdecomp.progress import aside
from wdecomp.train.config import (
    OF_ADAPTERS,
    PEAK_LR,
    Config,
    adapters_of,
    planned_steps,
    planned_warmup,
    saved_steps,
)
from wdecomp.train.data import Dataset, batches, read_dataset
from wdecomp.train.distributed import rank, world
from wdecomp.train.export import save_full
from wdecomp.train.holding import (
    BASE,
    frozen_linears,
    keep_nf4_base,
    nf4_rounded_state,
    put_into_nf4,
)
from wdecomp.train.learner import Learner, common_targets, load_learner, text_length
from wdecomp.train.live import Recorder
from wdecomp.train.loop import Settings, Step, train
from wdecomp.train.processes import (
    own_device,
    require_shares,
    share_loss,
    share_of,
    together,
)
from wdecomp.train.run_folder import LIVE, WEIGHTS, claim, finish, rows_writer, weights_sha256
from wdecomp.train.tasks import Example, encode, loss_of

# What says nothing of the run itself, or is resolved in what does.
NOT_OF_THE_RUN = ("out", "epochs", "recipe", "record_every")


@dataclass(frozen=True)
class Begun:
    """What a run needs, all of it checked.

    base: the folder of what is trained on; of adapters in NF4 the one in the run's folder.
    """

    dataset: Dataset
    examples: list[Example]
    learner: Learner
    settings: Settings
    base: Path


def run_training(config: Config, progress: bool = True) -> list[Step]:
    """Every step of the run that `config` asks for, which its folder then holds.

    In a group of processes every one has to call this; the first one writes.

    Raises:
        WdecompError: model, data or folder are not what was expected, or the training fails.
    """
    out, progress = Path(config.out), progress and rank() == 0
    with together():
        run = _begin(config, progress)
    with together():
        recorder = _recorder(config, run.base)
    order = batches(len(run.examples), config.batch, config.seed)
    steps = train(
        run.learner.model,
        (share_of([run.examples[i] for i in rows], run.dataset.task) for rows in order),
        partial(share_loss, loss=loss_of(run.dataset.task, run.learner.pad)),
        run.settings,
        out,
        _on_step(config, run, recorder),
        config.across if world() > 1 else "none",
        partial(_store, config, run.learner),
    )
    if recorder is not None:
        results = recorder.finish()
        if not (results.path / "modules.parquet").exists():
            aside(f"{results.path}: no step was left to be recorded.", progress)
    if rank() == 0:
        finish(out, steps, f"{config.method} on {Path(run.settings.base_name).name}")
    return steps


def _begin(config: Config, progress: bool) -> Begun:
    """Reads and checks everything, claims the folder, and puts the model where it is trained."""
    device, dataset = own_device(config.device), _dataset(config)
    dtype: torch.dtype = getattr(torch, config.precision)
    learner = load_learner(Path(config.model), dataset, config.seed, dtype)
    length = text_length(learner, config.max_length)
    examples = encode(dataset, learner.tokenizer, length)
    learner.require_known([token for example in examples for token in example.tokens()])
    targets: Sequence[str] = ()
    if config.method != "full":
        targets = config.targets or common_targets(learner.model)
    settings = _settings(config, targets, len(examples), learner, progress)
    if settings.warmup >= settings.steps:
        aside(f"warmup: takes {settings.warmup} of {settings.steps} steps, all of them.", progress)
    if rank() == 0:
        claim(Path(config.out), _record(config, dataset, settings, targets, length))
    base = _hold_base(config, learner, progress)
    learner.model.to(device)  # type: ignore[arg-type]
    return Begun(dataset, examples, learner, settings, base)


def _dataset(config: Config) -> Dataset:
    """The training set, found to be one that can be trained on as it is asked."""
    dataset = read_dataset(Path(config.data), config.task)
    rows = len(dataset.rows)
    # The other pairs of a batch are what a pair is told from.
    if dataset.task == "pairs" and min(config.batch, rows) < 2:
        name = "batch" if config.batch < 2 else config.data
        raise TrainingError(f"{name}: is of 1 pair, at least 2 were expected.")
    require_shares(dataset.task, rows, math.ceil(rows / config.batch))
    coded = config.quantize == "nf4" and config.method != "full"
    if world() > 1 and config.across == "fsdp" and coded and config.record_every:
        raise TrainingError(
            "record_every: is given for a base in NF4 across fsdp, where no process can decode its "
            "part of a weight. Use ddp, or compare the checkpoints."
        )
    return dataset


def _hold_base(config: Config, learner: Learner, progress: bool) -> Path:
    """Puts the base of adapters into NF4, if that is asked for; the folder that has the base."""
    folder = Path(config.model).resolve()
    if config.method == "full" or config.quantize == "none":
        dtypes = {tensor.dtype for tensor in open_checkpoint(folder).tensors.values()}
        if config.precision == "bfloat16" and dtypes - {"BF16"}:
            aside(
                f"{folder}: is not stored in BF16. It is trained on in that, and compare will "
                "measure from what is stored.",
                progress,
            )
        return folder
    put_into_nf4(learner.model, learner.heads)
    if rank() == 0:
        keep_nf4_base(learner.model, Path(config.out))
    return Path(config.out, BASE).resolve()


def _store(
    config: Config,
    learner: Learner,
    model: PreTrainedModel,
    folder: Path,
    state: dict[str, Tensor],
) -> None:
    """A checkpoint of full fine-tuning, with its tokenizer; quantised after the training."""
    if config.quantize == "nf4":
        state = nf4_rounded_state(state, frozen_linears(model, learner.heads))
    save_full(model, learner.tokenizer, folder, state)


def _recorder(config: Config, base: Path) -> Recorder | None:
    if config.record_every is None:
        return None
    return Recorder(Path(config.out, LIVE), base, config.method)


def _on_step(config: Config, run: Begun, recorder: Recorder | None) -> Callable[[Step], None]:
    """Writes a step's row, and records it if its turn has come."""
    write = rows_writer(Path(config.out)) if rank() == 0 else None
    every, last = config.record_every or run.settings.steps, run.settings.steps

    def on_step(step: Step) -> None:
        if write is not None:
            write(step)
        if recorder is not None and (step.step % every == 0 or step.step == last):
            recorder.record(run.learner.model, step.step)

    return on_step


def _settings(
    config: Config, targets: Sequence[str], rows: int, learner: Learner, progress: bool
) -> Settings:
    steps = planned_steps(config, rows)
    return Settings(
        method=config.method,
        base_name=str(Path(config.model).resolve()),
        lr=PEAK_LR[config.method] if config.lr is None else config.lr,
        steps=steps,
        save_steps=saved_steps(config, steps),
        adapters=adapters_of(config, targets),
        modules_to_save=() if config.method == "full" else learner.heads,
        weight_decay=config.weight_decay,
        warmup=planned_warmup(config, steps),
        schedule=config.schedule,
        accumulate=config.accumulate,
        clip=config.clip,
        seed=config.seed,
        progress=progress,
    )


def _record(
    config: Config, dataset: Dataset, settings: Settings, targets: Sequence[str], length: int
) -> dict[str, Any]:
    """All that the run depends on; not its folder, which may be moved."""
    unused = {*NOT_OF_THE_RUN, *(OF_ADAPTERS if config.method == "full" else ())}
    asked = {key: value for key, value in vars(config).items() if key not in unused}
    found = {
        "model": settings.base_name,
        WEIGHTS: weights_sha256(Path(config.model)),
        "data": str(Path(config.data).resolve()),
        "data_sha256": dataset.sha256,
        "rows": len(dataset.rows),
        "task": dataset.task,
        "lr": settings.lr,
        "steps": settings.steps,
        "warmup": settings.warmup,
        "save_at": settings.save_steps,
        "max_length": length,
        "device": own_device(config.device).type,
        "processes": world(),
        "across": config.across if world() > 1 else "none",
    }
    return asked | found | ({"targets": targets} if config.method != "full" else {})
