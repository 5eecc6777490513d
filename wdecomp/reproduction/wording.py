"""Sentences and tables of the page, made from figures alone."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from wdecomp.reproduction.figures import Runs
from wdecomp.reproduction.trials import Trial

NAMES = {"full": "FT", "lora": "LoRA", "dora": "DoRA", "vera": "VeRA", "dvora": "DVoRA"}
WEIGHTS = {"q": "query", "v": "value"}  # the encoder's own names


def order(runs: Runs, one: Trial, other: Trial, name: str = "", than: str = "") -> str:
    """How often one setting scores above another, and by how much."""
    names = name or NAMES[one.method], than or NAMES[other.method]
    return above(runs.scores(one), runs.scores(other), *names)


def above(ours: Sequence[float], theirs: Sequence[float], name: str, than: str) -> str:
    """In how many seeds one is above the other, and by how much.

    >>> above([0.75, 0.76], [0.74, 0.77], "DoRA", "LoRA")
    'DoRA above LoRA in 1 of 2 seeds, by +0.000 [-0.010, +0.010]'
    """
    count = sum(a > b for a, b in zip(ours, theirs, strict=True))
    return f"{name} above {than} in {count} of {len(ours)} seeds, by {gain(ours, theirs)}"


def gain(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """What one scores above the other: "+0.001 [-0.002, +0.004]", mean and range of the seeds."""
    steps = [a - b for a, b in zip(ours, theirs, strict=True)]
    return f"{sum(steps) / len(steps) + 0.0:+.3f} [{min(steps):+.3f}, {max(steps):+.3f}]"


def settled(
    scores: Mapping[str, tuple[Sequence[float], Sequence[float]]], name: str, than: str
) -> str:
    """Where one is above the other in every seed, in some, and in none.

    >>> settled({"r = 4": ([1, 2], [0, 1]), "r = 8": ([1, 2], [2, 1])}, "DoRA", "LoRA")
    'DoRA is above LoRA in every seed at r = 4; DoRA is above LoRA in some seeds at r = 8'
    """
    found: dict[str, list[str]] = {}
    for where, (ours, theirs) in scores.items():
        above = [a > b for a, b in zip(ours, theirs, strict=True)]
        said = f"{name} is above {than} in some seeds at"
        if all(above):
            said = f"{name} is above {than} in every seed at"
        elif not any(above):
            said = f"{name} is not above {than} in any seed at"
        found.setdefault(said, []).append(where)
    return "; ".join(f"{said} {', '.join(places)}" for said, places in found.items())


def sign(low: float, high: float, paper: float) -> str:
    """Whether figures between low and high have the sign of the paper's.

    >>> sign(-0.5, -0.1, -0.31), sign(0.1, 0.2, -0.31), sign(-0.1, 0.2, -0.31)
    ("the paper's sign", 'the other sign in every seed', 'a sign that changes with the seed')
    """
    if min(low * paper, high * paper) > 0:
        return "the paper's sign"
    if max(low * paper, high * paper) < 0:
        return "the other sign in every seed"
    return "a sign that changes with the seed"


def spread_text(row: Any, style: str) -> str:
    """Mean, least and largest: "0.75 [0.74, 0.76]"."""
    mean, low, high = (format(getattr(row, key), style) for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def rows_of(table: pd.DataFrame) -> Iterator[Any]:
    """A table's rows, figures by name."""
    return iter(table.itertuples())


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
