"""Which of several bases a tuned checkpoint belongs to: the one that it is nearest to."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pandas as pd

from wdecomp.audit.factors import QUANTISED, UNQUANTISED
from wdecomp.audit.finding import Finding, Rule
from wdecomp.audit.magnitudes import OTHER_BASE, distance
from wdecomp.audit.seen import Seen, seen_in
from wdecomp.table import Results

CLEARLY = 0.5  # of the distance from the base that was named
NEAR = 0.1  # a base from which magnitudes or weights are further off may be none of theirs

UNKNOWN = Rule(
    "base-unknown",
    "nothing tells which base this belongs to",
    "LoRA's factors keep nothing of their base: its config's base_model_name_or_path is all there "
    "is.",
)


@dataclass(frozen=True)
class BaseFit:
    """How far a run is from one base.

    distance: median over matrices of the root mean square of (m − m0)/m0 for magnitudes, or of
        ‖ΔW‖/‖W0‖ for whole weights; NaN where neither is to be had.
    dtype: how most matrices of the base are stored.
    reason: why it cannot be compared with it, if it cannot.
    """

    run: str
    base: str
    distance: float = math.nan
    dtype: str = ""
    reason: str = ""


def base_fits(results: Results) -> list[BaseFit]:
    """How far the last step of every run is from the base of its comparison."""
    last = {seen.run: seen for seen in seen_in(results) if not seen.is_quantization}
    base = str(results.run["base"]["path"])
    return [
        BaseFit(seen.run, base, _distance(seen), _dtype(seen.matrices)) for seen in last.values()
    ]


def base_findings(fits: Iterable[BaseFit]) -> list[Finding]:
    """What candidates say of the base that was named, which is the first of each run."""
    by_run: dict[str, list[BaseFit]] = {}
    for fit in fits:
        by_run.setdefault(fit.run, []).append(fit)
    return [finding for run in by_run.values() for finding in _of_run(run[0], run[1:])]


def _of_run(named: BaseFit, others: list[BaseFit]) -> Iterator[Finding]:
    known = [fit for fit in others if math.isfinite(fit.distance)]
    if not known or not (math.isfinite(named.distance) or named.reason):
        message = "neither magnitudes nor whole weights to hold beside the bases"
        yield Finding(UNKNOWN, "note", named.run, (), message)
        return
    best = min(known, key=lambda fit: fit.distance)
    here = math.inf if named.reason else named.distance
    if best.distance > NEAR or not best.distance < CLEARLY * here:
        return
    quantised = best.dtype not in UNQUANTISED and named.dtype in UNQUANTISED
    message = f"{best.base} fits better: {best.distance:.2g} off it, " + (
        "and it cannot be compared with this base" if named.reason else f"{here:.2g} off this base"
    )
    evidence = {f"distance from {fit.base}": fit.distance for fit in [named, *known]
                if math.isfinite(fit.distance)}  # fmt: skip
    yield Finding(QUANTISED if quantised else OTHER_BASE, "error", named.run, (), message, evidence)


def _distance(seen: Seen) -> float:
    if len(seen.with_magnitude):
        return distance(seen.with_magnitude)
    return math.nan if seen.is_adapter else float(seen.matrices["relative_change"].median())


def _dtype(rows: pd.DataFrame) -> str:
    dtypes = rows["dtype_base"].mode()
    return str(dtypes.iloc[0]) if len(dtypes) else ""
