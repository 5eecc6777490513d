"""Rules about what an adapter adds: its factors, its scaling, its layers, its config."""

import re
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from wdecomp.audit.finding import Finding, Rule
from wdecomp.audit.magnitudes import is_still
from wdecomp.audit.seen import Seen, counted

PARTIAL_LAYERS = re.compile(r"\S+ is adapted in \d+ of \d+ layers \(not in .+\)")
A_LAYER = re.compile(r"(?:^|\.)\d+\.")  # in the name of a target
NO_ALPHA = "does not say with which alpha"
OVERWHELMING = 1.0  # ‖ΔW‖ over ‖W0‖
UNQUANTISED = ("BF16", "F16", "F32", "F64")
QUANTISED_NAME = re.compile(r"(?i)(?:[48]-?bit|nf4|fp4|int[48]|fp8|w[48]a16|gptq|awq|bnb)")

UNTRAINED = Rule(
    "untrained",
    "the adapter changes nothing",
    "Look whether its parameters were given to the optimizer, and whether it was saved after "
    "training.",
)
UNTRAINED_DIRECTION = Rule(
    "untrained-direction",
    "magnitudes moved and B is zero",
    "If directions were to be trained too, give lora_A and lora_B to the optimizer.",
)
DEFICIENT = Rule(
    "rank-deficient",
    "factors have a lower rank than they are stored with",
    "A lower rank holds the same change; look for dead or doubled directions, or a conversion "
    "that padded the factors.",
)
PARTIAL = Rule(
    "partial-layers",
    "some layers have no adapter",
    "Count the tensors of each layer: PEFT loses layers whose adapter is named like one, ZeRO-3 "
    "and FSDP lose what was not gathered. Ignore this if layers were left out on purpose.",
)
SCALING = Rule(
    "overwhelming-change",
    "an adapter's change is as large as the weights",
    "Look at alpha and r: the scaling may not be the one that it was trained with.",
)
ALPHA = Rule(
    "alpha-assumed",
    "the adapter does not say its alpha",
    "Save it with its metadata (diffusers 0.35 or later), or check that alpha was r.",
)
PATTERNS = Rule(
    "pattern-order",
    "patterns of ranks or alphas overlap: their order in the file decides",
    "PEFT sorts the patterns when it saves, so that training may have used another: make every "
    "pattern match modules of its own.",
)
QUANTISED = Rule(
    "quantised-base",
    "the adapter was trained on a quantised base",
    "Give that base by --base-dequantized: an adapter belongs to the dequantised weights.",
)


def untrained(seen: Seen) -> Iterator[Finding]:
    """Matrices that an adapter leaves as they were, or whose B is zero."""
    rows = seen.adapted
    zero = rows["norm_b"] == 0
    still = rows["magnitudes"].isna() | is_still(rows)
    dead = rows[rows["unchanged"] | (zero & still)]
    if len(dead):
        message = f"{counted(dead, rows)} adapted matrices are as they were" + (
            " (B is zero)" if zero[dead.index].all() else ""
        )
        yield seen.found(UNTRAINED, "error" if len(dead) == len(rows) else "warning", message, dead)
    alone = rows[zero & ~still & (rows["norm_a"] > 0)]
    if len(alone):
        message = f"B is zero in {counted(alone, rows)} adapted matrices: only magnitudes changed"
        yield seen.found(UNTRAINED_DIRECTION, "warning", message, alone)


def rank_deficient(seen: Seen) -> Iterator[Finding]:
    """Factors whose numerical rank is below what r and the matrix allow."""
    rows = seen.adapted[seen.adapted["numerical_rank"] > 0]
    nominal = rows.apply(_nominal, axis=1) if len(rows) else rows["rank"]
    low = rows[rows["numerical_rank"] < nominal]
    if len(low):
        least = low["numerical_rank"].min()
        half = (low["numerical_rank"] <= nominal[low.index] / 2).any()
        message = (
            f"{counted(low, rows)} pairs of factors have a rank below their r (down to {least:.0f} "
            f"of {int(low['rank'].max())})"
        )
        yield seen.found(
            DEFICIENT, "warning" if half else "note", message, low, numerical_rank=int(least)
        )


