"""What a training would train and hold in memory, without weights and without a GPU.

The model is built on the meta device: its parameters have shapes and no numbers.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
import transformers
from torch import nn

from wdecomp.errors import TrainingError
from wdecomp.train.adapting import adapt, adapted_layers
from wdecomp.train.config import Config, adapters_of
from wdecomp.train.data import Task, read_dataset
from wdecomp.train.export import quiet
from wdecomp.train.from_recipe import asked_recipe
from wdecomp.train.layers import Adapter
from wdecomp.train.learner import LONGEST, common_targets
from wdecomp.train.memory import Memory, matrix_shape, step_memory
from wdecomp.train.recipe import Precision, Recipe
from wdecomp.train.tasks import MODELS

UNSTATED: Precision = "bfloat16"  # where a recipe has no precision
TOKENS = 4096  # 16 sequences of 256
# The end of the class that a config names → the transformers classes that may know it.
HEADS = {
    "ForCausalLM": ("AutoModelForCausalLM",),
    "ForConditionalGeneration": ("AutoModelForSeq2SeqLM", "AutoModelForImageTextToText"),
    "ForSequenceClassification": ("AutoModelForSequenceClassification",),
    "": ("AutoModel",),
}


@dataclass(frozen=True)
class Target:
    """Layers of one name, method and shape.

    name: the end of theirs; rank: None for magnitudes alone; trainable: parameters of them all.
    """

    name: str
    method: str
    rank: int | None
    outputs: int
    inputs: int
    layers: int
    trainable: int


@dataclass(frozen=True)
class DryRun:
    """What a training would train, and its memory.

    Attributes:
        targets: empty where every parameter is trained.
        trainable, total: parameters, as PEFT counts them: `total` has the adapters in it.
        precision, tokens: what `memory` is estimated for; tokens are those of a micro-batch.
        memory: without what a step holds for a moment, and what an allocator loses.
        new_head: whether a head is trained beside the adapters, which is not counted.
    """

    targets: tuple[Target, ...]
    trainable: int
    total: int
    precision: Precision
    tokens: int
    memory: Memory
    new_head: bool = False

    @property
    def percentage(self) -> float:
        """100 · trainable / total."""
        return 100 * self.trainable / self.total


def dry_run(
    model: nn.Module,
    adapters: Mapping[str, Adapter],
    precision: Precision = UNSTATED,
    tokens: int = TOKENS,
    beside: Precision = UNSTATED,
) -> DryRun:
    """What training these adapters (none: every parameter) would train; `model` is adapted.

    The memory is that of `step_memory` for this precision, these tokens, and `beside` NF4.

    Raises:
        TrainingError: the adapters do not fit the model.
    """
    model.requires_grad_(True)
    if adapters:
        adapt(model, adapters)
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    trainable, total = sum(n for n, trained in counts if trained), sum(n for n, _ in counts)
    memory = step_memory(model, precision, tokens, beside)
    return DryRun(_targets(model), trainable, total, precision, tokens, memory)


def dry_run_recipe(recipe: Recipe, folder: Path | None = None, tokens: int = TOKENS) -> DryRun:
    """What a recipe would train, in the model that it names or in that of a local folder.

    Raises:
        TrainingError: there is no such model, or the recipe does not fit it.
    """
    source = folder or recipe.config
    if source is None:
        raise _without_config(recipe)
    precision = recipe.precision or UNSTATED
    return dry_run(model_on_meta(source), recipe.adapters, precision, tokens)


def dry_run_config(config: Config) -> DryRun:
    """What `wdecomp train` would train: in the model of a folder, else in that of a recipe.

    The task decides about the model's head: the one asked for or, if there is data, the data's.

    Raises:
        TrainingError: there is no such model, or what is asked for does not fit it.
    """
    task = read_dataset(Path(config.data), config.task).task if config.data else config.task
    model: Any = model_on_meta(Path(config.model) if config.model else _shapes(config), task)
    targets: Sequence[str] = ()
    if config.method != "full":
        targets = config.targets or common_targets(model)
    positions = getattr(model.config, "max_position_embeddings", None) or LONGEST
    length = config.max_length or min(LONGEST, positions)
    tokens = config.batch * length * (2 if task == "pairs" else 1)
    coded = config.quantize == "nf4" and config.method != "full"
    precision: Precision = "nf4" if coded else config.precision
    found = dry_run(model, adapters_of(config, targets), precision, tokens, config.precision)
    return replace(found, new_head=task == "classify" and bool(found.targets))


def _shapes(config: Config) -> dict[str, Any]:
    recipe = asked_recipe(config.recipe or "", vars(config))
    if recipe.config is None:
        raise _without_config(recipe)
    return recipe.config


def model_on_meta(
    source: Mapping[str, Any] | Path, task: Task | Literal["auto"] = "auto"
) -> nn.Module:
    """A model without numbers, from its config or from the config.json in its folder.

    Its head is the task's; for "auto" the one that the config names. Only transformers' own classes
    are built; code in the folder is never run.

    Raises:
        TrainingError: there is no config, or transformers cannot build a model from it.
    """
    where = source / "config.json" if isinstance(source, Path) else "config"
    if isinstance(where, Path) and not where.is_file():
        raise TrainingError(f"{where}: is not there, a model's config was expected.")
    try:
        with quiet(), torch.device("meta"):
            return _built(_config(source), task)
    except Exception as error:  # noqa: BLE001 - numbers that do not fit fail anywhere in there
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise TrainingError(
            f"{where}: transformers builds no model from it ({reason:.160}), the config of one of "
            "its own models was expected."
        ) from None


def _config(source: Mapping[str, Any] | Path) -> Any:
    known = transformers.AutoConfig
    if isinstance(source, Path):
        return known.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    kind = source.get("model_type", "")
    values = {key: value for key, value in source.items() if key != "model_type"}
    if unknown := [key for key in values if not hasattr(known.for_model(kind), key)]:
        raise ValueError(f"{kind} has no {unknown[0]}")
    return known.for_model(kind, **values)


def _built(config: Any, task: Task | Literal["auto"]) -> nn.Module:
    """The model with the head of a task, or that the config names, on the device of the context."""
    if task != "auto":
        for_task: nn.Module = MODELS[task].from_config(config, trust_remote_code=False)
        return for_task
    named = (getattr(config, "architectures", None) or [""])[0]
    for name in next(found for end, found in HEADS.items() if named.endswith(end)):
        with suppress(ValueError):  # it is not one of its models
            model: nn.Module = getattr(transformers, name).from_config(
                config, trust_remote_code=False
            )
            return model
    raise ValueError(f"it has no {named or 'model'} of {config.model_type}")


def _without_config(recipe: Recipe) -> TrainingError:
    return TrainingError(
        f"{recipe.name}: has no config, one that transformers knows was expected. "
        "Name a local folder with a model."
    )


def _targets(model: nn.Module) -> tuple[Target, ...]:
    layers: Counter[tuple[str, str, int | None, int, int]] = Counter()
    trainable: Counter[tuple[str, str, int | None, int, int]] = Counter()
    for name, layer in adapted_layers(model).items():
        adapter = layer.adapter
        rank = None if adapter.method == "magnitude" else adapter.rank
        key = (_last(name), adapter.method, rank, *matrix_shape(layer.base))
        layers[key] += 1
        trainable[key] += sum(p.numel() for p in layer.parameters() if p.requires_grad)
    return tuple(Target(*key, count, trainable[key]) for key, count in layers.items())


def _last(name: str) -> str:
    """The part of a module's name that tells its kind: "to_out.0" where the last is a number."""
    head, _, last = name.rpartition(".")
    return f"{head.rpartition('.')[2]}.{last}" if last.isdigit() else last


