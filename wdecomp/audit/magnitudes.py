"""Rules about DoRA's magnitudes."""

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from wdecomp.audit.finding import Finding, Rule, Severity
from wdecomp.audit.seen import Seen, counted
from wdecomp.dtypes import PRECISION

STILL = 0.95  # of the magnitudes of a matrix: then it did not move
UNIFORM = 0.6  # spread over mean of relative changes: three quarters of them are one number
NOTICEABLE = 1e-4  # relative change of magnitudes that is more than rounding
UNRELATED, FAR = 0.3, 0.05  # correlation with and distance from the base's norms

FROZEN = Rule(
    "frozen-magnitude",
    "DoRA's magnitudes did not move",
    "Keep magnitudes in float32 while they are trained, give them to the optimizer, and train "
    "again; changes of magnitude of this run are rounding, not learning.",
)
SILENT = Rule(
    "silent-lora",
    "DoRA was asked for and there are no magnitudes",
    "It is a LoRA: train again with a library that keeps use_dora, or save the magnitudes too.",
)
NEGATIVE = Rule(
    "negative-magnitude",
    "magnitudes below zero turn columns around",
    "Lower the learning rate of the magnitudes, or take their absolute value and evaluate again.",
)
ZERO = Rule(
    "zero-magnitude",
    "magnitudes of zero switch outputs off",
    "Look whether the magnitudes were initialised from the base and saved whole.",
)
ZERO_ROWS = Rule(
    "zero-rows",
    "columns of the base are zero and have no direction",
    "PEFT divides by their norm: leave these modules out of DoRA's targets, or use LoRA there.",
)
MISORDERED = Rule(
    "misordered-magnitude",
    "magnitudes of q or k are in torchtune's order of rows",
    "Bring them into the base's order, as the rows of lora_B are: PEFT loads another model than "
    "was trained.",
)
DECAYED = Rule(
    "decay-dominated",
    "magnitudes shrank by nearly one factor, as weight decay makes them",
    "Set the weight decay of magnitudes (and of fully tuned weights) to 0 before reading dM; such "
    "a run's correlation of dM with dD is negative by arithmetic.",
)
OTHER_BASE = Rule(
    "base-mismatch",
    "magnitudes do not belong to this base",
    "Compare with the base that the adapter was trained on; --candidate-base tells which of "
    "several it is.",
)


def silent_lora(seen: Seen) -> Iterator[Finding]:
    """DoRA by its config or its label, and no magnitude."""
    config = seen.config
    asked = (
        seen.method.endswith("dora")
        or config.get("use_dora") is True
        or config.get("peft_type") == "DORA"
        or config.get("fine_tune_type") == "dora"
    )
    of_factors = seen.adapted[seen.adapted["rank"].notna()]
    without = of_factors[of_factors["magnitude_dtype"].isna()]
    if asked and len(without):
        alone = len(without) == len(of_factors)
        message = f"{counted(without, of_factors)} matrices have no magnitude"
        yield seen.found(
            SILENT, "error" if alone else "warning", message, without, without=len(without)
        )


def is_still(rows: pd.DataFrame) -> "pd.Series[bool]":
    """Whether the magnitudes of each matrix are those that training began with."""
    unmoved = rows["magnitude_initial"] + rows["magnitude_rounded"]
    return unmoved >= STILL * rows["magnitudes"]


def frozen(seen: Seen) -> Iterator[Finding]:
    """Magnitudes that are the base's norms still, while the directions were trained."""
    rows = seen.with_magnitude
    rows = rows[rows["norm_b"] != 0]
    still = rows[is_still(rows)]
    if still.empty:
        return
    typical = float(np.median(still["norm_base"] / np.sqrt(still["magnitudes"])))
    rounded = still["magnitude_rounded"].sum() > still["magnitude_initial"].sum()
    grids = still["magnitude_grid"].dropna()
    dtype = str(still["magnitude_dtype"].iloc[0])
    grid = str(grids.mode().iloc[0]) if rounded else dtype
    shown = f"the base's norms rounded to {grid}" if rounded else "the base's norms still"
    yield seen.found(
        FROZEN,
        "error" if len(still) == len(rows) else "warning",
        f"{counted(still, rows)} magnitude vectors are {shown}: {_why(grid, dtype, typical)}",
        still,
        magnitudes=int(still["magnitudes"].sum()),
        equal_to_norm=int(still["magnitude_initial"].sum()),
        rounded_norm=int(still["magnitude_rounded"].sum()),
        stored_as=dtype,
        typical_magnitude=typical,
        spacing=2 * _half_spacing(typical, grid),
    )


