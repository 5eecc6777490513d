"""Rules about a run as a whole: what only several steps, or the fits, can tell."""

from collections.abc import Iterator

import pandas as pd

from wdecomp.audit.finding import Finding, Rule
from wdecomp.audit.magnitudes import FROZEN
from wdecomp.audit.seen import OUTPUT, Seen
from wdecomp.table import Results

SAME_SIZE = 1e-3  # relative range of ΔM over the steps
TURNED_ON = 1.1  # times the ΔD of the first step

POOLED = Rule(
    "pooled-sign",
    "correlations of dM with dD have one sign pooled and the other within a step",
    "Read the figure within a step: both changes grow in time, so that pooling steps mixes the "
    "growth of a training into the relation between layers (Simpson's paradox).",
)


def pooled_sign(results: Results) -> Iterator[Finding]:
    """Module kinds whose pooled and within-step correlation exclude zero on opposite sides.

    By the intervals over points, which tell a pattern from noise in these figures; what resampled
    layers leave open, by wider ones, is said.
    """
    fits = results.fits
    of_interest = (fits["response"] == "delta_magnitude") & (fits["estimator"] == "pearson")
    fits = fits[of_interest & (fits["axis"] == OUTPUT) & (fits["low"] * fits["high"] > 0)]
    fits = fits.assign(settled=fits["cluster_low"] * fits["cluster_high"] > 0)
    keys = ["run", "stack", "module"]
    pooled, within = (
        fits[fits["grouping"] == grouping].set_index(keys)[["value", "settled"]]
        for grouping in ("pooled", "within_step")
    )
    both = pooled.join(within.add_suffix("_within"), how="inner")
    both = both[both["value"] * both["value_within"] < 0].reset_index()
    for run, rows in both.groupby("run", sort=False):
        shown = "; ".join(
            f"{row.stack}.{row.module} {row.value:+.2f} pooled, {row.value_within:+.2f} within a "
            f"step{'' if row.settled and row.settled_within else ' (open over layers)'}"
            for row in rows.itertuples()
        )
        evidence = {f"{row.stack}.{row.module}": f"{row.value:+.3f} / {row.value_within:+.3f}"
                    for row in rows.itertuples()}  # fmt: skip
        yield Finding(POOLED, "note", str(run), (), shown, evidence)


def frozen_over_steps(run: list[Seen]) -> Iterator[Finding]:
    """Merged checkpoints of a DoRA whose ΔM stays what it is while their ΔD grows."""
    last = run[-1]
    if len(run) < 2 or last.is_adapter or not last.method.endswith("dora"):
        return
    columns = ["parameter", "delta_magnitude", "delta_direction"]
    steps = pd.concat([seen.modules[columns] for seen in run], ignore_index=True)
    by_matrix = steps.groupby("parameter")
    size, turn = by_matrix["delta_magnitude"], by_matrix["delta_direction"]
    still = (size.max() - size.min() <= SAME_SIZE * size.max()) & (size.count() == len(run))
    still &= turn.last() > TURNED_ON * turn.first()
    names = tuple(still[still].index)
    if names:
        mean = float(size.last()[list(names)].mean())
        message = (
            f"dM of {len(names)} matrices stays {mean:.3g} at every step while dD grows: it is how "
            "norms were rounded once"
        )
        yield last.found(FROZEN, "warning", message, names, delta_magnitude=mean)
