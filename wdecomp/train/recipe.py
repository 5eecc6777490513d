"""The paper's training settings, and a user's own, as TOML files.

    model = "…"               what every method of the file shares
    targets = ["q_proj", …]
    [config]                  the model's shapes, as its config.json has them
    [methods.dora]            one method; what it says goes before what is shared
    method = "dora"
    rank = 32

A field that no source gives is left out of a bundled recipe and is None: the trainer's default
stands. A rank, an alpha or targets have no default here: an override has to give them.
"""

import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

from wdecomp.errors import TrainingError
from wdecomp.train.layers import SHARED, Adapter, AdapterMethod

Schedule = Literal["linear", "cosine", "constant"]
Precision = Literal["float32", "bfloat16", "float16", "nf4"]
METHODS = ("full", *get_args(AdapterMethod))


@dataclass(frozen=True)
class Recipe:
    """One method of one recipe. None: no source gives it.

    Attributes:
        name: the file's, without its suffix.
        variant: the method's name in the file.
        model: on the hub.
        method: "full" trains every parameter.
        adapters: the layers' names → what is trained there, as `adapt` takes it.
        config: the model's shapes, as in its config.json; None if transformers has no such model.
        data: what it was trained on, in words.
        lr: at its peak.
        schedule: of the learning rate after the warm-up.
        warmup: optimizer steps; a number below 1 is a share of all steps.
        batch: examples in a micro-batch.
        accumulate: micro-batches in an optimizer step; None where `batch` is all of them.
        epochs: over the data.
        clip: the gradient's largest norm.
        precision: what the frozen base is held in.
        paper_percent: trainable parameters in % of all, as the paper prints it.
    """

    name: str
    variant: str
    model: str
    method: Literal["full"] | AdapterMethod
    adapters: dict[str, Adapter] = field(default_factory=dict)
    config: dict[str, Any] | None = None
    data: str | None = None
    lr: float | None = None
    schedule: Schedule | None = None
    warmup: float | None = None
    batch: int | None = None
    accumulate: int | None = None
    epochs: int | None = None
    clip: float | None = None
    precision: Precision | None = None
    paper_percent: float | None = None


def recipe_names() -> list[str]:
    """Every bundled recipe, in alphabetical order."""
    found = (Path(file.name) for file in (files("wdecomp.train") / "recipes").iterdir())
    return sorted(file.stem for file in found if file.suffix == ".toml")


def recipe_methods(name: str) -> dict[str, dict[str, Any]]:
    """Every method of a bundled recipe, with its fields and those that all share."""
    table = _parsed(*_text_of(name))
    return {method: table | values for method, values in _variants(name, table).items()}


def read_recipe(
    source: str | Path, method: str | None = None, overrides: Mapping[str, Any] | None = None
) -> Recipe:
    """One method of a recipe.

    Args:
        source: the name of a bundled recipe, or the path of a TOML file.
        method: the name after `methods.` in the file, or what one alone trains; None for the one.
        overrides: field → value, before what the file says.

    Raises:
        TrainingError: no such recipe or method, an unknown field, or a value that does not fit.
    """
    where, text = _text_of(source)
    table = _parsed(where, text)
    variants = _variants(where, table)
    shared = {key: value for key, value in table.items() if key != "methods"}
    _check(where, "", shared)
    for variant, values in variants.items():
        _check(where, f"methods.{variant}.", values)
    _check(where, "", overrides or {})
    chosen = _chosen(where, variants, method)
    values = shared | variants[chosen] | dict(overrides or {})
    for key in ("model", "method"):
        _require(where, chosen, values, key)
    plain = {each.name: values[each.name] for each in fields(Recipe) if each.name in values}
    adapters = _adapters(where, chosen, values)
    return Recipe(name=Path(where).stem, variant=chosen, adapters=adapters, **plain)


def _adapters(where: str, chosen: str, values: Mapping[str, Any]) -> dict[str, Adapter]:
    """The targets' adapters, then those of which the magnitude alone is trained."""
    method = values["method"]
    if method == "full":
        return {}
    needed = ["targets"]
    if method != "magnitude":
        needed += ["rank"] if method in SHARED else ["rank", "alpha"]
    for key in needed:
        _require(where, chosen, values, key)
    given = {each.name: values[each.name] for each in fields(Adapter) if each.name in values}
    magnitude = Adapter("magnitude", axis=values.get("axis", "output"))
    adapters = dict.fromkeys(values["targets"], Adapter(**given))
    for target in values.get("magnitude_targets", ()):
        if target in adapters:
            raise TrainingError(
                f"{where}: magnitude_targets has {target!r}, which is one of targets. Name it once."
            )
        adapters[target] = magnitude
    return adapters


