"""What a training would train and hold in memory, without weights and without a GPU.

The model is built on the meta device: its parameters have shapes and no numbers.
"""

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from wdecomp.errors import TrainingError
from wdecomp.train.adapting import adapt, adapted_layers
from wdecomp.train.export import quiet
from wdecomp.train.kinds import kind_of
from wdecomp.train.layers import AdaptedLayer, Adapter
from wdecomp.train.recipe import Precision, Recipe

LINEAR = (nn.Linear, Conv1D)
FLOAT32 = 4
BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "nf4": 2.0}  # NF4's norms, embeddings
# 4 bits; a byte for the scale of 64 weights; a float32 for the scale of 256 such bytes.
NF4 = (4 + 8 / 64 + 32 / (64 * 256)) / 8
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
class Memory:
    """Bytes that a training step holds, estimated.

    Attributes:
        weights: the base in its precision (NF4: its linear layers but the output head), adapters
            and buffers in float32.
        gradients, moments: one and two numbers for each that is trained.
        backbone: what the model saves for the backward pass: for every token the outputs of its
            linear layers, and twice the width of each norm.
        adapters: what adapters save, in float32: the input of A, dropout's mask (a byte; on a CPU
            up to four), the product with Aᵀ and, under a magnitude, the output (in the base's
            precision where there is no A). Where all is trained, each input.
    """

    weights: int
    gradients: int
    moments: int
    backbone: int
    adapters: int


@dataclass(frozen=True)
class DryRun:
    """What a training would train, and its memory.

    Attributes:
        targets: empty where every parameter is trained.
        trainable, total: parameters, as PEFT counts them: `total` has the adapters in it.
        precision, tokens: what `memory` is estimated for; tokens are those of a micro-batch.
        memory: without what a step holds for a moment, and what an allocator loses.
    """

    targets: tuple[Target, ...]
    trainable: int
    total: int
    precision: Precision
    tokens: int
    memory: Memory

    @property
    def percentage(self) -> float:
        """100 · trainable / total."""
        return 100 * self.trainable / self.total


def dry_run(
    model: nn.Module,
    adapters: Mapping[str, Adapter],
    precision: Precision = UNSTATED,
    tokens: int = TOKENS,
) -> DryRun:
    """What training these adapters (none: every parameter) would train; `model` is adapted.

    Raises:
        TrainingError: the adapters do not fit the model.
    """
    model.requires_grad_(True)
    if adapters:
        adapt(model, adapters)
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    trainable, total = sum(n for n, trained in counts if trained), sum(n for n, _ in counts)
    memory = _memory(model, precision, tokens)
    return DryRun(_targets(model), trainable, total, precision, tokens, memory)


def dry_run_recipe(recipe: Recipe, folder: Path | None = None, tokens: int = TOKENS) -> DryRun:
    """What a recipe would train, in the model that it names or in that of a local folder.

    Raises:
        TrainingError: there is no such model, or the recipe does not fit it.
    """
    source = folder or recipe.config
    if source is None:
        raise TrainingError(
            f"{recipe.name}: has no config, one that transformers knows was expected. "
            "Name a local folder with a model."
        )
    precision = recipe.precision or UNSTATED
    return dry_run(model_on_meta(source), recipe.adapters, precision, tokens)


def model_on_meta(source: Mapping[str, Any] | Path) -> nn.Module:
    """A model without numbers, from its config or from the config.json in its folder.

    Only transformers' own classes are built; code in the folder is never run.

    Raises:
        TrainingError: there is no config, or transformers cannot build a model from it.
    """
    where = source / "config.json" if isinstance(source, Path) else "config"
    if isinstance(where, Path) and not where.is_file():
        raise TrainingError(f"{where}: is not there, a model's config was expected.")
    try:
        with quiet(), torch.device("meta"):
            return _built(_config(source))
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


