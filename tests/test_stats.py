"""Statistics of result tables against scipy, dummy-variable regression and brute force."""

from collections.abc import Iterator
from random import Random

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from wdecomp.stats import FIT_COLUMNS, column_fits, module_fits
from wdecomp.stats.bootstrap import (
    cluster_draws,
    line_replicates,
    pearson_replicates,
    spearman_replicates,
)
from wdecomp.stats.estimators import Codes, Floats, Sample, sample

ORACLE = 1e-10  # float64 sums over at most 2,500 points, in another order
LINE = 1e-9  # the intercept of a resample is a difference of figures ten times its size
INVARIANT = 1e-8  # a shift by 100 spreads costs two digits, and hypothesis looks for the worst
KEYS = {"run": "r", "stack": "encoder", "module": "q", "axis": "output"}


def a_table(seed: int = 0, layers: int = 6, steps: int = 4, decimals: int = 6) -> pd.DataFrame:
    """Layers and steps each shift x and y, so that every grouping has another answer."""
    rng = np.random.default_rng(seed)
    layer, step = (g.ravel() for g in np.meshgrid(np.arange(layers), np.arange(steps)))
    drift, noise = rng.normal(size=(2, layers)), rng.normal(size=(4, layers * steps))
    x = 5.0 + step + drift[0, layer] + noise[0]
    y = 2.0 + 3.0 * step - 2.0 * drift[0, layer] + 3.0 * drift[1, layer] + x + noise[1:]
    return pd.DataFrame(
        KEYS
        | {"layer": pd.array(layer, dtype="Int64"), "step": pd.array(step * 10, dtype="Int64")}
        | {"delta_direction": np.round(x, decimals), "delta_magnitude": np.round(y[0], decimals)}
        | {"relative_delta_magnitude": y[1], "signed_delta_magnitude": y[2]}
    )


def some_columns(layers: int = 4, each: int = 300) -> pd.DataFrame:
    rng = np.random.default_rng(5)
    figures = rng.lognormal(size=(2, layers * each)).astype(np.float32)
    change = rng.normal(size=layers * each).astype(np.float32)
    names = ["magnitude_base", "delta_direction"]
    points = pd.DataFrame(dict(zip(names, figures, strict=True)) | {"delta_magnitude": change})
    return points.assign(layer=np.repeat(np.arange(layers), each))


def fit(
    table: pd.DataFrame, grouping: str, estimator: str, response: str = "delta_magnitude"
) -> pd.Series:
    fits = table if "estimator" in table else module_fits(table)
    chosen = (fits["grouping"] == grouping) & (fits["estimator"] == estimator)
    (row,) = (row for _, row in fits[chosen & (fits["response"] == response)].iterrows())
    return row


def figures(row: pd.Series) -> list[float]:
    return [row["value"], row["low"], row["high"]]


def xy(table: pd.DataFrame) -> tuple[Floats, Floats]:
    return table["delta_direction"].to_numpy(), table["delta_magnitude"].to_numpy()


def kept(x: Floats, y: Floats) -> Sample:
    points = sample(x, y)
    assert points is not None
    return points


def around(value: float, reach: float) -> list[float]:
    return [value, value - reach, value + reach]


def fisher(r: float, variance: float, n: int) -> list[float]:
    reach = 1.959963984540054 * np.sqrt(variance / (n - 3))
    return [r, np.tanh(np.arctanh(r) - reach), np.tanh(np.arctanh(r) + reach)]


def test_pooled_pearson_and_its_interval_are_scipys() -> None:
    found = stats.pearsonr(*xy(a_table()))
    expected = [found.statistic, *found.confidence_interval(0.95)]
    assert_allclose(figures(fit(a_table(), "pooled", "pearson")), expected, rtol=ORACLE)


def test_pooled_spearman_is_scipys_with_the_bonett_wright_interval_under_ties() -> None:
    table = a_table(decimals=0)
    rho = float(stats.spearmanr(*xy(table)).statistic)
    expected = fisher(rho, 1 + rho**2 / 2, len(table))
    assert_allclose(figures(fit(table, "pooled", "spearman")), expected, rtol=ORACLE)


def test_pooled_slope_and_intercept_are_scipys_with_students_t() -> None:
    found, t = stats.linregress(*xy(a_table())), stats.t.ppf(0.975, len(a_table()) - 2)
    slope = figures(fit(a_table(), "pooled", "slope"))
    intercept = figures(fit(a_table(), "pooled", "intercept"))
    assert_allclose(slope, around(found.slope, t * found.stderr), rtol=ORACLE)
    assert_allclose(intercept, around(found.intercept, t * found.intercept_stderr), rtol=ORACLE)