def _text_of(source: str | Path) -> tuple[str, str]:
    """What a message calls the file, and what is in it."""
    path = Path(source)
    if isinstance(source, str) and path.suffix != ".toml" and path.name == source:
        names = recipe_names()
        if source not in names:
            raise TrainingError(
                f"recipe: is {source!r}, the path of a .toml file or one of {', '.join(names)} "
                "was expected."
            )
        bundled = files("wdecomp.train") / "recipes" / f"{source}.toml"
        return bundled.name, bundled.read_text(encoding="utf-8")
    try:
        return str(path), path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not in UTF-8"
        raise TrainingError(f"{path}: cannot be read ({reason}), a recipe was expected.") from None


def _parsed(where: str, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TrainingError(f"{where}: is not TOML ({error}).") from None


def _variants(where: str, table: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The methods' tables, by name."""
    found = table.get("methods")
    tables = isinstance(found, dict) and all(isinstance(each, dict) for each in found.values())
    if not found or not tables:
        raise TrainingError(
            f"{where}: methods is {found!r}, a table for each method was expected, "
            "such as [methods.dora]."
        )
    return dict(found)


def _chosen(where: str, variants: Mapping[str, dict[str, Any]], method: str | None) -> str:
    alone = [name for name, values in variants.items() if method in (None, values.get("method"))]
    if method not in variants and len(alone) == 1:
        return alone[0]
    if method is None or method not in variants:
        said = "is not chosen" if method is None else f"is {method!r}"
        raise TrainingError(f"{where}: method {said}, one of {', '.join(variants)} was expected.")
    return method


def _require(where: str, chosen: str, values: Mapping[str, Any], key: str) -> None:
    if key not in values:
        raise TrainingError(
            f"{where}: methods.{chosen}.{key} is not given, {FIELDS[key][0]} was expected. "
            "Write it into the recipe, or override it."
        )


def _check(where: str, prefix: str, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if key not in FIELDS:
            raise TrainingError(
                f"{where}: {prefix}{key} is no field of a recipe, one of {', '.join(FIELDS)} "
                "was expected."
            )
        expected, fits = FIELDS[key]
        if not fits(value):
            raise TrainingError(f"{where}: {prefix}{key} is {value!r}, {expected} was expected.")


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _one_of(*allowed: str) -> tuple[str, Callable[[Any], bool]]:
    return f"one of {', '.join(allowed)}", lambda value: value in allowed


TEXT = ("text", _text)
COUNT = ("a whole number from 1 up", lambda value: type(value) is int and value >= 1)
POSITIVE = ("a number above 0", lambda value: _number(value) and value > 0)
NAMES = (
    "a list of different names",
    lambda value: (
        isinstance(value, list)
        and value
        and all(map(_text, value))
        and len(set(value)) == len(value)
    ),
)

# Field → what is expected, and whether a value is that.
FIELDS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "model": TEXT,
    "config": ("a table", lambda value: isinstance(value, dict) and bool(value)),
    "data": TEXT,
    "method": _one_of(*METHODS),
    "targets": NAMES,
    "magnitude_targets": NAMES,
    "rank": COUNT,
    "alpha": POSITIVE,
    "dropout": ("a number from 0 to below 1", lambda value: _number(value) and 0 <= value < 1),
    "rslora": ("true or false", lambda value: isinstance(value, bool)),
    "norm_gradient": _one_of("detached", "exact"),
    "axis": _one_of("output", "input"),
    "lr": POSITIVE,
    "schedule": _one_of(*get_args(Schedule)),
    "warmup": ("a number from 0 up", lambda value: _number(value) and value >= 0),
    "batch": COUNT,
    "accumulate": COUNT,
    "epochs": COUNT,
    "clip": POSITIVE,
    "precision": _one_of(*get_args(Precision)),
    "paper_percent": POSITIVE,
}
