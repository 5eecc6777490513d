"""Trains the trials, some processes at a time, and keeps of each its score and its tables.

    out/base                      a copy of the model
    out/trials/NAME/outcome.json  what came out; written last, so that it marks what is done
    out/trials/NAME/results       ΔM and ΔD of its checkpoints, which are then removed

Given again, what is done is not done again.
"""

import json
import math
import multiprocessing
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedModel

from wdecomp.comparison import compare
from wdecomp.demo.encoder import (
    TokenPairs,
    contrastive_loss,
    load_encoder,
    retrieval_score,
    tokenize,
)
from wdecomp.demo.pairs import split, standard_library_pairs
from wdecomp.demo.training import SAVED, Size, batches, copy_base
from wdecomp.errors import ResultsError
from wdecomp.reproduction.trials import LR, Trial
from wdecomp.table import Results, read_results
from wdecomp.table.files import commit_json
from wdecomp.train import Settings, train
from wdecomp.train.nf4 import nf4_rounded
from wdecomp.train.nf4_base import quantize_linears


@dataclass(frozen=True)
class Outcome:
    """What came of a trial.

    Attributes:
        mrr: MRR@10 on the held-out pairs.
        rounded: the same after the linear layers' weights went through NF4; of "full" alone.
        loss: mean over the last quarter of the steps.
        trainable: parameters that are trained; percent: of all, as PEFT counts them.
        seconds: of the training, with another one beside it.
    """

    mrr: float
    rounded: float | None
    loss: float
    trainable: int
    percent: float
    seconds: float


@dataclass(frozen=True)
class Done:
    """A trial that has been run; `results` is None where the base was in NF4."""

    trial: Trial
    outcome: Outcome
    results: Results | None


def run_trials(
    out: Path, model: Path, trials: Sequence[Trial], size: Size, workers: int, progress: bool
) -> list[Done]:
    """Every trial, in the given order.

    Raises:
        ResultsError: `out` holds another model's trials.
        WdecompError: the model cannot be had or trained.
    """
    base = copy_base(model, out / "base")
    missing = [each for each in trials if not _file(out, each).exists()]
    spawned = multiprocessing.get_context("spawn")
    label = partial(tqdm, total=len(missing), unit="trial", disable=not progress, desc="reproduce")
    with ProcessPoolExecutor(workers, spawned) as pool, label() as bar:
        jobs = {pool.submit(_run, out, base, each, size): each for each in missing}
        for job in as_completed(jobs):
            error = job.exception()
            if error is not None:
                pool.shutdown(cancel_futures=True)
                raise error
            bar.update()
    return [_done(out, each, size) for each in trials]


def base_scores(out: Path, size: Size) -> tuple[float, float]:
    """MRR@10 of the base model, and of the base model with its linear layers in NF4."""
    base = out / "base"
    model, (_, tested) = load_encoder(base), _pairs(base, size.tested)
    plain = retrieval_score(model, tested)[0]
    _round(model)
    return plain, retrieval_score(model, tested)[0]


def _run(out: Path, base: Path, trial: Trial, size: Size) -> None:
    torch.set_num_threads(1)
    folder = _file(out, trial).parent
    shutil.rmtree(folder, ignore_errors=True)
    model = load_encoder(base)
    trained_on, tested_on = _pairs(base, size.tested)
    if trial.nf4:
        quantize_linears(model, _linear_names(model))
    settings = _settings(trial, base, size)
    order = batches(trained_on, size.batch, trial.seed)
    checkpoints = folder / "checkpoints"
    start = time.perf_counter()
    steps = train(model, order, contrastive_loss, settings, checkpoints)
    seconds = time.perf_counter() - start
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    trainable = sum(n for n, trained in counts if trained)
    mrr = retrieval_score(model, tested_on)[0]
    if not trial.nf4:
        run = f"{trial.method}={checkpoints}"
        compare(base, run, out=folder / "results", columns="both", progress=False, workers=1)
    shutil.rmtree(checkpoints)
    rounded = None
    if trial.method == "full":
        _round(model)
        rounded = retrieval_score(model, tested_on)[0]
    last = [step.loss for step in steps[-math.ceil(len(steps) / 4) :]]
    outcome = Outcome(
        mrr=mrr,
        rounded=rounded,
        loss=sum(last) / len(last),
        trainable=trainable,
        percent=100 * trainable / sum(n for n, _ in counts),
        seconds=seconds,
    )
    commit_json(_file(out, trial), _record(trial, size) | {"outcome": asdict(outcome)})


def _settings(trial: Trial, base: Path, size: Size) -> Settings:
    steps = round(trial.share * size.steps)
    return Settings(
        method=trial.method,
        base_name=str(base.resolve()),
        lr=LR[trial.method],
        steps=steps,
        save_steps=tuple(sorted({math.ceil(steps * part) for part in SAVED})),
        adapters=trial.adapters,
        weight_decay=trial.decay,
        warmup=round(steps / 10),
        seed=trial.seed,
        progress=False,
    )


@cache
def _pairs(base: Path, tested: int | None) -> tuple[TokenPairs, TokenPairs]:
    """To train on, and to test with."""
    train_pairs, test_pairs = split(standard_library_pairs())
    return tokenize(base, train_pairs), tokenize(base, test_pairs[:tested])


def _linear_names(model: nn.Module) -> Iterator[str]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            yield name.rpartition(".")[2]


@torch.no_grad()
def _round(model: PreTrainedModel) -> None:
    """Puts the linear layers' weights through NF4."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.copy_(nf4_rounded(module.weight))


def _file(out: Path, trial: Trial) -> Path:
    return out / "trials" / trial.name / "outcome.json"


def _record(trial: Trial, size: Size) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(trial.record() | {"size": asdict(size)}))
    return plain


def _done(out: Path, trial: Trial, size: Size) -> Done:
    file = _file(out, trial)
    stored = json.loads(file.read_text())
    outcome = stored.pop("outcome")
    if stored != _record(trial, size):
        raise ResultsError(
            f"{file}: holds a trial of other settings, those of today were expected. "
            "Choose another folder with --out."
        )
    results = None if trial.nf4 else read_results(file.parent / "results")
    return Done(trial, Outcome(**outcome), results)
