"""What the app adds to the charts: intervals, lines within steps, a range of layers."""

import numpy as np
import pandas as pd
import pytest
from synthetic_tables import small_results

from wdecomp.charts import View, chart_of
from wdecomp.charts.chart import Band, Chart, Line, Points
from wdecomp.charts.columns import largest_columns
from wdecomp.charts.fits import FROM_PAPER
from wdecomp.table import Results

Q, V = ("decoder", "q"), ("decoder", "v")
POINTS = ["run", "layer", "step"]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return small_results(tmp_path_factory.mktemp("charts") / "results")


def marks(chart: Chart, facet: int, kind: type, label: str = "") -> list[Points | Line]:
    found = [mark for mark in chart.rows[0][facet].marks if isinstance(mark, kind)]
    return [mark for mark in found if not label or mark.label == label]


@pytest.mark.parametrize("facet", [0, 1])
@pytest.mark.parametrize("grouping", ["pooled", "within_step"])
def test_a_mark_and_its_interval_are_those_of_the_table(
    results: Results, grouping: str, facet: int
) -> None:
    chart = chart_of(results, View("fits", (Q, V), grouping=grouping))
    rows = results.fits[
        (results.fits["axis"] == "output")
        & (results.fits["response"] == "delta_magnitude")
        & (results.fits["grouping"] == grouping)
        & (results.fits["estimator"] == ("pearson", "slope")[facet])
    ].set_index(["run", "module"])
    for i, run in enumerate(("ft", "lora", "dora")):
        points = marks(chart, facet, Points, run)[0]
        expected = rows.loc[[(run, "q"), (run, "v")]]
        assert points.x.tolist() == expected["value"].tolist()
        line = marks(chart, facet, Line)[i]
        ends = line.x.reshape(2, 3)
        clustered = expected["cluster_low"].notna()
        assert clustered.all()
        np.testing.assert_array_equal(ends[:, 0], expected["cluster_low"])
        np.testing.assert_array_equal(ends[:, 1], expected["cluster_high"])
        assert np.isnan(ends[:, 2]).all()
        np.testing.assert_array_equal(line.y.reshape(2, 3)[:, 0], points.y)
    heights = [marks(chart, facet, Points, run)[0].y[0] for run in ("ft", "lora", "dora")]
    assert heights == sorted(heights, reverse=True)
    assert [round(height) for height in heights] == [1, 1, 1]  # q is the upper of two rows


def test_the_papers_r_stands_beside_the_query_alone(results: Results) -> None:
    chart = chart_of(results, View("fits", (Q, V)))
    star = marks(chart, 0, Points, FROM_PAPER)[0]
    assert star.x.tolist() == [-0.62, 0.83, -0.31]
    runs = [marks(chart, 0, Points, run)[0].y[0] for run in ("ft", "lora", "dora")]
    assert star.y.tolist() == runs
    assert not marks(chart, 1, Points, FROM_PAPER)
    for other in ({"kinds": (V,)}, {"grouping": "within_step"}, {"relative": True}):
        view = View("fits", **{"kinds": (Q,)} | other)
        assert not marks(chart_of(results, view), 0, Points, FROM_PAPER)


def test_lines_within_steps_are_those_of_dummy_variables(results: Results) -> None:
    chart = chart_of(results, View("scatter", (Q,), grouping="within_step", scale="linear"))
    rows = results.modules.query("run == 'dora' and module == 'q' and axis == 'output'")
    dummies = pd.get_dummies(rows["step"]).to_numpy(float)
    design = np.column_stack([rows["delta_direction"], dummies])
    found = np.linalg.lstsq(design, rows["delta_magnitude"].to_numpy(), rcond=None)[0]
    lines = marks(chart, 2, Line)
    assert len(lines) == dummies.shape[1] == 4
    assert not marks(chart, 2, Band)
    for line, intercept in zip(lines, found[1:], strict=True):
        np.testing.assert_allclose(line.y, found[0] * line.x + intercept, rtol=1e-9)


def test_a_range_of_layers_leaves_these_layers(results: Results) -> None:
    for figure in ("scatter", "layers", "trajectories"):
        chart = chart_of(results, View(figure, (Q,), layers=(1, 2)))
        assert chart.rows
    scatter = chart_of(results, View("scatter", (Q,), layers=(1, 2)))
    layers = {
        float(layer) for mark in marks(scatter, 0, Points) for layer in np.atleast_1d(mark.colour)
        if mark.keys
    }  # fmt: skip
    assert layers == {1.0, 2.0}


def test_nulls_are_in_sight_along_the_layers(results: Results) -> None:
    high = results.modules.assign(null_delta_direction=10 * results.modules["delta_direction"])

    class Higher(Results):
        modules = high

    chart = chart_of(Higher(results.path), View("layers", (Q,)))
    facet = chart.rows[1][0]
    drawn = [line for line in facet.marks if isinstance(line, Line)]
    assert max(line.y.max() for line in drawn) < facet.y.high


def test_the_largest_columns_come_first(results: Results) -> None:
    columns = results.columns("dora")
    largest = largest_columns(columns, 5)
    sizes = columns["delta_magnitude"].abs().sort_values(ascending=False)
    assert largest["delta_magnitude"].abs().tolist() == sizes.iloc[:5].tolist()
