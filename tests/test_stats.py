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
    RESAMPLES_OF_PAIRS,
    cluster_draws,
    cluster_intervals,
    line_replicates,
    pearson_replicates,
    spearman_replicates,
)
from wdecomp.stats.estimators import Codes, Floats, Sample, pearson, sample
from wdecomp.stats.theil_sen import MOST_POINTS, RESAMPLED, theil_sen_replicates

ORACLE = 1e-10  # float64 sums over at most 2,500 points, in another order
LINE = 1e-9  # the intercept of a resample is a difference of figures ten times its size
INVARIANT = 1e-8  # a shift by 100 spreads costs two digits, and hypothesis looks for the worst
FIVE = ("pearson", "spearman", "slope", "theil_sen", "intercept")
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


def arrays(columns: pd.DataFrame) -> dict[str, Floats]:
    return {str(name): columns[name].to_numpy(float) for name in columns}


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


@pytest.mark.parametrize("decimals", [0, 6])
def test_pooled_theil_sen_and_its_interval_are_scipys_under_ties_too(decimals: int) -> None:
    table = a_table(decimals=decimals)
    x, y = xy(table)
    found = stats.theilslopes(y, x, 0.95)
    expected = [found.slope, found.low_slope, found.high_slope]
    assert_allclose(figures(fit(table, "pooled", "theil_sen")), expected, rtol=ORACLE)


def test_theil_sen_within_steps_is_scipys_seasonal_slope() -> None:
    y, shift = np.random.default_rng(1).normal(size=(2, 6, 4))
    _, expected = stats.mstats.sen_seasonal_slopes(y)
    layer, step = np.repeat(np.arange(6.0), 4), np.tile(np.arange(4), 6)
    shifted = {"delta_direction": layer + 0.25 * step, "delta_magnitude": (y + shift[0]).ravel()}
    found = fit(a_table().assign(layer=layer, step=step, **shifted), "within_step", "theil_sen")
    assert_allclose(found["value"], expected, rtol=ORACLE)
    assert found["low"] < expected < found["high"]


def test_the_interval_of_theil_sen_within_steps_counts_the_pairs_within_steps() -> None:
    x, y = np.random.default_rng(3).normal(size=(2, 9))
    apart = a_table(layers=9, steps=3).assign(
        delta_direction=np.tile(x, 3), delta_magnitude=np.tile(y, 3)
    )
    slopes = np.sort([(y[j] - y[i]) / (x[j] - x[i]) for i in range(9) for j in range(i)] * 3)
    reach = 1.959963984540054 * np.sqrt(3 * 9 * 8 * 23 / 18)
    low, high = round((len(slopes) - reach) / 2) - 1, round((len(slopes) + reach) / 2)
    expected = [np.median(slopes), slopes[low], slopes[high]]
    assert_allclose(figures(fit(apart, "within_step", "theil_sen")), expected, rtol=ORACLE)


def test_theil_sen_forgives_a_quarter_of_the_points() -> None:
    layer = np.tile(np.arange(24.0), 2)
    spoilt = np.where(layer < 6, 1e6, 3 * layer + 2)
    table = a_table(layers=24, steps=2).assign(delta_direction=layer, delta_magnitude=spoilt)
    assert_allclose(fit(table, "pooled", "theil_sen")["value"], 3, rtol=0.2)
    assert fit(table, "pooled", "slope")["value"] < -1e4