def as_text(found: DryRun, paper_percent: float | None = None) -> str:
    """A table of the targets, and below it the counts and every term of the memory."""
    rows = [["" if cell is None else cell for cell in astuple(each)] for each in found.targets]
    rows = rows or [["everything", "full", "", "", "", "", found.trainable]]
    table = pd.DataFrame(rows, columns=[each.name for each in fields(Target)], dtype=object)
    trained = "float32" if found.targets else found.precision
    paper = "" if paper_percent is None else f" (the paper prints {paper_percent:.2f} %)"
    memory = found.memory
    terms = [
        (memory.weights, f"weights: the base in {found.precision}, what is trained in {trained}"),
        (memory.gradients, f"gradients of what is trained, in {trained}"),
        (memory.moments, "AdamW's two moments of each"),
        (memory.backbone, "saved by the model: linear layers' outputs, norms' inputs twice"),
        (memory.adapters, "saved by what is trained: inputs, products with Aᵀ, scaled outputs"),
        (sum(astuple(memory)), "together, without what a step holds for a moment"),
    ]
    return "\n".join(
        [
            table.to_string(index=False, formatters={"trainable": "{:,}".format}),
            f"\ntrainable {found.trainable:,} of {found.total:,}: {found.percentage:.4f} %{paper}",
            *(["beside them a head is trained whole, which is not counted"] * found.new_head),
            f"\nmemory, estimated for {found.tokens:,} tokens in a micro-batch:",
            *(f"{size / 2**30:8.2f} GiB  {term}" for size, term in terms),
        ]
    )