def _built(config: Any) -> nn.Module:
    """The model with the head that the config names, on the device of the context."""
    named = (getattr(config, "architectures", None) or [""])[0]
    for name in next(found for end, found in HEADS.items() if named.endswith(end)):
        with suppress(ValueError):  # it is not one of its models
            model: nn.Module = getattr(transformers, name).from_config(
                config, trust_remote_code=False
            )
            return model
    raise ValueError(f"it has no {named or 'model'} of {config.model_type}")


def _targets(model: nn.Module) -> tuple[Target, ...]:
    layers: Counter[tuple[str, str, int | None, int, int]] = Counter()
    trainable: Counter[tuple[str, str, int | None, int, int]] = Counter()
    for name, layer in adapted_layers(model).items():
        adapter = layer.adapter
        rank = None if adapter.method == "magnitude" else adapter.rank
        key = (_last(name), adapter.method, rank, *_shape(layer.base))
        layers[key] += 1
        trainable[key] += sum(p.numel() for p in layer.parameters() if p.requires_grad)
    return tuple(Target(*key, count, trainable[key]) for key, count in layers.items())


def _last(name: str) -> str:
    """The part of a module's name that tells its kind: "to_out.0" where the last is a number."""
    head, _, last = name.rpartition(".")
    return f"{head.rpartition('.')[2]}.{last}" if last.isdigit() else last


def _shape(layer: nn.Module) -> tuple[int, int]:
    outputs, inputs = kind_of("", layer).matrix(layer).shape
    return outputs, inputs


def _memory(model: nn.Module, precision: Precision, tokens: int) -> Memory:
    each, adapters = BYTES[precision], adapted_layers(model)
    linear = {n: layer for n, layer in model.named_modules() if isinstance(layer, LINEAR)}
    head: Any = getattr(model, "get_output_embeddings", lambda: None)()
    packed = {id(layer.weight) for layer in linear.values() if layer is not head}
    of_trained = FLOAT32 if adapters else each
    weights = trained = 0.0
    for p in model.parameters():
        of_frozen = NF4 if precision == "nf4" and id(p) in packed else each
        weights += p.numel() * (of_trained if p.requires_grad else of_frozen)
        trained += p.numel() * of_trained * p.requires_grad
    shared = next((v.projections for v in adapters.values() if v.projections is not None), None)
    constants = [*model.buffers(), *((shared.a, shared.b) if shared else ())]
    widths = [_width(m) for m in model.modules() if type(m).__name__.endswith("Norm")]
    backbone = sum(_shape(layer)[0] for layer in linear.values()) + 2 * sum(widths)
    inputs = {(name.rpartition(".")[0], _shape(layer)[1]) for name, layer in linear.items()}
    saved = _saved(adapters, each) if adapters else each * sum(width for _, width in inputs)
    return Memory(
        weights=round(weights) + sum(constant.nbytes for constant in constants),
        gradients=round(trained),
        moments=2 * round(trained),
        backbone=round(each * tokens * backbone),
        adapters=round(tokens * saved),
    )


def _width(norm: nn.Module) -> int:
    return max((p.numel() for p in norm.parameters()), default=0)


def _saved(adapters: Mapping[str, AdaptedLayer], each: float) -> float:
    """Bytes for each token that linear layers' adapters save."""
    found, inputs = 0.0, {}
    for name, layer in adapters.items():
        adapter, (outputs, width) = layer.adapter, _shape(layer.base)
        alone = adapter.method == "magnitude"
        found += (each if alone else FLOAT32) * outputs if layer.magnitude is not None else 0
        if not alone:
            found += FLOAT32 * adapter.rank
            # A copy in float32, and what dropout leaves, is each layer's own; else the input is
            # that of all layers beside it.
            own = each < FLOAT32 or adapter.dropout > 0
            place = name if own else name.rpartition(".")[0]
            inputs[place, width] = (FLOAT32 + (adapter.dropout > 0)) * width
    return found + sum(inputs.values())


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
            f"\nmemory, estimated for {found.tokens:,} tokens in a micro-batch:",
            *(f"{size / 2**30:8.2f} GiB  {term}" for size, term in terms),
        ]
    )