def test_theil_sen_of_many_points_is_that_of_evenly_spaced_ones() -> None:
    columns = some_columns(layers=4, each=300)
    some = np.linspace(0, 1199, MOST_POINTS).round().astype(int)
    x, y = (columns[c].to_numpy(float)[some] for c in ("delta_direction", "delta_magnitude"))
    found = fit(
        column_fits([(("r", "e", "q", "output"), lambda: arrays(columns))]),
        "per_column",
        "theil_sen",
    )
    assert_allclose(found["value"], stats.theilslopes(abs(y), x).slope, rtol=ORACLE)
    assert found["cluster_low"] < found["value"] < found["cluster_high"]

    fewer = np.linspace(0, 1199, RESAMPLED).round().astype(int)
    of_all, of_fewer = (kept(columns["delta_direction"].to_numpy(float)[take],
                             abs(columns["delta_magnitude"].to_numpy(float)[take]))
                        for take in (slice(None), fewer))  # fmt: skip
    layers, draws = np.repeat(np.arange(4), 300), cluster_draws(4)[:20]
    assert_allclose(
        theil_sen_replicates(of_all, layers, draws),
        theil_sen_replicates(of_fewer, layers[fewer], draws),
        rtol=ORACLE,
    )


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


def brute_force(
    x: Floats, y: Floats, code: Codes, draws: Floats, groups: Codes | None = None
) -> Iterator[tuple[float, ...]]:
    """All five estimators by scipy on the points of each resample, written out."""
    for counts in draws.astype(int):
        chosen = np.concatenate(
            [np.flatnonzero(code == c) for c, k in enumerate(counts) for _ in range(k)]
        )
        u, v = x[chosen], y[chosen]
        left, right = np.triu_indices(len(chosen), k=1)
        alike = u[left] != u[right]
        if groups is not None:
            of = groups[chosen]
            alike &= of[left] == of[right]
            dummies = pd.get_dummies(of).to_numpy(float)
            u, v = (w - dummies @ np.linalg.lstsq(dummies, w)[0] for w in (u, v))
        line = stats.linregress(u, v)
        slopes = np.sort((v[left] - v[right])[alike] / (u[left] - u[right])[alike])
        middle = slopes[len(slopes) // 2]
        yield line.rvalue, stats.spearmanr(u, v).statistic, line.slope, middle, line.intercept


FEW = slice(0, 200)  # resamples that are formed by brute force


def assert_students_interval(row: pd.Series, replicates: Floats, layers: int) -> None:
    """The t interval of few layers; of correlations in Fisher's z, no closer to ±1 than a step."""
    closest = {"pearson": 1e-9, "spearman": 6 / (row["n"] ** 3 - row["n"])}.get(row["estimator"])
    value, spread = row["value"], replicates[np.isfinite(replicates)]
    if closest is not None:
        value, spread = (np.arctanh(np.clip(v, closest - 1, 1 - closest)) for v in (value, spread))
    t = stats.t.ppf(0.975, layers - 1) * np.sqrt(layers / (layers - 1))
    low, high = value - t * spread.std(), value + t * spread.std()
    if closest is not None:
        low, high = np.tanh([low, high])
    assert_allclose([row["cluster_low"], row["cluster_high"]], [low, high], rtol=LINE)


@pytest.mark.parametrize("outlier", [0.0, 500.0])
def test_the_bootstrap_from_sums_and_shared_ranks_is_the_brute_force_one(outlier: float) -> None:
    table = a_table(decimals=0).drop(index=[2, 9, 10])  # ties, layers of unequal size
    # Resamples without the outlier lie far from the pooled mean that the sums are centred on.
    table["delta_direction"] += outlier * (table["layer"] == 5).to_numpy()
    table = table.assign(delta_magnitude=table["delta_magnitude"] * 1e4 + 1e5)
    points, code = kept(*xy(table)), table["layer"].to_numpy(dtype=np.intp)
    draws = cluster_draws(6)
    found = np.array(list(brute_force(points.x.values, points.y.values, code, draws[FEW]))).T
    slope_unit = points.slope_exponent
    exponents = np.array([0, 0, slope_unit, slope_unit, points.y.exponent])
    brute = np.ldexp(found, exponents[:, None])
    pearson, slope, intercept = line_replicates(points, code, draws)
    ranks = spearman_replicates(points, code, draws)
    middle = theil_sen_replicates(points, code, draws[:RESAMPLES_OF_PAIRS])
    fast = (pearson, ranks, slope, middle, intercept)
    for values, expected in zip(fast, brute, strict=True):
        assert_allclose(values[FEW], expected, rtol=LINE, atol=ORACLE)
    telling = abs(pearson) < 1 - 1e-9
    assert telling.mean() > 0.99
    for name, values in zip(FIVE, fast, strict=True):
        row = fit(table, "pooled", name)
        assert_students_interval(row, values[telling[: len(values)]], 6)


@pytest.mark.parametrize(("grouping", "by"), [("within_step", "step"), ("within_layer", "layer")])
def test_within_groups_each_resample_has_its_own_means(grouping: str, by: str) -> None:
    table = a_table(decimals=1).drop(index=[3, 11, 17])  # unequal groups
    code, groups = (table[c].to_numpy(dtype=np.intp) for c in ("layer", by))
    points = sample(*xy(table), groups)
    assert points is not None
    draws = cluster_draws(6)
    found = np.array(list(brute_force(points.x.values, points.y.values, code, draws[FEW], groups)))
    pearson, slope, _ = line_replicates(points, code, draws, groups)
    assert_array_equal(
        pearson_replicates(points.x.values, points.y.values, code, draws, groups), pearson
    )
    middle = theil_sen_replicates(points, code, draws[:RESAMPLES_OF_PAIRS])
    unit = points.slope_exponent
    telling = abs(pearson) < 1 - 1e-9
    expected = dict(zip(FIVE, found.T, strict=True))
    for name, values, power in (
        ("pearson", pearson, 0),
        ("slope", slope, unit),
        ("theil_sen", middle, unit),
    ):
        assert_allclose(values[FEW], np.ldexp(expected[name], power), rtol=LINE)
        row = fit(table, grouping, name)
        assert_students_interval(row, values[telling[: len(values)]], 6)


def test_six_layers_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    rng, truth, sets, layers = np.random.default_rng(0), -0.31, 150, 6
    code, held = np.tile(np.arange(layers), 4), {"t": 0, "percentiles": 0, "fisher": 0}
    for _ in range(sets):
        (u, e), (v, f) = (rng.normal(size=(2, *shape)) for shape in ((1, layers), (4, layers)))
        x = np.sqrt(0.8) * u + np.sqrt(0.2) * v
        noise = np.sqrt(0.8) * e + np.sqrt(0.2) * f
        points = kept(x.ravel(), (truth * x + np.sqrt(1 - truth**2) * noise).ravel())
        estimate = pearson(points)
        clusters = cluster_intervals(points, code, {"pearson": estimate})
        replicates = pearson_replicates(
            points.x.values, points.y.values, code, cluster_draws(layers)
        )
        for name, (low, high) in {
            "t": clusters["pearson"],
            "percentiles": np.quantile(replicates, [0.025, 0.975]),
            "fisher": (estimate.low, estimate.high),
        }.items():
            held[name] += low <= truth <= high
    # 95 % of 150 are known to 2 %.
    assert 0.92 <= held["t"] / sets <= 0.99
    assert held["fisher"] / sets < 0.8 < held["percentiles"] / sets < held["t"] / sets


def test_beyond_2000_points_the_ranks_among_all_points_are_held_fixed() -> None:
    columns = some_columns(layers=5, each=500)
    code = columns["layer"].to_numpy()
    points = kept(*(v.astype(np.float64) for v in xy(columns)))
    fixed = pearson_replicates(
        stats.rankdata(points.x.values), stats.rankdata(points.y.values), code, cluster_draws(5)
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
    pearson, slope, intercept = line_replicates(points, code, cluster_draws(3))
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
GIVES_THE_SAME = settings(max_examples=20, deadline=None)  # a table takes 20 ms


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
    assert len(fits) == 13
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
    fits = column_fits([(("r", "encoder", "q", "output"), lambda: arrays(points))])
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
