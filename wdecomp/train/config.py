"""What one training is asked to be: flags over a TOML file over a recipe over defaults.

method = "dora"
save-at = [0.5, 1.0, 100]  # a share of the steps with a decimal point, a step without
"""

import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from wdecomp.errors import TrainingError, some
from wdecomp.train.checks import expected, fits, plain, require_ranges
from wdecomp.train.from_recipe import asked_recipe, defaults_of
from wdecomp.train.layers import WITH_MAGNITUDE, Adapter
from wdecomp.train.loop import Method
from wdecomp.train.recipe import Recipe

# For AdamW, where none is given: LoRA and DoRA as in the paper (1e-4 … 3e-4); what is left is
# vectors, which VeRA (arXiv 2310.11454) trains ten times as fast and faster.
PEAK_LR: Mapping[Method, float] = {
    "full": 2e-5,
    "lora": 2e-4,
    "dora": 2e-4,
    "vera": 4e-3,
    "dvora": 4e-3,
    "magnitude": 4e-3,
}
EPOCHS = 3.0  # the paper's
OF_ADAPTERS = (
    *("targets", "magnitude_targets", "rank", "alpha", "dropout", "rslora", "half_rank"),
    *("norm_gradient", "axis"),
)


@dataclass(frozen=True)
class Config:
    """One training as it was asked for. Each field is a flag of the command and a key of the file.

    Attributes:
        method: "full", or what adapters train.
        model: the base model's folder; "" in a dry run of a recipe's own shapes.
        data: .txt, .jsonl or .json, see `wdecomp.train.data`; "" in a dry run without.
        out: the run's folder; "" in a dry run.
        task: what is learnt from the data; "auto" tells it from the fields of the first row.
        targets: last names of the modules to adapt; none for the queries and values of attention.
        magnitude_targets: last names of the modules of which magnitudes alone are trained.
        rank, alpha, dropout, rslora, norm_gradient, axis: as in `Adapter`.
        half_rank: the paper's DoRA†.
        lr: AdamW's at its peak; None for the method's own.
        steps, epochs: how long; at most one of them, three epochs if neither.
        batch: rows in a batch.
        warmup: steps until that peak, or a share of the steps (with a decimal point).
        accumulate, schedule, weight_decay, clip, seed: as in `Settings`.
        max_length: tokens of a text; None for 256, or fewer if the model takes fewer.
        recipe: NAME[:METHOD] whose settings stand below those of flags and file.
        quantize: "nf4" trains adapters on a base in NF4, and stores what "full" has trained so.
        precision: what a frozen base is held in; what is trained is always in float32.
        device: "cpu", "cuda", "cuda:N" or "mps".
        across: how the processes of a torchrun share the work, see `distributed.py`.
        record_every: steps from one record of ΔM and ΔD to the next; None for no records.
        save_at: shares of the steps (with a decimal point) and steps; the last one always counts.
    """

    method: Method
    model: str = ""
    data: str = ""
    out: str = ""
    task: Literal["auto", "pairs", "classify", "lm"] = "auto"
    targets: tuple[str, ...] = ()
    magnitude_targets: tuple[str, ...] = ()
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    rslora: bool = False
    half_rank: bool = False
    norm_gradient: Literal["detached", "exact"] = "detached"
    axis: Literal["output", "input"] = "output"
    lr: float | None = None
    steps: int | None = None
    epochs: float | None = None
    batch: int = 16
    accumulate: int = 1
    warmup: int | float = 0
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: float = 0.0
    clip: float | None = None
    seed: int = 0
    max_length: int | None = None
    recipe: str | None = None
    quantize: Literal["none", "nf4"] = "none"
    precision: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    across: Literal["ddp", "fsdp"] = "ddp"
    record_every: int | None = None
    save_at: tuple[int | float, ...] = (0.25, 0.5, 0.75, 1.0)


def read_config(flags: Mapping[str, Any], file: Path | None = None, dry: bool = False) -> Config:
    """The training that flags ask for; a file where no flag does, and a recipe where neither does.

    Args:
        flags: fields of `Config` by name, those alone that were given.
        file: TOML; its paths are relative to the working directory, as the flags' are.
        dry: for a dry run, which needs neither data nor a folder, nor a model beside a recipe.

    Raises:
        TrainingError: the file is no flat table of these fields, the recipe is none, a field is
            missing, has another type, is out of its range, or contradicts another.
    """
    given = _over(flags, {} if file is None else _read_file(file))
    kinds = {each.name: each.type for each in fields(Config)}
    for name, value in given.items():
        if not fits(value, kinds[name]):
            where = f"{file}: {name}" if name not in flags else f"{name}:"
            raise TrainingError(f"{where} is {value!r}, {expected(kinds[name])} was expected.")
    require_ranges(given)
    recipe = asked_recipe(given["recipe"], given) if "recipe" in given else None
    if recipe is not None:
        given = _over(given, defaults_of(recipe))
    optional = ("data", "out", "model" if recipe else "") if dry else ()
    for name in ("method", "model", "data", "out"):
        if name not in given and name not in optional:
            raise _missing(name, expected(kinds[name]), recipe)
    config = Config(**{name: plain(value, kinds[name]) for name, value in given.items()})
    _require_sense(config)
    return config