@pytest.mark.parametrize(("grouping", "by"), [("within_step", "step"), ("within_layer", "layer")])
def test_a_within_fit_is_the_regression_with_one_dummy_per_group(grouping: str, by: str) -> None:
    table = a_table().drop(index=[3, 11, 17])  # unequal groups
    x, y = xy(table)
    dummies = pd.get_dummies(table[by]).to_numpy(dtype=np.float64)
    design = np.column_stack([x, dummies])
    beta, (residual,), _, _ = np.linalg.lstsq(design, y)
    df = len(x) - design.shape[1]
    error = np.sqrt(residual / df * np.linalg.inv(design.T @ design)[0, 0])
    slope = around(beta[0], stats.t.ppf(0.975, df) * error)
    assert_allclose(figures(fit(table, grouping, "slope")), slope, rtol=ORACLE)

    x_left, y_left = (v - dummies @ np.linalg.lstsq(dummies, v)[0] for v in (x, y))
    n = len(x) - (dummies.shape[1] - 1)
    r = float(stats.pearsonr(x_left, y_left).statistic)
    rho = float(stats.spearmanr(x_left, y_left).statistic)
    assert_allclose(figures(fit(table, grouping, "pearson")), fisher(r, 1, n), rtol=ORACLE)
    spearman = fisher(rho, 1 + rho**2 / 2, n)
    assert_allclose(figures(fit(table, grouping, "spearman")), spearman, rtol=ORACLE)


def test_ranks_within_steps_keep_ties_that_subtracting_means_would_break_by_rounding() -> None:
    x = np.tile([0.0, 1.0, 3.0, 4.0, 7.0], 3)
    y = np.tile([2.0, 2.0, 1.0, 5.0, 3.0], 3)
    shift = np.repeat([0.1, 0.7, 1 / 3], 5)
    table = a_table(layers=5, steps=3).assign(delta_direction=x, delta_magnitude=y + shift)
    found = fit(table, "within_step", "spearman")["value"]
    assert_allclose(found, stats.spearmanr(x, y).statistic, rtol=ORACLE)


def test_simpsons_paradox_shows_as_opposite_signs() -> None:
    layer, step = np.tile(np.arange(6.0), 4), np.repeat(np.arange(4.0), 6)
    table = a_table().assign(delta_direction=10 * step + layer, delta_magnitude=10 * step - layer)
    pooled = [fit(table, "pooled", e)["value"] for e in ("pearson", "spearman", "slope")]
    within = [fit(table, "within_step", e)["value"] for e in ("pearson", "spearman", "slope")]
    assert min(pooled) > 0.8
    assert_allclose(within, [-1, -1, -1], rtol=ORACLE)


def brute_force(points: Sample, code: Codes, draws: Floats) -> Iterator[tuple[float, ...]]:
    """All four estimators by scipy on the points of each resample, written out."""
    for counts in draws.astype(int):
        chosen = np.concatenate(
            [np.flatnonzero(code == c) for c, k in enumerate(counts) for _ in range(k)]
        )
        x, y = points.x[chosen], points.y[chosen]
        line = stats.linregress(x, y)
        yield line.rvalue, stats.spearmanr(x, y).statistic, line.slope, line.intercept


@pytest.mark.parametrize("outlier", [0.0, 500.0])
def test_the_bootstrap_from_sums_and_shared_ranks_is_the_brute_force_one(outlier: float) -> None:
    table = a_table(decimals=0).drop(index=[2, 9, 10])  # ties, layers of unequal size
    # Resamples without the outlier lie far from the pooled mean that the sums are centred on.
    table["delta_direction"] += outlier * (table["layer"] == 5).to_numpy()
    table = table.assign(delta_magnitude=table["delta_magnitude"] * 1e4 + 1e5)
    points, code = kept(*xy(table)), table["layer"].to_numpy(dtype=np.intp)
    draws = cluster_draws(6)
    pearson, spearman, slope, intercept = np.array(list(brute_force(points, code, draws))).T
    slope = np.ldexp(slope, points.y_exponent - points.x_exponent)
    intercept = np.ldexp(intercept, points.y_exponent)
    assert_allclose(pearson_replicates(points.x, points.y, code, draws), pearson, rtol=ORACLE)
    assert_allclose(spearman_replicates(points, code, draws), spearman, atol=ORACLE)
    assert_allclose(line_replicates(points, code, draws), [slope, intercept], rtol=LINE)
    expected = np.quantile(np.stack([pearson, spearman, slope, intercept]), [0.025, 0.975], axis=1)
    fits = [fit(table, "pooled", e) for e in ("pearson", "spearman", "slope", "intercept")]
    found = [[row[side] for row in fits] for side in ("cluster_low", "cluster_high")]
    assert_allclose(found, expected, rtol=LINE)


