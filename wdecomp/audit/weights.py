"""Rules about weights, of any method."""

import re
from collections.abc import Iterator

from wdecomp.audit.finding import Finding, Rule, Severity
from wdecomp.audit.seen import Seen, counted
from wdecomp.names import place

NEAR_FLOOR = 2.0  # times the ΔD that rounding alone gives
NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")  # of a layer or an expert: all but it is alike
REPLACED_FROM = 0.8  # mean ΔD: columns that know nothing of the base's

NONFINITE = Rule(
    "nonfinite",
    "NaN or infinity in the tuned weights",
    "Do not use this checkpoint: take an earlier one, and look for overflow in 16 bits.",
)
NONFINITE_BASE = Rule(
    "nonfinite-base",
    "NaN or infinity in the base",
    "Fetch the base again, or look at the tool that wrote it.",
)
UNCHANGED = Rule(
    "unchanged",
    "weights of a full checkpoint equal the base's",
    "Look whether they were frozen on purpose, or saved from the wrong object.",
)
MISSING = Rule(
    "missing-tensors",
    "the tuned checkpoint has not all of the base's weights",
    "Look whether all shards were saved; heads that are tied to the embedding may be missing.",
)
REPLACED = Rule(
    "replaced",
    "weights have nothing in common with the base's",
    "A new head is as it should be; a layer was initialised anew or loaded into the wrong place.",
)
FLOOR = Rule(
    "at-floor",
    "changes of direction are no larger than rounding makes them",
    "Save the tuned weights in float32: at this dtype the figures show rounding, not training.",
)


def nonfinite(seen: Seen) -> Iterator[Finding]:
    """NaN and infinity, by whose they are."""
    for rule, column in ((NONFINITE, "nonfinite_tuned"), (NONFINITE_BASE, "nonfinite_base")):
        rows = seen.facts[seen.facts[column] > 0]
        if len(rows):
            count = int(rows[column].sum())
            message = f"{count} outputs of {counted(rows, seen.facts)} tensors hold NaN or infinity"
            yield seen.found(rule, "error", message, rows, outputs=count)


def unchanged(seen: Seen) -> Iterator[Finding]:
    """Matrices of a full checkpoint that equal the base's: all, in all layers, or in some."""
    if seen.is_adapter:
        return
    rows = seen.matrices
    same = rows[rows["unchanged"]]
    if len(same) and len(same) == len(rows):
        yield _all_unchanged(seen)
        return
    like = rows["parameter"].str.replace(NUMBER, "N", regex=True)
    whole = rows.groupby(like)["unchanged"].transform("all")
    partly, wholly = same[~whole[same.index]], same[whole[same.index]]
    if len(partly):
        message = f"{counted(partly, rows)} matrices equal the base's, and their like do not"
        yield seen.found(UNCHANGED, "warning", message, partly)
    if len(wholly):
        message = f"{counted(wholly, rows)} matrices equal the base's, and so do their like"
        yield seen.found(UNCHANGED, "note", message, wholly)


def _all_unchanged(seen: Seen) -> Finding:
    rows = seen.matrices
    vectors = seen.facts.drop(rows.index)
    trained = vectors[~vectors["unchanged"]]
    message = f"all {len(rows)} matrices equal the base's"
    if len(trained):  # biases or norms alone, as in BitFit and LN tuning
        message += f", and {counted(trained, vectors)} vectors do not"
        return seen.found(UNCHANGED, "note", message, rows)
    return seen.found(UNCHANGED, "error", f"{message}: nothing was trained, or not saved", rows)


def missing(seen: Seen) -> Iterator[Finding]:
    """Weights of the base that a full checkpoint has not."""
    weights = [name for name in seen.missing if name.endswith(".weight")]
    inside = tuple(name for name in weights if place(name).layer is not None)
    if inside:
        message = f"{len(inside)} weights of layers are in the base and not in this checkpoint"
        yield seen.found(MISSING, "warning", message, inside)
    outside = tuple(name for name in weights if name not in set(inside))
    if outside:
        message = f"{len(outside)} weights outside the layers are not in this checkpoint"
        yield seen.found(MISSING, "note", message, outside)


def replaced(seen: Seen) -> Iterator[Finding]:
    """Weights that are stored whole and have another direction altogether."""
    turned = seen.modules[seen.modules["delta_direction"] >= REPLACED_FROM]
    rows = seen.stored[seen.stored["parameter"].isin(turned["parameter"])]
    inside = rows[rows["layer"].notna()]
    for part, where in ((inside, "in the layers"), (rows.drop(inside.index), "outside the layers")):
        if len(part):
            mean = float(turned.loc[part["parameter"], "delta_direction"].mean())
            message = f"{len(part)} matrices {where} have a new direction (mean dD {mean:.2f})"
            severity: Severity = "warning" if part is inside else "note"
            yield seen.found(REPLACED, severity, message, part, delta_direction=mean)


def at_floor(seen: Seen) -> Iterator[Finding]:
    """Full checkpoints whose changes of direction are those of rounding."""
    rows = seen.modules[seen.modules["floor_delta_direction"] > 0]
    low = rows[rows["delta_direction"] <= NEAR_FLOOR * rows["floor_delta_direction"]]
    if len(low):
        ratio = float((low["delta_direction"] / low["floor_delta_direction"]).median())
        dtype = str(low["dtype_tuned"].iloc[0])
        message = (
            f"in {counted(low, rows)} matrices dD is about what rounding to {dtype} gives "
            f"({ratio:.2g} times)"
        )
        severity: Severity = "warning" if 2 * len(low) >= len(rows) else "note"
        yield seen.found(FLOOR, severity, message, low, times_floor=ratio, dtype=dtype)
