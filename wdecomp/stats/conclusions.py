"""What the tables of a run allow to be concluded, and what not, in plain sentences."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from wdecomp.stats.bootstrap import Interval
from wdecomp.stats.estimators import Floats, pearson, samples
from wdecomp.stats.kinds import Columns, Key, count, kinds, mean, of_last_step

KEYS = ("run", "stack", "module")
FIRST = "q"  # the module kind of the paper's Fig. 2
FEWEST_LAYERS = 2  # below, there is no relation between layers to speak of
IN_SHORT = {"delta_direction": "dD", "delta_magnitude": "dM"}
FIGURES = (
    *("step", "layer", "dtype_tuned", "growth_ratio"),
    *("signed_delta_magnitude", "relative_delta_magnitude"),
    *(f"{of}{figure}" for of in ("", "floor_", "null_") for figure in IN_SHORT),
)
FLOORED = 2.0  # times the floor
SHRUNK = -0.9  # of ΔM: the mean of m − m0, so that nearly all columns became shorter
ALIKE = 0.15  # standard deviation over layers of relative ΔM, of their mean
NEAR = 1.25  # times the ΔM of random updates, or the inverse
OF_NOTE = 0.2  # |r| from which a sign is worth a word


@dataclass(frozen=True)
class Conclusion:
    """What can be said of one run's module kind.

    findings, in this order, of:
        floor: rounding to the stored dtype explains ΔD, or ΔM; nothing else is said
        scaled: nothing but rounding turned a column; nothing else is said
        decay: the magnitudes shrink in proportion to their size, as weight decay makes them
        few: the points admit no correlation
        reversal: pooled and within-step correlation have opposite signs (Simpson's paradox)
        rises, falls: the sign of the pooled correlation is settled by its interval
        time: it is, but not within a step, so that growth in time alone may be its cause
        open: it is not
        null, held: ΔM is that of random updates of the same size, or smaller
    text: the same as a sentence or two; ASCII.
    """

    run: str
    stack: str
    module: str
    axis: str
    findings: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Correlation:
    """Pearson's r of ΔM with ΔD, and its 95 % interval: from whole layers where there is one."""

    value: float
    interval: Interval

    @property
    def settled(self) -> bool:
        low, high = self.interval
        return low > 0 or high < 0

    def opposite(self, other: "Correlation") -> bool:
        """Whether both are of note, with unlike signs."""
        low, high = sorted([self.value, other.value])
        return low <= -OF_NOTE and high >= OF_NOTE

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:+.2f} [{low:+.2f},{high:+.2f}]"


def correlations(fits: pd.DataFrame, axis: str) -> dict[Key, dict[str, Correlation]]:
    """(run, stack, module) → grouping → the correlation of its matrices along one axis."""
    found: dict[Key, dict[str, Correlation]] = {}
    wanted = (fits["axis"] == axis) & (fits["estimator"] == "pearson")
    fit: Any
    for fit in fits[wanted & (fits["response"] == "delta_magnitude")].itertuples():
        clustered = not math.isnan(fit.cluster_low)
        interval = (fit.cluster_low, fit.cluster_high) if clustered else (fit.low, fit.high)
        of_kind = found.setdefault((fit.run, fit.stack, fit.module), {})
        of_kind[str(fit.grouping)] = Correlation(fit.value, interval)
    return found


def conclusions(
    modules: pd.DataFrame, fits: pd.DataFrame, axis: str = "output"
) -> list[Conclusion]:
    """A conclusion per run and module kind of two layers or more, the queries' first.

    Args:
        modules: the table of matrices.
        fits: statistics of the same rows.
        axis: "output" or "input".
    """
    found, pearson_of = [], correlations(fits, axis)
    for key, rows in kinds(modules[modules["axis"] == axis], KEYS, FIGURES):
        if count(rows["layer"]) < FEWEST_LAYERS:
            continue
        findings, sentences = zip(*_Kind(rows, pearson_of[key]).said(), strict=True)
        where = dict(zip(KEYS, (str(part) for part in key), strict=True))
        found.append(Conclusion(**where, axis=axis, findings=findings, text=" ".join(sentences)))
    runs = list(dict.fromkeys(each.run for each in found))
    return sorted(found, key=lambda each: (runs.index(each.run), each.module != FIRST))