def test_beyond_2000_points_the_ranks_among_all_points_are_held_fixed() -> None:
    columns = some_columns(layers=5, each=500)
    code = columns["layer"].to_numpy()
    points = kept(*(v.astype(np.float64) for v in xy(columns)))
    fixed = pearson_replicates(
        stats.rankdata(points.x), stats.rankdata(points.y), code, cluster_draws(5)
    )
    assert_array_equal(spearman_replicates(points, code, cluster_draws(5)), fixed)


def test_every_resample_draws_as_many_clusters_as_there_are_with_replacement() -> None:
    draws = cluster_draws(8)
    assert draws.shape == (2000, 8)
    assert_array_equal(draws.sum(axis=1), 8)
    # Multinomial: mean 1, variance 1 − 1/8; five standard errors of 2,000 draws are 0.1 and 0.2.
    assert_allclose(draws.mean(axis=0), 1, atol=0.1)
    assert_allclose(draws.var(axis=0), 0.875, atol=0.2)


def test_a_resample_of_one_layer_without_variance_is_left_out_and_no_other() -> None:
    points, code = kept(*xy(a_table(layers=3, steps=1))), np.arange(3)
    alone = (cluster_draws(3) > 0).sum(axis=1) == 1
    slope, intercept = line_replicates(points, code, cluster_draws(3))
    pearson = pearson_replicates(points.x, points.y, code, cluster_draws(3))
    spearman = spearman_replicates(points, code, cluster_draws(3))
    for replicates in (pearson, spearman, slope, intercept):
        assert_array_equal(np.isnan(replicates), alone)


def test_copies_of_a_layers_points_narrow_the_point_interval_and_not_the_cluster_interval() -> None:
    once, often = a_table(steps=1), pd.concat([a_table(steps=1)] * 9)
    few, many = fit(once, "pooled", "pearson"), fit(often, "pooled", "pearson")
    assert many["high"] - many["low"] < (few["high"] - few["low"]) / 2
    clusters = ["cluster_low", "cluster_high"]
    assert_allclose(many[clusters].tolist(), few[clusters].tolist(), rtol=ORACLE)


TABLES = st.builds(a_table, st.integers(0, 2**32 - 1), decimals=st.sampled_from([0, 1, 6]))
GIVES_THE_SAME = settings(max_examples=30, deadline=None)  # a table takes 20 ms


def correlations(table: pd.DataFrame) -> pd.DataFrame:
    fits = module_fits(table)
    return fits[fits["estimator"].isin(["pearson", "spearman"])]


def assert_same_figures(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(found, expected, rtol=INVARIANT, atol=INVARIANT)


@GIVES_THE_SAME
@given(TABLES, st.sampled_from([1e-300, 1e-12, 3.0]), st.sampled_from([1e-9, 1e9, 1e200]))
def test_units_of_x_and_y_change_no_correlation(table: pd.DataFrame, a: float, b: float) -> None:
    scaled = table.assign(delta_direction=table["delta_direction"] * a)
    scaled["delta_magnitude"] *= b
    assert_same_figures(correlations(scaled), correlations(table))


@GIVES_THE_SAME
@given(TABLES, st.integers(-100, 100))
def test_a_shift_of_y_moves_the_intercept_alone(table: pd.DataFrame, shift: int) -> None:
    before, after = (
        module_fits(t)
        for t in (table, table.assign(delta_magnitude=table["delta_magnitude"] + shift))
    )
    moved = (before["estimator"] == "intercept") & (before["response"] == "delta_magnitude")
    before.loc[moved, ["value", "low", "high", "cluster_low", "cluster_high"]] += shift
    assert_same_figures(after, before)


@GIVES_THE_SAME
@given(TABLES, st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_no_figure(table: pd.DataFrame, random: Random) -> None:
    order = random.sample(range(len(table)), len(table))
    assert_same_figures(module_fits(table.iloc[order]), module_fits(table))


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param({"delta_direction": 0.1}, id="constant x"),
        pytest.param({"delta_magnitude": 0.1}, id="constant y"),
        pytest.param({"delta_magnitude": np.nan}, id="no finite y"),
        pytest.param({"delta_direction": [np.inf] * 22 + [1.0, 2.0]}, id="two finite points"),
    ],
)
def test_points_that_admit_no_answer_give_nan_and_their_number(
    spoil: dict[str, float | list[float]],
) -> None:
    table = a_table().assign(**spoil)
    fits = module_fits(table).query("response == 'delta_magnitude'")
    assert len(fits) == 10
    assert fits[["value", "low", "high", "cluster_low", "cluster_high"]].isna().all(axis=None)
    finite = np.isfinite(np.stack(xy(table))).all(axis=0).sum()
    assert set(fits["n"]) == {finite}