def _why(grid: str, dtype: str, typical: float) -> str:
    if PRECISION.get(grid, 24) >= PRECISION["F32"]:
        return "no optimizer step reached them"
    half = _half_spacing(typical, grid)
    kept = "" if grid == dtype else f", if they were {grid} while trained"
    return (
        f"at {typical:.3g} {grid} has steps of {2 * half:.2g}, so that an update below {half:.2g} "
        f"(Adam's, at a learning rate below that) is rounded away{kept}; or none reached them"
    )


def _half_spacing(typical: float, dtype: str) -> float:
    """Half the distance of a number from the next one that a dtype has."""
    return math.ldexp(0.5, math.frexp(typical)[1] - PRECISION.get(dtype, 24))


def signs(seen: Seen) -> Iterator[Finding]:
    """Magnitudes below zero, and of zero."""
    for rule, column, what in (
        (NEGATIVE, "magnitude_negative", "below zero"),
        (ZERO, "magnitude_zero", "zero"),
    ):
        rows = seen.with_magnitude[seen.with_magnitude[column] > 0]
        if len(rows):
            count, of = int(rows[column].sum()), int(rows["magnitudes"].sum())
            message = f"{count} of {of} magnitudes in {len(rows)} matrices are {what}"
            yield seen.found(rule, "warning", message, rows, count=count)


def zero_rows(seen: Seen) -> Iterator[Finding]:
    """Zero columns of the base, on the axis that has magnitudes; else of outputs."""
    inputs = seen.matrices["magnitude_axis"] == "input"
    zeros = seen.matrices["zero_outputs"].where(~inputs, seen.matrices["zero_inputs"])
    rows = seen.matrices[(zeros > 0) & seen.matrices["layer"].notna()]
    with_magnitude = rows[rows["magnitude_dtype"].notna()]
    if len(with_magnitude):
        count, where = int(zeros[with_magnitude.index].sum()), len(with_magnitude)
        of_peft = "peft_type" in seen.config
        message = f"{count} zero columns of the base in {where} matrices with magnitudes"
        message += ": 0/0 is NaN in PEFT" if of_peft else ""
        severity: Severity = "error" if of_peft else "warning"
        yield seen.found(ZERO_ROWS, severity, message, with_magnitude, count=count)
    elif len(rows):
        count = int(zeros[rows.index].sum())
        message = f"{count} zero columns of the base in {len(rows)} matrices: NaN in PEFT's DoRA"
        yield seen.found(
            ZERO_ROWS, "warning" if seen.is_base else "note", message, rows, count=count
        )


def misordered(seen: Seen) -> Iterator[Finding]:
    """Magnitudes of q and k in torchtune's order."""
    rows = seen.with_magnitude[seen.with_magnitude["magnitude_misordered"].eq(True)]
    if len(rows):
        kinds = " and ".join(sorted(rows["module"].unique()))
        message = f"magnitudes of {kinds} are interleaved per head in {len(rows)} matrices"
        yield seen.found(MISORDERED, "error", message, rows)


def decayed(seen: Seen) -> Iterator[Finding]:
    """Columns that shrank by nearly one factor, in at least half of what could do so."""
    rows = seen.with_magnitude if seen.is_adapter else seen.stored[~seen.stored["unchanged"]]
    mean, spread = rows["growth_mean"], rows["growth_spread"]
    shrunk = rows[(mean <= -NOTICEABLE) & (spread <= UNIFORM * mean.abs())]
    if len(shrunk) and 2 * len(shrunk) >= len(rows):
        factor = float(shrunk["growth_mean"].median())
        spread_of = float(shrunk["growth_spread"].median())
        message = (
            f"in {counted(shrunk, rows)} matrices the columns changed in magnitude by "
            f"{100 * factor:.2g} % with a spread of {100 * spread_of:.2g} %"
        )
        yield seen.found(
            DECAYED, "warning", message, shrunk, growth_mean=factor, growth_spread=spread_of
        )


def other_base(seen: Seen) -> Iterator[Finding]:
    """Magnitudes that are far from the base's norms and do not even rise with them."""
    rows = seen.with_magnitude[~seen.with_magnitude["magnitude_misordered"].eq(True)]
    rows = rows[rows["magnitude_correlation"].notna()]
    if rows.empty:
        return
    correlation = float(rows["magnitude_correlation"].median())
    off = distance(rows)
    if correlation < UNRELATED and off > FAR:
        message = (
            f"magnitudes are {100 * off:.2g} % off the base's norms and do not rise with "
            f"them (r = {correlation:.2f}): trained on another base, or far from any"
        )
        yield seen.found(
            OTHER_BASE, "warning", message, rows, correlation=correlation, distance=off
        )


def distance(rows: pd.DataFrame) -> float:
    """How far magnitudes are from the base's norms.

    The root mean square of (m − m0)/m0 over the columns of a matrix; its median over matrices.
    """
    return float((rows["growth_mean"] ** 2 + rows["growth_spread"] ** 2).pow(0.5).median())