@dataclass(frozen=True)
class _Kind:
    """One run's module kind along one axis: its matrices, Pearson's r of ΔM, what they show."""

    rows: Columns
    pearson: Mapping[str, Correlation]

    def said(self) -> Iterator[tuple[str, str]]:
        """Findings, each with its sentence."""
        floored = self._floored()
        if floored:
            yield "floor", self._floor_text(floored)
            return
        if np.isnan(self.last["growth_ratio"]).all():
            yield "scaled", "No column turned: magnitudes alone changed, and dD is rounding."
            return
        decayed = self._decayed()
        if decayed:
            yield "decay", self._decay_text()
        yield self._sign()
        ratio = self._over_null()
        if not decayed and ratio < NEAR:
            finding = "null" if ratio > 1 / NEAR else "held"
            yield finding, self._null_text(finding, ratio)

    @cached_property
    def last(self) -> Columns:
        """The rows of the last step."""
        return of_last_step(self.rows)

    @property
    def layers(self) -> str:
        return f"{count(self.rows['layer'])} layers"

    def _floored(self) -> str | None:
        """The first figure that is within twice its floor in every layer."""
        for figure in IN_SHORT:
            floor = self.last[f"floor_{figure}"]
            if ((floor > 0) & (self.last[figure] <= FLOORED * floor)).all():
                return figure
        return None

    def _floor_text(self, figure: str) -> str:
        dtype = " and ".join(sorted(set(self.last["dtype_tuned"])))
        measured, floor = (mean(self.last[name]) for name in (figure, f"floor_{figure}"))
        return (
            f"{IN_SHORT[figure]} ({measured:.2g}) is what rounding to {dtype} gives by itself "
            f"({floor:.2g}): nothing can be concluded of training."
        )

    def _decayed(self) -> bool:
        shrunk = self.last["signed_delta_magnitude"] <= SHRUNK * self.last["delta_magnitude"]
        relative = self.last["relative_delta_magnitude"]
        return bool(shrunk.all() and _spread(relative) <= ALIKE * mean(relative))

    def _decay_text(self) -> str:
        relative = 100 * self.last["relative_delta_magnitude"]
        return (
            f"All magnitudes shrink in proportion to their size ({np.nanmin(relative):.3g} to "
            f"{np.nanmax(relative):.3g} % in every layer), as weight decay makes them: "
            "this dM tells of decay, not of learning."
        )

    def _sign(self) -> tuple[str, str]:
        pooled, within = self.pearson["pooled"], self.pearson["within_step"]
        if math.isnan(pooled.value):
            points = f"{len(self.rows['layer'])} points"
            return "few", f"{self.layers}, {points}: no correlation can be had."
        if pooled.opposite(within):
            return "reversal", self._reversal_text(pooled, within)
        if not pooled.settled:
            return "open", f"r = {pooled}: {self.layers} leave its sign open."
        word = "rises" if pooled.value > 0 else "falls"
        relation = f"dM {word} with dD: r = {pooled}"
        if within.settled or math.isnan(within.value):
            return word, f"{relation}, a sign that {self.layers} settle."
        return "time", (
            f"{relation}, but within a step {within}: growth in time alone may be the cause; "
            f"{self.layers} leave open what holds across layers."
        )

    def _reversal_text(self, pooled: Correlation, within: Correlation) -> str:
        in_time = self.pearson["within_layer"].value
        why = ", because both grow in time" if in_time > 0 else ""
        settled = {
            (True, True): f"{self.layers} settle both",
            (True, False): f"{self.layers} settle the first alone",
            (False, True): f"{self.layers} settle the second alone",
            (False, False): f"{self.layers} settle neither",
        }[pooled.settled, within.settled]
        return (
            f"Pooled and within-step signs differ, r = {pooled} and {within} "
            f"(Simpson's paradox{why}); {settled}."
        )

    def _over_null(self) -> float:
        real, null = (np.nansum(self.last[f"{of}delta_magnitude"]) for of in ("", "null_"))
        return float(real / null) if null > 0 else math.nan

    def _null_text(self, finding: str, ratio: float) -> str:
        start = f"dM is {ratio:.2f} times that of random updates of the same size"
        if finding == "held":
            return f"{start}: something holds the magnitudes."
        x, y = (self.rows[f"null_{figure}"] for figure in IN_SHORT)
        ((_, points),) = samples(x, (y,))
        theirs = "" if points is None else f", whose r would be {pearson(points).value:+.2f}"
        return f"{start}{theirs}: in this no different from them."


def _spread(values: Floats) -> float:
    """The standard deviation of those that are not NaN; NaN of fewer than two."""
    known = values[~np.isnan(values)]
    return float(known.std(ddof=1)) if len(known) > 1 else math.nan
