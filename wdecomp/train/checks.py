"""Whether a value is of its field's type and within its range, and how a message says so."""

import math
from collections.abc import Mapping
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from wdecomp.errors import TrainingError

LOWEST = {
    **{"rank": 1, "steps": 1, "batch": 1, "accumulate": 1, "max_length": 2, "record_every": 1},
    **{"dropout": 0, "warmup": 0, "weight_decay": 0, "seed": 0},
}
POSITIVE = ("alpha", "lr", "epochs", "clip")
SEEDS = 2**32  # a step's own seed is some billion times as large, and has 64 bits


def fits(value: Any, kind: Any) -> bool:
    """Whether a value has the type that a field is annotated with."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return value in arguments
    if origin is tuple:
        return isinstance(value, (list, tuple)) and all(fits(v, arguments[0]) for v in value)
    if arguments:
        return any(fits(value, each) for each in arguments)
    return type(value) is kind or (kind is float and type(value) is int)


def plain(value: Any, kind: Any) -> Any:
    """A value that fits, written in one way: lists as tuples, numbers as the field's float."""
    if isinstance(value, list):
        return tuple(value)
    takes = get_args(kind) or (kind,)
    return float(value) if type(value) is int and float in takes and int not in takes else value


def expected(kind: Any) -> str:
    """The type in words."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(map(str, arguments))
    if origin is tuple:
        return f"a list, each {expected(arguments[0])},"
    if arguments:
        return expected(next(each for each in reversed(arguments) if each is not NoneType))
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return words[kind]


def require_ranges(given: Mapping[str, Any]) -> None:
    """Raises TrainingError if a number, by its field's name, is out of its range."""
    numbers = {name: value for name, value in given.items() if type(value) in (int, float)}
    for name, value in numbers.items():
        if not math.isfinite(value) or value < LOWEST.get(name, -math.inf):
            lowest = f"at least {LOWEST[name]}" if name in LOWEST else "a finite number"
            raise TrainingError(f"{name}: is {value}, {lowest} was expected.")
        if name in POSITIVE and value <= 0:
            raise TrainingError(f"{name}: is {value}, more than 0 was expected.")
    if numbers.get("dropout", 0) >= 1:
        raise TrainingError(f"dropout: is {numbers['dropout']}, less than 1 was expected.")
    if numbers.get("seed", 0) >= SEEDS:
        raise TrainingError(f"seed: is {numbers['seed']}, less than {SEEDS} was expected.")
