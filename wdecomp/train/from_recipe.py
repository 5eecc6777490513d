"""What `wdecomp train` takes from a recipe, and what it says of the rest."""

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from wdecomp.errors import TrainingError
from wdecomp.train.layers import Adapter
from wdecomp.train.recipe import Recipe, read_recipe, recipe_methods, recipe_names

NAMED = re.compile(r"(?P<source>.+):(?P<method>[\w-]+)", re.DOTALL)
PLAIN = ("method", "lr", "schedule", "batch", "accumulate", "epochs", "clip")  # as they are
OF_ADAPTER = ("rank", "alpha", "dropout", "rslora", "norm_gradient", "axis")
REQUIRED = ("method", "targets", "magnitude_targets", "rank", "alpha")
SAID = ("lr", "schedule", "warmup", "batch", "epochs")  # where a recipe does not
# Field → the head of its column.
LISTED = {
    **{"method": "method", "rank": "rank", "lr": "lr", "batch": "batch", "epochs": "epochs"},
    **{"paper_percent": "% trained", "model": "model"},
}


def asked_recipe(text: str, given: Mapping[str, Any]) -> Recipe:
    """The recipe that `NAME[:METHOD]` means; without METHOD the one of the method that is given.

    Args:
        text: NAME is that of a bundled recipe, or the path of a TOML file.
        given: what was asked for beside it, by the names of `Config`'s fields.

    Raises:
        TrainingError: there is no such recipe, or it leaves open what has no default.
    """
    overrides = {
        key: list(value) if isinstance(value, (list, tuple)) else value
        for key, value in given.items()
        if key in REQUIRED and value not in ([], ())
    }
    return read_recipe(*_named(text, given.get("method")), overrides)


def papers_percent(used: Mapping[str, Any], adapters: Mapping[str, Adapter]) -> float | None:
    """Trainable parameters in % as the paper prints them; None if this is not what it trained."""
    if used["recipe"] is None or used["model"]:
        return None
    with suppress(TrainingError):  # without what is given beside it, it may be incomplete
        recipe = read_recipe(*_named(used["recipe"], used["method"]))
        return recipe.paper_percent if recipe.adapters == adapters else None
    return None


def _named(text: str, method: str | None) -> tuple[str, str | None]:
    """Name or path of a recipe, and the name of the method in it."""
    named = None if Path(text).is_file() else NAMED.fullmatch(text)
    return (named["source"], named["method"]) if named else (text, method)


def defaults_of(recipe: Recipe) -> dict[str, Any]:
    """The fields of `Config` that a recipe gives; its model, if that is a folder here."""
    found = {name: getattr(recipe, name) for name in PLAIN if getattr(recipe, name) is not None}
    if recipe.warmup is not None:
        found["warmup"] = recipe.warmup if 0 < recipe.warmup < 1 else math.ceil(recipe.warmup)
    if recipe.precision == "nf4":
        found["quantize"] = "nf4"
    if recipe.precision == "bfloat16" and recipe.adapters:
        found["precision"] = "bfloat16"
    if Path(recipe.model).is_dir():
        found["model"] = recipe.model
    if recipe.adapters:
        main = next(each for each in recipe.adapters.values() if each.method == recipe.method)
        alone = [name for name, each in recipe.adapters.items() if each.method != recipe.method]
        found["targets"] = [name for name in recipe.adapters if name not in alone]
        found["magnitude_targets"] = alone
        found |= {name: getattr(main, name) for name in OF_ADAPTER}
    return found


def remarks(used: Mapping[str, Any]) -> list[str]:
    """What a recipe is of, what it leaves open, and what of it the trainer does not do.

    `used` are the fields of `Config` by name; where they name no recipe there is nothing to say.
    """
    if used["recipe"] is None:
        return []
    recipe = asked_recipe(used["recipe"], used)
    trained_on = f", trained on {recipe.data}" if recipe.data else ""
    found = [f"Recipe {recipe.name}:{recipe.variant} is of {recipe.model}{trained_on}."]
    said = [name for name in SAID if getattr(recipe, name) is None]
    if used["steps"] is not None and "epochs" in said:
        said.remove("epochs")
    values = {name: "the trainer's own" if used[name] is None else used[name] for name in said}
    if said:
        words = ", ".join(f"{name} (here {value})" for name, value in values.items())
        found.append(f"It does not say {words}.")
    held = "nf4" if used["quantize"] == "nf4" else used["precision"]
    if recipe.precision not in (None, held):
        found.append(f"It has its base in {recipe.precision}; here it is in {held}.")
    return found


def recipe_table() -> str:
    """Every method of every bundled recipe, a line each, as --recipe takes it."""
    rows = [["recipe", *LISTED.values()]]
    for name in recipe_names():
        for variant, values in recipe_methods(name).items():
            cells = [str(values.get(key, "")) for key in LISTED]
            rows.append([f"{name}:{variant}", *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [map(str.ljust, row, widths) for row in rows]
    return "\n".join("  ".join(line).rstrip() for line in lines)