def _over(upper: Mapping[str, Any], lower: Mapping[str, Any]) -> dict[str, Any]:
    """What either says, the upper one where both do; its steps or epochs stand for both."""
    hidden = ("steps", "epochs") if {"steps", "epochs"} & set(upper) else ()
    return {key: value for key, value in lower.items() if key not in hidden} | dict(upper)


def _missing(name: str, kind: str, recipe: Recipe | None) -> TrainingError:
    if name == "model" and recipe is not None:
        return TrainingError(
            f"model: the recipe's, {recipe.model}, is no folder here, and nothing is fetched. "
            "Name the folder that has it with --model."
        )
    return TrainingError(
        f"{name}: is not given, {kind} was expected. "
        f"Name it with --{name} or in the file of --config."
    )


def adapters_of(config: Config, targets: Iterable[str]) -> dict[str, Adapter]:
    """Last names of modules → what is trained there; nothing for full fine-tuning."""
    if config.method == "full":
        return {}
    adapter = Adapter(
        config.method,
        rank=config.rank,
        alpha=config.alpha,
        dropout=config.dropout,
        rslora=config.rslora,
        norm_gradient=config.norm_gradient,
        axis=config.axis,
    )
    if config.half_rank:
        adapter = adapter.halved()
    only = Adapter("magnitude", axis=config.axis, norm_gradient=config.norm_gradient)
    return dict.fromkeys(targets, adapter) | dict.fromkeys(config.magnitude_targets, only)


def planned_steps(config: Config, rows: int) -> int:
    """How many steps the run has: those asked for, or what the epochs make of so many rows."""
    if config.steps is not None:
        return config.steps
    batches = math.ceil(rows / config.batch)
    return math.ceil((config.epochs or EPOCHS) * batches / config.accumulate)


def planned_warmup(config: Config, steps: int) -> int:
    """The steps until the rate's peak: as many as were asked for, or a share of all.

    Raises:
        TrainingError: the share is above 1.
    """
    if isinstance(config.warmup, int):
        return config.warmup
    if config.warmup > 1:
        raise TrainingError(
            f"warmup: is {config.warmup}, at most 1.0 was expected. "
            "With a decimal point it is a share of the steps, without one a number of them."
        )
    return round(config.warmup * steps)


def saved_steps(config: Config, steps: int) -> tuple[int, ...]:
    """The steps after which a checkpoint is written, in order, the last one among them.

    Raises:
        TrainingError: a share or a step is not within the run.
    """
    found = {steps}
    for at in config.save_at:
        highest = steps if isinstance(at, int) else 1.0
        if not 0 < at <= highest:
            raise TrainingError(
                f"save_at: is {at!r}, above 0 and at most {highest} was expected. "
                "With a decimal point it is a share of the steps, without one a step."
            )
        found.add(at if isinstance(at, int) else math.ceil(at * steps))
    return tuple(sorted(found))


def _read_file(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stored:
            table = tomllib.load(stored)
    except OSError as error:
        raise TrainingError(f"{file}: cannot be read ({error.strerror}).") from None
    except ValueError as error:  # UnicodeDecodeError among them
        raise TrainingError(f"{file}: is not TOML ({error}).") from None
    known = [each.name for each in fields(Config)]
    found = {key.replace("-", "_"): value for key, value in table.items()}
    unknown = sorted(set(found) - set(known))
    if unknown:
        raise TrainingError(
            f"{file}: has {some(unknown)}, expected only {some(known, len(known))}."
        )
    return found


def _require_sense(config: Config) -> None:
    """What contradicts itself. Adapters' options beside "full" do not: a file may serve several."""
    if config.steps is not None and config.epochs is not None:
        raise TrainingError("steps and epochs: are both given, one was expected. Leave one out.")
    if config.method == "full":
        if config.precision != "float32":
            raise TrainingError(
                f"precision: is {config.precision} beside full, float32 was expected. "
                "What is trained stays in float32: in fewer bits its steps would be lost."
            )
        return
    if config.magnitude_targets and config.method not in WITH_MAGNITUDE:
        raise TrainingError(
            f"magnitude_targets: are given beside {config.method}, {' or '.join(WITH_MAGNITUDE)} "
            "was expected. The other methods have no magnitudes, and one adapter is of one kind."
        )
    both = sorted(set(config.targets) & set(config.magnitude_targets))
    if both:
        raise TrainingError(
            f"targets: has {some(both)}, which is in magnitude_targets, too. Name it in one."
        )
