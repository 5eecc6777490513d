"""The demo's experiment: one encoder fine-tuned three ways, without and with weight decay."""

import math
import os
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from wdecomp.demo.encoder import (
    TokenPairs,
    contrastive_loss,
    load_encoder,
    retrieval_score,
    tokenize,
)
from wdecomp.demo.pairs import split, standard_library_pairs
from wdecomp.errors import TrainingError
from wdecomp.train import Adapter, Settings, train
from wdecomp.train.loop import Method

# Method → its folder and its learning rate.
METHODS: dict[Method, tuple[str, float]] = {
    "full": ("ft", 1e-4),
    "lora": ("lora", 5e-3),
    "dora": ("dora", 5e-3),
}
DECAYS = (0, 1)
TARGETS = ("query", "value")
# Late ones among them: evenly spaced checkpoints alone give every method a positive slope.
SAVED = (0.25, 0.5, 0.625, 0.75, 0.875, 1.0)
SEED = 0

# What an encoder needs, and its model card, which carries its licence.
NEEDED = [
    *("*.safetensors", "*.safetensors.index.json", "config.json", "tokenizer*"),
    *("special_tokens_map.json", "vocab.*", "merges.txt", "*.model", "README.md"),
]


@dataclass(frozen=True)
class Size:
    """How much of the experiment is run."""

    steps: int
    batch: int  # pairs in a step
    tested: int | None  # pairs in the test set, None for all


FULL, QUICK = Size(48, 32, None), Size(8, 8, 64)


@dataclass(frozen=True)
class Outcome:
    """One trained run, or the base model before any training.

    Attributes:
        method: "base", "full", "lora" or "dora".
        decay: AdamW's weight decay.
        folder: of the run's `checkpoint-N`s; the base's is a checkpoint itself.
        mrr, accuracy: MRR@10 and accuracy at 1 on the test pairs, after the last step.
        losses: the training loss of each step.
        seconds: of training and writing, without the evaluation.
    """

    method: str
    decay: float
    folder: Path
    mrr: float
    accuracy: float
    losses: tuple[float, ...]
    seconds: float


def fine_tune(folder: Path, model_dir: Path, quick: bool, progress: bool) -> list[Outcome]:
    """The base model's outcome and those of the six runs, whose checkpoints `folder` then holds.

        folder/base                                    a copy of the model in `model_dir`
        folder/decay-{0,1}/{ft,lora,dora}/checkpoint-N

    `quick` runs a sixth of the steps on small batches: the same files, in seconds, with no
    claim to a result.

    Raises:
        TrainingError: `model_dir` holds no encoder with layers named query and value.
    """
    size = QUICK if quick else FULL
    base = copy_base(model_dir, folder / "base")
    train_pairs, test_pairs = split(standard_library_pairs())
    trained_on, tested_on = tokenize(base, train_pairs), tokenize(base, test_pairs[: size.tested])
    with _torch_threads():
        mrr, accuracy = retrieval_score(load_encoder(base), tested_on)
        outcomes = [Outcome("base", 0, base, mrr, accuracy, (), 0.0)]
        for decay in DECAYS:
            for method, (name, lr) in METHODS.items():
                out = folder / f"decay-{decay}" / name
                settings = _settings(method, lr, decay, base, size, progress)
                outcomes.append(_run(settings, trained_on, tested_on, size, out))
    return outcomes


def _run(
    settings: Settings, trained_on: TokenPairs, tested_on: TokenPairs, size: Size, out: Path
) -> Outcome:
    model = load_encoder(Path(settings.base_name))
    start = time.perf_counter()
    steps = train(model, batches(trained_on, size.batch, SEED), contrastive_loss, settings, out)
    seconds = time.perf_counter() - start
    mrr, accuracy = retrieval_score(model, tested_on)
    decay = settings.weight_decay
    losses = tuple(step.loss for step in steps)
    return Outcome(settings.method, decay, out, mrr, accuracy, losses, seconds)


def _settings(
    method: Method, lr: float, decay: float, base: Path, size: Size, progress: bool
) -> Settings:
    adapters = {}
    if method != "full":
        adapters = {target: Adapter(method, rank=16, alpha=32) for target in TARGETS}
    return Settings(
        method=method,
        base_name=str(base.resolve()),
        lr=lr,
        steps=size.steps,
        save_steps=tuple(math.ceil(size.steps * part) for part in SAVED),
        adapters=adapters,
        weight_decay=decay,
        warmup=round(size.steps / 10),
        seed=SEED,
        progress=progress,
    )


def batches(pairs: TokenPairs, batch: int, seed: int) -> Iterator[TokenPairs]:
    """The pairs in a shuffled order that follows from the seed, `batch` at a time."""
    order = list(range(len(pairs.signatures)))
    random.Random(seed).shuffle(order)
    for start in range(0, len(order) - batch + 1, batch):
        yield pairs.take(order[start : start + batch])


def copy_base(source: Path, target: Path) -> Path:
    """`target`, after the files that an encoder needs were copied into it."""
    if not (source / "config.json").is_file() or not any(source.glob("*.safetensors")):
        raise TrainingError(
            f"{source}: has no config.json with a .safetensors file beside it, "
            "the folder of a transformers encoder was expected."
        )
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted({path for pattern in NEEDED for path in source.glob(pattern)}):
        shutil.copyfile(path, target / path.name)
    return target


@contextmanager
def _torch_threads() -> Iterator[None]:
    """Half as many threads as there are idle cores, at most four.

    More do not help a model this small, and threads wait for their slowest: two on two cores, with
    one of them shared, were measured to be ten times slower than one.
    """
    before = torch.get_num_threads()
    idle = (os.cpu_count() or 1) - round(os.getloadavg()[0])
    torch.set_num_threads(max(1, min(4, before, idle // 2)))
    try:
        yield
    finally:
        torch.set_num_threads(before)
