"""Charts say what the tables say: numbers against the tables, lines against scipy."""

from pathlib import Path

import click.testing
import numpy as np
import pandas as pd
import pytest
from matplotlib import rc_context
from scipy import stats
from synthetic_tables import small_results

from wdecomp.charts import View, chart_of
from wdecomp.charts.chart import Band, Cells, Chart, Level, Line, Points
from wdecomp.charts.columns import columns_chart
from wdecomp.charts.panels import panels
from wdecomp.charts.scatter import scatter_chart
from wdecomp.charts.style import COLOURS
from wdecomp.charts.table import kinds_of
from wdecomp.charts.views import FIGURES, find_kinds
from wdecomp.cli import commands, main
from wdecomp.errors import ResultsError
from wdecomp.table import Results

Q = ("decoder", "q")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return small_results(tmp_path_factory.mktemp("charts") / "results")


def _rows(results: Results, run: str, module: str = "q", axis: str = "output") -> pd.DataFrame:
    return results.modules.query("run == @run and module == @module and axis == @axis")


def _points(chart: Chart, facet: int) -> list[Points]:
    marks = chart.rows[0][facet].marks
    return [m for m in marks if isinstance(m, Points) and not isinstance(m.colour, str)]


def test_a_scatter_has_every_matrix_and_step_of_a_run(results: Results) -> None:
    chart = chart_of(results, View("scatter"))
    assert [facet.heading for facet in chart.rows[0]] == ["ft", "lora", "dora"]
    rows = _rows(results, "lora")
    drawn = _points(chart, 1)
    assert [part.label for part in drawn] == [f"step {n}" for n in (1000, 2000, 3000, 4000)]
    assert len({part.marker for part in drawn}) == 4
    for column, ordinate in (("delta_direction", "x"), ("delta_magnitude", "y")):
        found = np.concatenate([getattr(part, ordinate) for part in drawn])
        assert sorted(found) == sorted(rows[column])
    keys = [key for part in drawn for key in part.keys]
    assert sorted(keys) == sorted(
        (str(run), int(step), str(name))
        for run, step, name in zip(rows["run"], rows["step"], rows["parameter"], strict=True)
    )
    assert "model.layers.3.self_attn.q_proj.weight" in drawn[0].hover[3]