def _nominal(row: "pd.Series[Any]") -> int:
    shape = row["shape"]
    return min(int(row["rank"]), int(shape[0]), prod(int(size) for size in shape[1:]))


def partial_layers(seen: Seen) -> Iterator[Finding]:
    """Module kinds that only some layers have an adapter of, as pairing noted it."""
    noted = list(dict.fromkeys(note for note in seen.notes if PARTIAL_LAYERS.fullmatch(note)))
    if noted and not _names_layers(seen.config):
        yield seen.found(PARTIAL, "warning", "; ".join(noted), kinds=len(noted))


def _names_layers(config: Mapping[str, Any]) -> bool:
    """Whether somebody said which layers are to have an adapter."""
    lists = [config.get(field) for field in ("target_modules", "target_parameters")]
    targets = [target for each in lists if isinstance(each, list) for target in each]
    named = any(A_LAYER.search(target) for target in targets if isinstance(target, str))
    return named or bool(config.get("layers_to_transform"))


def overwhelming(seen: Seen) -> Iterator[Finding]:
    """Changes as large as what they are added to."""
    rows = seen.adapted[seen.adapted["relative_change"] >= OVERWHELMING]
    if len(rows):
        largest = float(rows["relative_change"].max())
        message = (
            f"in {counted(rows, seen.adapted)} matrices the change is as large as the weights (up "
            f"to {largest:.3g} times)"
        )
        scaling = {} if rows["scaling"].isna().all() else {"scaling": float(rows["scaling"].max())}
        yield seen.found(SCALING, "warning", message, rows, relative_change=largest, **scaling)


def alpha_assumed(seen: Seen) -> Iterator[Finding]:
    """No alpha in the file."""
    if any(NO_ALPHA in note for note in seen.notes):
        message = "the file has no alpha: alpha = r was taken, as diffusers does"
        yield seen.found(ALPHA, "warning", message, seen.adapted)


def pattern_order(seen: Seen) -> Iterator[Finding]:
    """Modules that several patterns match, to another value each."""
    names = seen.adapted["parameter"].str.removesuffix(".weight")
    clashes: dict[str, None] = {}
    hit = pd.Series(False, index=names.index)
    for field in ("rank_pattern", "alpha_pattern"):
        several, keys = _several(names, seen.config.get(field))
        hit |= several
        clashes |= dict.fromkeys(f"{field} {keys}" for keys in keys)
    if hit.any():
        message = f"{hit.sum()} matrices are matched by several patterns: {'; '.join(clashes)}"
        yield seen.found(PATTERNS, "warning", message, seen.adapted[hit])


def _several(names: "pd.Series[str]", pattern: Any) -> tuple["pd.Series[bool]", list[str]]:
    """Which names match keys of different values, and these keys.

    A key is matched as PEFT does, from a dot to the end; by RE2, which strangers cannot stall.
    """
    none = pd.Series(False, index=names.index)
    if not isinstance(pattern, Mapping) or len(pattern) < 2 or names.empty:
        return none, []
    text = pa.array(names.to_list(), pa.string())
    matching = pd.DataFrame(
        {key: pc.match_substring_regex(text, rf"^(.*\.)?({key})$").to_pylist() for key in pattern},
        index=names.index,
    )
    values = pd.Series(dict(pattern))
    several = matching.apply(lambda row: values[row[row].index].nunique() > 1, axis=1)
    if not several.any():
        return none, []
    keys = {
        " and ".join(f"{k!r}" for k in row[row].index) for _, row in matching[several].iterrows()
    }
    return several, sorted(keys)


def quantised_base(seen: Seen) -> Iterator[Finding]:
    """An adapter whose config names a quantised base, beside one that is not."""
    name, rows = seen.config.get("base_model_name_or_path"), seen.adapted
    named = isinstance(name, str) and QUANTISED_NAME.search(name)
    if named and len(rows) and rows["dtype_base"].isin(UNQUANTISED).all():
        message = f"its config names the quantised base {name!r}, and this base is not quantised"
        yield seen.found(QUANTISED, "warning", message, dtype_base=str(rows["dtype_base"].iloc[0]))
