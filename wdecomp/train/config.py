"""What one training is asked to be: flags over a TOML file over defaults, checked before any work.

method = "dora"
targets = ["query", "value"]
lr = 2e-4
save-at = [0.5, 1.0, 100]  # a share of the steps with a decimal point, a step without
"""

import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from wdecomp.errors import TrainingError, some
from wdecomp.train.layers import WITH_MAGNITUDE, Adapter
from wdecomp.train.loop import Method

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
LOWEST = {
    **{"rank": 1, "steps": 1, "batch": 1, "accumulate": 1, "max_length": 2},
    **{"dropout": 0, "warmup": 0, "weight_decay": 0, "seed": 0},
}
POSITIVE = ("alpha", "lr", "epochs", "clip")
SEEDS = 2**32  # a step's own seed is some billion times as large, and has 64 bits


@dataclass(frozen=True)
class Config:
    """One training as it was asked for. Each field is a flag of the command and a key of the file.

    Attributes:
        method: "full", or what adapters train.
        model: the base model's folder.
        data: .txt, .jsonl or .json; see `wdecomp.train.data`.
        out: the run's folder.
        task: what is learnt from the data; "auto" tells it from the fields of the first row.
        targets: last names of the modules to adapt; none for the queries and values of attention.
        magnitude_targets: last names of the modules of which magnitudes alone are trained.
        rank, alpha, dropout, rslora, norm_gradient, axis: as in `Adapter`.
        half_rank: the paper's DoRA†.
        lr: AdamW's at its peak; None for the method's own.
        steps, epochs: how long; at most one of them, three epochs if neither.
        batch: rows in a batch.
        accumulate, warmup, schedule, weight_decay, clip, seed: as in `Settings`.
        max_length: tokens of a text; None for 256, or fewer if the model takes fewer.
        save_at: shares of the steps (with a decimal point) and steps; the last one always counts.
    """

    method: Method
    model: str
    data: str
    out: str
    task: Literal["auto", "pairs", "classify", "lm"] = "auto"
    targets: tuple[str, ...] = ()
    magnitude_targets: tuple[str, ...] = ()
    rank: int = 16
    alpha: float = 32
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
    warmup: int = 0
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: float = 0.0
    clip: float | None = None
    seed: int = 0
    max_length: int | None = None
    save_at: tuple[int | float, ...] = (0.25, 0.5, 0.75, 1.0)


def read_config(flags: Mapping[str, Any], file: Path | None = None) -> Config:
    """The training that flags ask for, and a file where no flag does.

    Args:
        flags: fields of `Config` by name, those alone that were given.
        file: TOML; its paths are relative to the working directory, as the flags' are.

    Raises:
        TrainingError: the file is no flat table of these fields, one is missing, has another
            type, is out of its range, or contradicts another.
    """
    stored = {} if file is None else _read_file(file)
    if {"steps", "epochs"} & set(flags):  # a flag for one stands for both
        stored = {key: value for key, value in stored.items() if key not in ("steps", "epochs")}
    given = stored | dict(flags)
    kinds = {each.name: each.type for each in fields(Config)}
    for name, value in given.items():
        if not _fits(value, kinds[name]):
            where = f"{file}: {name}" if name not in flags else f"{name}:"
            raise TrainingError(f"{where} is {value!r}, {_expected(kinds[name])} was expected.")
    for name in ("method", "model", "data", "out"):
        if name not in given:
            raise TrainingError(
                f"{name}: is not given, {_expected(kinds[name])} was expected. "
                f"Name it with --{name} or in the file of --config."
            )
    plain: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in given.items()
    }
    config = Config(**plain)
    _require_ranges(config)
    _require_sense(config)
    return config


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


def _fits(value: Any, kind: Any) -> bool:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return value in arguments
    if origin is tuple:
        return isinstance(value, (list, tuple)) and all(_fits(v, arguments[0]) for v in value)
    if arguments:
        return any(_fits(value, each) for each in arguments)
    return type(value) is kind or (kind is float and type(value) is int)


def _expected(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(map(str, arguments))
    if origin is tuple:
        return f"a list, each {_expected(arguments[0])},"
    if arguments:
        return _expected(next(each for each in reversed(arguments) if each is not NoneType))
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return words[kind]


def _require_ranges(config: Config) -> None:
    values = {name: v for name, v in vars(config).items() if type(v) in (int, float)}
    for name, value in values.items():
        if not math.isfinite(value) or value < LOWEST.get(name, -math.inf):
            lowest = f"at least {LOWEST[name]}" if name in LOWEST else "a finite number"
            raise TrainingError(f"{name}: is {value}, {lowest} was expected.")
        if name in POSITIVE and value <= 0:
            raise TrainingError(f"{name}: is {value}, more than 0 was expected.")
    if config.dropout >= 1:
        raise TrainingError(f"dropout: is {config.dropout}, less than 1 was expected.")
    if config.seed >= SEEDS:
        raise TrainingError(f"seed: is {config.seed}, less than {SEEDS} was expected.")


def _require_sense(config: Config) -> None:
    """What contradicts itself. Adapters' options beside "full" do not: a file may serve several."""
    if config.steps is not None and config.epochs is not None:
        raise TrainingError("steps and epochs: are both given, one was expected. Leave one out.")
    if config.method == "full":
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