def test_the_line_and_its_band_are_those_of_least_squares(results: Results) -> None:
    fits = results.fits.assign(cluster_low=np.nan, cluster_high=np.nan)  # intervals by formula
    panel = panels(results.modules, fits, "q", "decoder")[2]
    x, y = panel.points["delta_direction"], panel.points["delta_magnitude"]
    oracle = stats.linregress(x, y)
    at = np.linspace(x.min(), x.max(), 7)
    np.testing.assert_allclose(panel.line(at), oracle.intercept + oracle.slope * at, rtol=1e-9)
    residuals = y - (oracle.intercept + oracle.slope * x)
    variance = (residuals**2).sum() / (len(x) - 2)
    error = np.sqrt(variance * (1 / len(x) + (at - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum()))
    np.testing.assert_allclose(panel.reach(at), stats.t.ppf(0.975, len(x) - 2) * error, rtol=1e-9)


def test_the_band_is_the_wider_one_where_layers_were_resampled(results: Results) -> None:
    clustered = panels(results.modules, results.fits, "q", "decoder")[1]
    slope = results.fits.query(
        "run == 'lora' and module == 'q' and axis == 'output' and grouping == 'pooled' "
        "and response == 'delta_magnitude' and estimator == 'slope'"
    ).iloc[0]
    assert (clustered.slope_low, clustered.slope_high) == (
        slope["cluster_low"],
        slope["cluster_high"],
    )


def test_all_panels_of_a_row_have_the_same_axes_unless_asked_otherwise(results: Results) -> None:
    shared = chart_of(results, View("scatter")).rows[0]
    assert len({facet.x for facet in shared}) == len({facet.y for facet in shared}) == 1
    assert shared[0].x.log  # FT turns columns by a tenth of what DoRA does
    own = chart_of(results, View("scatter", own_axes=True)).rows[0]
    assert len({facet.x for facet in own}) == 3


def test_nulls_and_floors_are_drawn_where_the_table_has_them(results: Results) -> None:
    modules = results.modules.assign(
        null_delta_magnitude=results.modules["delta_magnitude"] * 0.5,
        null_delta_direction=results.modules["delta_direction"],
        floor_delta_magnitude=0.06,
        floor_delta_direction=np.nan,
    )
    marks = scatter_chart({"": panels(modules, results.fits, "q", "decoder")}, "").rows[0][0].marks
    (level,) = [mark for mark in marks if isinstance(mark, Level)]
    assert (level.of, level.value) == ("y", 0.06)
    (null,) = [m for m in marks if isinstance(m, Points) and "random" in m.label]
    assert sorted(null.y) == sorted(0.5 * _rows(results, "ft")["delta_magnitude"])
    older = modules.drop(columns=[c for c in modules if c.startswith(("null_", "floor_"))])
    marks = scatter_chart({"": panels(older, results.fits, "q", "decoder")}, "").rows[0][0].marks
    assert not [mark for mark in marks if isinstance(mark, Level)]
    assert not [m for m in marks if isinstance(m, Points) and "random" in m.label]


def test_too_many_points_are_thinned_and_it_is_said(results: Results) -> None:
    grid = {"q": panels(results.modules, results.fits, "q", "decoder")}
    chart = scatter_chart(grid, "", most=20)
    drawn = sum(len(part.x) for i in range(3) for part in _points(chart, i))
    assert drawn <= 20
    assert chart.notes == ("One point in 3 is drawn; lines are through all.",)
    assert chart.rows[0][0].remark.endswith("n = 16")


def test_zero_has_no_place_on_a_logarithmic_axis_and_it_is_said(results: Results) -> None:
    frozen = results.modules.assign(
        delta_magnitude=results.modules["delta_magnitude"].where(results.modules["layer"] != 0, 0.0)
    )
    grid = {"q": panels(frozen, results.fits, "q", "decoder")}
    assert not scatter_chart(grid, "").rows[0][0].y.log
    chart = scatter_chart(grid, "", scale="log")
    assert "ft: 4 points are 0 and have no place on a logarithmic axis." in chart.notes


def test_layers_have_the_last_step_of_every_run(results: Results) -> None:
    chart = chart_of(results, View("layers"))
    assert [[facet.heading for facet in row] for row in chart.rows] == [["q", "v"], ["q", "v"]]
    lines = [m for m in chart.rows[0][1].marks if isinstance(m, Line) and m.marker is not None]
    assert [line.label for line in lines] == ["ft", "lora", "dora"]
    assert [line.colour for line in lines] == [COLOURS[m] for m in ("full", "lora", "dora")]
    last = _rows(results, "dora", "v").query("step == 4000")
    np.testing.assert_array_equal(lines[2].y, last["delta_magnitude"])
    assert lines[2].hover[1] == (
        "dora · step 4000 · layer 1 · model.layers.1.self_attn.v_proj.weight"
    )


def test_several_matrices_of_a_layer_have_their_mean_and_a_band(results: Results) -> None:
    experts = pd.concat(
        [
            results.modules,
            results.modules.assign(
                parameter=results.modules["parameter"] + ".1",
                delta_magnitude=3 * results.modules["delta_magnitude"],
            ),
        ]
    )
    chart = chart_of(_With(results, experts), View("layers"))
    marks = chart.rows[0][0].marks
    band = next(mark for mark in marks if isinstance(mark, Band))
    line = next(mark for mark in marks if isinstance(mark, Line) and mark.marker is not None)
    np.testing.assert_allclose(line.y, (band.low + band.high) / 2)
    assert line.hover[0].endswith("mean of 2 matrices")


def test_a_heatmap_has_a_cell_for_each_layer_and_kind(results: Results) -> None:
    chart = chart_of(results, View("heatmap", direction=True, axis="input"))
    (cells,) = chart.rows[0][1].marks
    assert isinstance(cells, Cells)
    assert chart.rows[0][1].y.ticks == ("v", "q")
    last = _rows(results, "lora", "q", "input").query("step == 4000")
    np.testing.assert_array_equal(cells.values[1], last["delta_direction"])
    gone = results.modules.query("not (run == 'lora' and layer == 2)")
    (cells,) = chart_of(_With(results, gone), View("heatmap")).rows[0][1].marks
    assert isinstance(cells, Cells)
    assert np.isnan(cells.values[:, 2]).all()
    assert np.isfinite(cells.values[:, [0, 1, 3]]).all()


def test_trajectories_have_a_line_for_each_layer_or_kind(results: Results) -> None:
    chart = chart_of(results, View("trajectories"))
    lines = [mark for mark in chart.rows[0][0].marks if isinstance(mark, Line)]
    assert [line.colour for line in lines] == [0.0, 1.0, 2.0, 3.0]
    rows = _rows(results, "ft").query("layer == 2").sort_values("step")
    np.testing.assert_array_equal(lines[2].x, rows["step"])
    np.testing.assert_array_equal(lines[2].y, rows["delta_magnitude"])
    both = chart_of(results, View("trajectories", kinds=(Q, ("decoder", "v"))))
    lines = [mark for mark in both.rows[1][2].marks if isinstance(mark, Line)]
    assert [line.label for line in lines] == ["q", "v"]
    means = _rows(results, "dora", "v").groupby("step")["delta_direction"].mean()
    np.testing.assert_allclose(lines[1].y, means)


def test_columns_of_one_matrix_are_marks_and_of_many_densities(results: Results) -> None:
    name = "model.layers.1.self_attn.q_proj.weight"
    chart = chart_of(results, View("columns", matrix=name))
    grown, shrunk = (mark for mark in chart.rows[0][0].marks if isinstance(mark, Points))
    table = results.columns("ft", 4000, [name])
    assert len(grown.x) == (table["delta_magnitude"] >= 0).sum()
    assert sorted([*grown.y, *shrunk.y]) == sorted(table["delta_magnitude"].abs())
    columns = {"ft": results.columns("ft"), "dora": results.columns("dora")}
    dense = columns_chart(columns, {"ft": "full", "dora": "dora"}, "", most=10)
    cells = [facet.marks[0] for facet in dense.rows[0]]
    assert all(isinstance(mark, Cells) for mark in cells)
    counts = [np.nansum(mark.values) for mark in cells if isinstance(mark, Cells)]
    assert counts == [len(table) for table in columns.values()]


def test_columns_at_zero_are_counted(results: Results) -> None:
    table = results.columns("ft")
    table.loc[:2, "delta_magnitude"] = 0.0
    table.loc[3, "delta_direction"] = np.nan
    chart = columns_chart({"ft": table}, {"ft": "full"}, "")
    assert chart.rows[0][0].remark == f"n = {len(table)}, 4 not drawn (0, nearly 0 or NaN)"


def test_what_is_not_there_is_named(results: Results, tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"'k': no such module kind. There are decoder.q, deco"):
        find_kinds(results.modules, ("k",), "")
    assert find_kinds(results.modules, ("v", "decoder.q"), "") == [("decoder", "v"), Q]
    for view, said in {
        View("scatter", runs=("lra",)): "'lra': no such run. There are ft, lora, dora",
        View("scatter", steps=(5,)): "5: no such step. There are 1000, 2000, 3000 and 1 more",
        View("columns", matrix="x"): "'x': no such matrix",
    }.items():
        with pytest.raises(ResultsError, match=said):
            chart_of(results, view)
    some = results.modules.query("run != 'lora' or module != 'v'")
    with pytest.raises(ResultsError, match=r"no matrix of v changed in lora\."):
        chart_of(_With(results, some), View("scatter", (("decoder", "v"),), runs=("lora",)))
    alone = _With(results, results.modules.assign(step=pd.Series(pd.NA, dtype="Int64")))
    with pytest.raises(ResultsError, match=r"has no steps, so nothing to draw"):
        chart_of(alone, View("trajectories"))
    empty = _With(results, results.modules.head(0))
    for figure in ("scatter", "layers", "heatmap", "columns", "trajectories"):
        with pytest.raises(ResultsError, match="has no matrix along the output axis"):
            chart_of(empty, View(figure))


def test_kinds_come_as_a_block_runs(results: Results) -> None:
    mixed = results.modules.assign(
        module=results.modules["module"].map({"q": "down", "v": "q"}).astype(str)
    )
    assert kinds_of(mixed) == [Q, ("decoder", "down")]


def _plot(*arguments: str) -> click.testing.Result:
    with rc_context({"svg.fonttype": "none"}):
        return click.testing.CliRunner().invoke(commands, ["plot", *arguments])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--module", "v", "--run", "dora", "--step", "4000", "--step", "3000"],
         ["v, output axis", "n = 8", "step 3000", "layer"]),
        (["--figure", "layers", "--relative", "--axis", "input"],
         ["q, v, input axis", "ΔM/m0, mean |m − m0|/m0", "lora"]),
        (["--figure", "heatmap", "--direction"], ["ΔD, mean 1 − cos", "dora"]),
        (["--figure", "trajectories", "--module", "q,v"], ["q, v, output axis", "step"]),
        (["--figure", "columns", "--matrix", "model.layers.2.self_attn.v_proj.weight"],
         ["model.layers.2.self_attn.v_proj.weight", "n = 24", "column grew"]),
    ],
)  # fmt: skip
def test_each_figure_with_its_options(
    results: Results, tmp_path: Path, options: list[str], words: list[str]
) -> None:
    file = tmp_path / "a.svg"
    done = _plot(str(results.path), *options, "-o", str(file))
    assert done.exit_code == 0, done.output
    assert done.stdout == ""
    assert f"Wrote {file}: " in done.stderr
    drawn = file.read_text(encoding="utf-8")
    assert [word for word in words if word not in drawn] == []


def test_the_command_offers_every_figure() -> None:
    (figure,) = [p for p in commands.commands["plot"].params if p.name == "figure"]
    assert set(figure.type.choices) == set(FIGURES)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--module", "gate"], "'gate': no such module kind. There are decoder.q, decoder.v."),
        (["--module", "q", "--stack", "encoder"], "'q': no such module kind in stack 'encoder'."),
        (["--run", "x"], "'x': no such run. There are ft, lora, dora."),
        (["-o", "a.jpg"], "a.jpg: the name must end in one of .svg, .pdf, .png."),
        (["-o", "/proc/none/a.svg"], "/proc/none/a.svg: cannot be written"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_line(
    results: Results, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    out = [] if "-o" in options else ["-o", "/nowhere/a.svg"]
    with pytest.raises(SystemExit) as left:
        main(["plot", str(results.path), *options, *out])
    error = capsys.readouterr().err
    assert left.value.code == 1
    assert error.startswith(f"wdecomp: {said}")
    assert error.count("\n") == 1


class _With(Results):
    """Results whose table of matrices is another."""

    def __init__(self, results: Results, modules: pd.DataFrame) -> None:
        super().__init__(results.path)
        self.__dict__["modules"] = modules