def test_rows_without_a_finite_figure_are_left_out_of_their_own_response_only() -> None:
    spoilt = a_table()
    spoilt.loc[[1, 5], "delta_magnitude"] = [np.nan, np.inf]
    expected = fit(a_table().drop(index=[1, 5]), "within_step", "slope")
    pd.testing.assert_series_equal(fit(spoilt, "within_step", "slope"), expected)
    assert fit(spoilt, "pooled", "slope", "signed_delta_magnitude")["n"] == 24


def test_one_step_is_pooled_within_itself_and_says_nothing_within_layers() -> None:
    table = a_table(steps=1)
    within, pooled = (figures(fit(table, g, "pearson")) for g in ("within_step", "pooled"))
    assert_allclose(within, pooled, rtol=ORACLE)
    assert np.isnan(figures(fit(table, "within_layer", "pearson"))).all()


def test_group_means_use_up_points() -> None:
    table = a_table(layers=2, steps=2).iloc[:3]
    assert np.isfinite(fit(table, "pooled", "pearson")["value"])
    assert np.isnan(fit(table, "within_step", "pearson")["value"])


def test_three_points_give_a_correlation_that_may_be_anything() -> None:
    found = figures(fit(a_table(layers=3, steps=1), "pooled", "pearson"))
    assert found[1:] == [-1.0, 1.0]


@pytest.mark.parametrize(("layers", "known"), [([0, 1, None], True), ([0, None, None], False)])
def test_a_null_layer_is_one_cluster_and_two_are_too_few(
    layers: list[int | None], known: bool
) -> None:
    layer = pd.array(layers * 8, dtype="Int64")
    row = fit(a_table().assign(layer=layer), "pooled", "slope")
    assert np.isfinite(row["value"])
    assert np.isfinite([row["cluster_low"], row["cluster_high"]]).tolist() == [known, known]


def test_groups_keep_their_order_and_a_table_always_gives_the_same_bytes() -> None:
    others = [
        a_table(1).assign(module="v"),
        a_table(2).assign(module="embedding", layer=pd.array([pd.NA] * 24, dtype="Int64")),
    ]
    table = pd.concat([others[0], a_table().assign(axis="input"), a_table(), others[1]])
    fits = module_fits(table)
    assert tuple(fits.columns) == FIT_COLUMNS
    keys = fits[["module", "axis"]].drop_duplicates().values.tolist()
    assert keys == [["v", "output"], ["q", "input"], ["q", "output"], ["embedding", "output"]]
    cluster_draws.cache_clear()
    again = module_fits(table)
    assert fits.to_csv() == again.to_csv()
    assert fits["value"].to_numpy().tobytes() == again["value"].to_numpy().tobytes()
    assert module_fits(table.iloc[:0]).dtypes.equals(fits.dtypes)


def test_column_fits_are_of_the_absolute_the_relative_and_the_signed_change() -> None:
    points = some_columns()
    points.loc[7, "magnitude_base"] = 0.0
    fits = column_fits([(("r", "encoder", "q", "output"), points)])
    x, m0, change = (
        points[c].to_numpy(float) for c in ("delta_direction", "magnitude_base", "delta_magnitude")
    )
    some = m0 > 0
    expected = {
        "delta_magnitude": stats.linregress(x, abs(change)),
        "relative_delta_magnitude": stats.linregress(x[some], abs(change[some]) / m0[some]),
        "signed_delta_magnitude": stats.linregress(x, change),
    }
    for response, line in expected.items():
        rows = [fit(fits, "per_column", e, response) for e in ("pearson", "slope", "intercept")]
        found = [row["value"] for row in rows]
        assert_allclose(found, [line.rvalue, line.slope, line.intercept], rtol=ORACLE)
        assert rows[0]["n"] == (1199 if response == "relative_delta_magnitude" else 1200)
    assert fits["cluster_low"].notna().all()
