"""The app in every state of its results: a sentence that says what to do, and never a traceback."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import app_folders
import numpy as np
import pandas as pd
import pytest
from synthetic_tables import MODULES, generator, small_results

from wdecomp.stats import module_fits
from wdecomp.table import Results

testing = pytest.importorskip("streamlit.testing.v1", reason="streamlit is not installed")

MAIN = Path(__file__).parents[1] / "app" / "main.py"
CHARTS = {"scatter": 1, "layers": 4, "fits": 1, "columns": 1, "findings": 0, "data": 0}
PAGES = tuple(CHARTS)
App = Callable[..., Any]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return small_results(tmp_path_factory.mktemp("app") / "results")


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> App:
    """Opens the app with folders, on a page, with choices as the address has them."""

    def opened(*folders: Path, page: str = "scatter", **choices: str | list[str]) -> Any:
        monkeypatch.setattr(sys, "argv", [str(MAIN), *map(str, folders)])
        monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])  # the app becomes it
        at = testing.AppTest.from_file(str(MAIN), default_timeout=120)
        for key, value in choices.items():
            at.query_params[key] = value
        at.run()
        if page != "scatter":
            at.switch_page(f"views/{page}.py").run()
        assert not at.exception, at.exception
        return at

    return opened


def said(at: Any) -> str:
    """All text that is no markup."""
    return "\n".join(text.value for text in at.text)


def charts(at: Any) -> list[Any]:
    """What plotly is given."""
    return [json.loads(chart.proto.spec) for chart in at.get("plotly_chart")]


def heads(at: Any, chart: int = 0) -> list[str]:
    return [each["text"] for each in charts(at)[chart]["layout"]["annotations"]]


def every_page(at: Any) -> Iterator[tuple[str, Any]]:
    """Visits one after another, none of which may fail."""
    for page in PAGES:
        at.switch_page(f"views/{page}.py").run()
        assert not at.exception, (page, at.exception)
        yield page, at


def test_every_page_shows_what_there_is(app: App, results: Results) -> None:
    for page, at in every_page(app(results.path)):
        assert len(charts(at)) == CHARTS[page]
        assert len(at.header) == 1
        assert all(chart.proto.alt for chart in at.get("plotly_chart"))
        assert "⚠" not in said(at)


@pytest.mark.parametrize("state", ["without_numbers", "one_point", "recording"])
def test_every_page_stands_poor_results(
    app: App, results: Results, tmp_path: Path, state: str
) -> None:
    folder = getattr(app_folders, state)(tmp_path / "r", results)
    for page, at in every_page(app(folder)):
        if page == "columns" and state == "recording":
            assert "No columns were kept along the output axis. The recording of" in said(at)
            assert "compare its checkpoints with --columns output" in said(at)
        if state == "recording":
            assert "A training is being recorded: 2 steps so far." in said(at)
            assert page != "scatter" or "r = " in heads(at)[0]
        elif page == "scatter":
            assert "too few points for a line" in heads(at)[0]


def test_without_a_folder_it_says_how_to_make_results_and_opens_the_example(app: App) -> None:
    at = app()
    assert "wdecomp compare base/" in at.code[0].value
    assert not charts(at)
    at.button[0].click().run()
    assert not at.exception
    assert len(charts(at)) == 1


def test_the_example_fills_every_page(app: App) -> None:
    for page, at in every_page(app(example="true")):
        assert "⚠" not in said(at)
        assert len(charts(at)) == CHARTS[page]


def test_the_example_is_small() -> None:
    files = [file for file in (MAIN.parent / "example").rglob("*") if file.is_file()]
    assert 0 < sum(file.stat().st_size for file in files) < 2_000_000


def test_a_folder_that_is_none_is_named_with_what_to_do(app: App, tmp_path: Path) -> None:
    for _, at in every_page(app(tmp_path / "nothing")):
        assert f"{tmp_path / 'nothing'}: holds no results." in said(at)
        assert "wdecomp compare base/" in at.code[0].value


def test_old_and_damaged_results_are_refused_beside_good_ones(
    app: App, results: Results, tmp_path: Path
) -> None:
    old = app_folders.old_schema(tmp_path / "old", results)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "run.json").write_text('{"schema": 1, "runs": [{}]}')
    (broken / "DONE.json").write_text("{}")
    at = app(old, broken, results.path)
    assert "has schema 0, expected 1. Compare again, or read it with" in said(at)
    line = next(line for line in said(at).splitlines() if line.startswith(str(broken)))
    assert "Compare again" in line
    assert len(charts(at)) == 1


def test_an_unfinished_comparison_shows_what_is_done(app: App, tmp_path: Path) -> None:
    folder = app_folders.unfinished(tmp_path / "r")
    at = app(folder)
    assert "n = 8" in heads(at)[0]  # 2 layers, 4 steps
    for page, _ in every_page(at):
        assert "This comparison is not finished: 2 of 4 units of work are done." in said(at)
        assert len(charts(at)) == CHARTS[page]
    app_folders.unfinished(folder, units=3)
    at.switch_page("views/scatter.py").run()
    assert "3 of 4 units" in said(at)
    assert "n = 12" in heads(at)[0]


def test_a_comparison_that_has_just_begun_says_so(app: App, tmp_path: Path) -> None:
    at = app(app_folders.unfinished(tmp_path / "r", units=0))
    assert "No matrix has been compared so far." in said(at)


def test_one_run_is_enough(app: App, tmp_path: Path) -> None:
    made = generator()
    one = made.write_results(
        tmp_path / "r", 2, 24, 40, columns=True, methods=made.METHODS[:1], modules=MODULES
    )
    for page, at in every_page(app(one.path)):
        assert "⚠" not in said(at)
        assert len(charts(at)) == CHARTS[page]


def test_several_folders_stand_side_by_side(app: App, results: Results, tmp_path: Path) -> None:
    other = small_results(tmp_path / "results", "other")
    for page, at in every_page(app(results.path, other.path)):
        assert "⚠" not in said(at)
        if page in ("scatter", "columns"):
            names = [head.partition("<b>")[2].partition("</b>")[0] for head in heads(at)]
            assert names == [
                f"results{n}/{run}"
                for n, runs in (("", ("ft", "lora", "dora")), (" (2)", ("ft", "other", "dora")))
                for run in runs
            ]


def test_choices_that_leave_nothing_say_what_to_widen(
    app: App, results: Results, tmp_path: Path
) -> None:
    q_alone = app_folders.write(
        tmp_path / "q",
        results.run,
        results.modules[results.modules["module"] == "q"],
        results.facts,
    )
    for page in ("scatter", "layers", "fits", "columns"):
        at = app(results.path, q_alone, page=page, module="v", run="q/ft")
        assert "no matrix of v changed in q/ft" in said(at), page
        assert "Choose others in the sidebar, or fewer filters." in said(at)
        assert not charts(at)


def test_an_address_restores_the_whole_view(app: App, results: Results) -> None:
    at = app(
        results.path,
        module="v",
        run=["lora", "dora"],
        step=["3000", "4000"],
        layers=["1", "3"],
        axis="input",
        relative="true",
        fit="within steps",
        own="true",
    )
    rows = results.modules.query(
        "module == 'v' and run == 'dora' and step >= 3000 and layer >= 1 and axis == 'input'"
    )
    fits = module_fits(rows).set_index(["response", "grouping", "estimator"])["value"]
    r = fits["relative_delta_magnitude", "within_step", "pearson"]
    assert f"r in step = {r:+.2f}" in heads(at)[1]
    assert f"n = {len(rows)}" in heads(at)[1]
    layout = charts(at)[0]["layout"]
    assert layout["yaxis"]["title"]["text"].startswith("ΔM/m0")
    assert layout["xaxis"]["range"] != layout["xaxis2"]["range"]


def test_an_address_that_means_nothing_is_ignored(app: App, results: Results) -> None:
    at = app(results.path, module="../../etc", run="nobody", layers=["-5", "99"], at="no.matrix")
    assert "⚠" not in said(at)
    assert "n = 16" in heads(at)[0]


def test_a_brushed_point_leads_to_its_columns(app: App, results: Results) -> None:
    at = app(results.path)
    figure = charts(at)[0]
    trace = next(
        t for t in figure["data"] if t.get("customdata") and t["legendgroup"] == "step 2000"
    )
    point = {"customdata": trace["customdata"][1]}
    run, step, parameter = point["customdata"]
    at.session_state["scatter"] = {"selection": {"points": [point]}}
    at.run()
    table = at.dataframe[0].value
    row = results.modules.query(
        f"run == '{run}' and step == {step} and parameter == '{parameter}' and axis == 'output'"
    )
    assert table["delta_magnitude"].tolist() == row["delta_magnitude"].tolist()


def test_columns_of_one_matrix_are_those_of_the_table(app: App, results: Results) -> None:
    name = "model.layers.2.self_attn.v_proj.weight"
    at = app(results.path, page="columns", at=f"{name} · step 2000")
    assert f"{name}, step 2000" in said(at)
    figure = charts(at)[0]
    expected = results.columns("dora", 2000, [name])
    drawn = [t for t in figure["data"] if t["xaxis"] == "x3" and t["x"] != [None]]
    assert sum(_length(t["x"]) for t in drawn) == len(expected)
    largest = at.dataframe[0].value.query("run == 'dora'")
    by_size = np.sort(np.abs(expected["delta_magnitude"]))[::-1][:20]
    assert np.abs(largest["delta_magnitude"]).tolist() == by_size.tolist()


def test_the_tables_are_those_of_the_results(app: App, results: Results) -> None:
    at = app(results.path, page="data", module="q", run="lora")
    shown = at.dataframe[0].value
    expected = results.modules.query("module == 'q' and run == 'lora' and axis == 'output'")
    pd.testing.assert_series_equal(
        shown["delta_magnitude"], expected["delta_magnitude"], check_index=False
    )


def test_statistics_are_those_of_the_rows_that_are_chosen(app: App, results: Results) -> None:
    at = app(results.path, page="fits", module="q", run="lora", step=["3000", "4000"])
    rows = results.modules.query(
        "module == 'q' and run == 'lora' and step >= 3000 and axis == 'output'"
    )
    expected = module_fits(rows).query("response == 'delta_magnitude'")
    assert at.dataframe[0].value["value"].tolist() == pytest.approx(
        expected["value"].tolist(), nan_ok=True
    )


def _length(values: Any) -> int:
    """Of a list, or of numbers as plotly packs them."""
    if isinstance(values, dict):
        import base64

        size = {"f8": 8, "f4": 4}[values["dtype"]]
        return len(base64.b64decode(values["bdata"])) // size
    return len(values)
