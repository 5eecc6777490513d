"""What came out of the trials, as tables: a row per setting, over its seeds.

Where a column is called "mean", "low" and "high" are the least and the largest of the seeds.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import pandas as pd

from wdecomp.reproduction.running import Done
from wdecomp.reproduction.trials import Trial
from wdecomp.stats import module_fits
from wdecomp.table import Results

N_LATE = 4  # checkpoints, as the paper has: three of the training and its end
SPREAD = ["mean", "low", "high"]


class Runs:
    """Trials that have been run, to be asked by what they are."""

    def __init__(self, done: Iterable[Done]) -> None:
        self._done = {each.trial: each for each in done}
        self.seeds = sorted({trial.seed for trial in self._done})

    def of(self, trial: Trial) -> list[Done]:
        """Those of one setting, a seed each."""
        return [self._done[replace(trial, seed=seed)] for seed in self.seeds]

    def one(self, trial: Trial, seed: int) -> pd.DataFrame:
        """The table of matrices of one of them."""
        results = self._done[replace(trial, seed=seed)].results
        assert results is not None  # only trials in NF4 have none
        return results.modules

    def scores(self, trial: Trial) -> list[float]:
        """MRR@10 of each seed."""
        return [each.outcome.mrr for each in self.of(trial)]

    def beside(self, one: Trial, other: Trial) -> tuple[list[float], list[float]]:
        """MRR@10 of two settings, a seed each."""
        return self.scores(one), self.scores(other)


def score_table(runs: Runs, trials: Sequence[Trial]) -> pd.DataFrame:
    """For each setting its method, rank, share, percent trained, and MRR@10 over the seeds."""
    return pd.DataFrame(
        {
            "method": each.method,
            "rank": each.rank,
            "share": each.share,
            "percent": runs.of(each)[0].outcome.percent,
            **spread(runs.scores(each)),
        }
        for each in trials
    )


def correlation_table(runs: Runs, trials: Sequence[Trial], modules: Sequence[str]) -> pd.DataFrame:
    """ΔM with ΔD, for each setting, module kind and axis.

    Columns decay, method, module, axis; mean, low, high of r, pooled over layers and the last four
    checkpoints, as in the paper; the means over seeds of r within a step (`within_step`), over all
    columns of the last checkpoint (`per_column`), of r with ΔM/m0 (`relative`), of the slope, and
    of the growth ratio.
    """
    rows = []
    for each in trials:
        found = [_correlations(done.results, tuple(modules)) for done in runs.of(each)]
        together = pd.concat(found).groupby(["module", "axis"], sort=False)
        for key, part in together:
            keys = {"decay": each.decay, "method": each.method, "module": key[0], "axis": key[1]}
            means = part[["within_step", "per_column", "relative", "slope", "growth_ratio"]].mean()
            rows.append(keys | spread(part["pooled"]) | means.to_dict())
    return pd.DataFrame(rows)


def movement_table(runs: Runs, one: Trial, other: Trial) -> pd.DataFrame:
    """How far two methods moved at the end, a row per module kind and layer, means over seeds.

    Columns module, layer; delta_direction and delta_magnitude of each as `…_METHOD`.
    """
    tables = []
    for each in (one, other):
        found = pd.concat(_last(done.results) for done in runs.of(each))
        means = found.groupby(["module", "layer"])[["delta_direction", "delta_magnitude"]].mean()
        tables.append(means.add_suffix(f"_{each.method}"))
    return tables[0].join(tables[1]).reset_index()


def late(modules: pd.DataFrame) -> pd.DataFrame:
    """The rows of the last checkpoints."""
    return modules[modules["step"].isin(sorted(modules["step"].unique())[-N_LATE:])]


def spread(values: Iterable[float]) -> dict[str, float]:
    """Their mean, and the least and the largest."""
    series = pd.Series(list(values), dtype=float)
    return dict(zip(SPREAD, (series.mean(), series.min(), series.max()), strict=True))


def _correlations(results: Results | None, modules: tuple[str, ...]) -> pd.DataFrame:
    assert results is not None  # only trials in NF4 have none
    points = late(results.modules)
    of_modules = module_fits(points[points["module"].isin(modules)])
    of_columns = results.fits[results.fits["module"].isin(modules)]

    def figure(fits: pd.DataFrame, **wanted: str) -> "pd.Series[float]":
        for column, value in ({"response": "delta_magnitude"} | wanted).items():
            fits = fits[fits[column] == value]
        return fits.set_index(["module", "axis"])["value"]

    growth = _last(results, axis=None).groupby(["module", "axis"])["growth_ratio"].mean()
    figures = {
        "pooled": figure(of_modules, grouping="pooled", estimator="pearson"),
        "within_step": figure(of_modules, grouping="within_step", estimator="pearson"),
        "relative": figure(
            of_modules, grouping="pooled", estimator="pearson", response="relative_delta_magnitude"
        ),
        "slope": figure(of_modules, grouping="pooled", estimator="slope"),
        "per_column": figure(of_columns, grouping="per_column", estimator="pearson"),
        "growth_ratio": growth,
    }
    return pd.DataFrame(figures).loc[figures["pooled"].index].reset_index()


def _last(results: Results | None, axis: str | None = "output") -> pd.DataFrame:
    """The rows of the last checkpoint."""
    assert results is not None
    table = results.modules
    last: pd.DataFrame = table[table["step"] == table["step"].max()]
    return last if axis is None else last[last["axis"] == axis]
