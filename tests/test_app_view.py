"""`wdecomp view`, and the tables of results that are not one finished folder."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import app_folders
import click.testing
import pandas as pd
import pytest
from synthetic_tables import small_results

from wdecomp.charts import View, chart_of
from wdecomp.cli import commands
from wdecomp.errors import ResultsError
from wdecomp.stats import module_fits
from wdecomp.table import Results, read_results
from wdecomp.table.growing import Growing, Unfinished, read_growing, stamp
from wdecomp.table.together import together

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return small_results(tmp_path_factory.mktemp("view") / "results")


def test_an_unfinished_comparison_has_the_rows_of_the_finished_one(
    tmp_path: Path, results: Results
) -> None:
    folder = app_folders.unfinished(tmp_path / "r", units=2)
    found = read_growing(folder, module_fits)
    assert isinstance(found, Unfinished)
    expected = results.modules[results.modules["layer"] < 2].reset_index(drop=True)
    pd.testing.assert_frame_equal(found.modules, expected)
    facts = results.facts[results.facts["layer"] < 2].reset_index(drop=True)
    pd.testing.assert_frame_equal(found.facts, facts)
    pd.testing.assert_frame_equal(found.fits, module_fits(expected))
    name = "model.layers.1.self_attn.q_proj.weight"
    for axis, every in (("output", 1), ("input", 3)):
        pd.testing.assert_frame_equal(
            found.columns("lora", None, [name], axis, every),
            results.columns("lora", None, [name], axis, every),
            check_dtype=False,
            check_categorical=False,
        )


def test_a_unit_that_has_rotted_is_named_and_not_shown(tmp_path: Path) -> None:
    folder = app_folders.unfinished(tmp_path / "r", units=2)
    part = sorted((folder / "parts").iterdir())[1]
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    with pytest.raises(ResultsError, match="has changed since it was written"):
        _ = read_growing(folder, module_fits).modules


def test_a_finished_folder_is_read_as_it_is(results: Results) -> None:
    found = read_growing(results.path, module_fits)
    assert not isinstance(found, Growing)
    pd.testing.assert_frame_equal(found.fits, results.fits)


def test_a_recording_gets_the_statistics_of_its_rows(tmp_path: Path, results: Results) -> None:
    folder = app_folders.recording(tmp_path / "r", results)
    assert read_results(folder).fits.empty
    found = read_growing(folder, module_fits)
    assert isinstance(found, Growing)
    pd.testing.assert_frame_equal(found.fits, module_fits(found.modules))
    head = chart_of(found, View("scatter", (("decoder", "q"),))).rows[0][0]
    assert head.remark.startswith("r = ")


def test_a_stamp_changes_with_every_unit_and_at_the_end(tmp_path: Path) -> None:
    seen = {stamp(tmp_path / "r")}
    for units in (0, 1, 2):
        seen.add(stamp(app_folders.unfinished(tmp_path / "r", units)))
    assert len(seen) == 4
    assert stamp(tmp_path / "r") in seen


def test_runs_of_several_folders_are_told_apart(tmp_path: Path, results: Results) -> None:
    other = small_results(tmp_path / "other", "mine")
    both = together({"a": results, "b": other})
    runs = ["a/ft", "a/lora", "a/dora", "b/ft", "b/mine", "b/dora"]
    assert both.modules["run"].unique().tolist() == runs
    assert list(dict.fromkeys(run["run"] for run in both.run["runs"])) == runs
    assert both.left_out["run"].tolist() == runs
    own = both.modules[both.modules["run"] == "b/mine"].assign(run="mine")
    expected = other.modules[other.modules["run"] == "mine"]
    pd.testing.assert_frame_equal(own.reset_index(drop=True), expected.reset_index(drop=True))
    pd.testing.assert_frame_equal(both.columns("b/mine"), other.columns("mine"))
    assert together({"a": results}) is results
    assert len(both.fits) == len(results.fits) + len(other.fits)
    assert chart_of(both, View("scatter")).rows[1][0].heading == "b/mine"


def test_layers_and_grouping_narrow_the_statistics(results: Results) -> None:
    kind = ("decoder", "v")
    rows = results.modules.query("module == 'v' and axis == 'output' and 1 <= layer <= 2")
    fits = module_fits(rows[rows["run"] == "dora"]).set_index(["response", "grouping", "estimator"])
    for grouping in ("pooled", "within_step"):
        view = View("scatter", (kind,), layers=(1, 2), grouping=grouping)
        facet = chart_of(results, view).rows[0][2]
        r = fits.loc[("delta_magnitude", grouping, "pearson"), "value"]
        assert f" = {r:+.2f}" in facet.remark
        assert f"n = {4 * 2}" in facet.remark


def test_bad_folders_end_in_one_line(tmp_path: Path, results: Results) -> None:
    old = app_folders.old_schema(tmp_path / "old", results)
    for folder, said in ((tmp_path / "none", "holds no results"), (old, "has schema 0")):
        done = subprocess.run(
            [sys.executable, "-m", "wdecomp", "view", str(folder)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 1
        assert done.stderr.startswith(f"wdecomp: {folder}: {said}")
        assert done.stderr.count("\n") == 1
        assert done.stdout == ""


def test_the_app_is_started_for_this_machine_alone(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def started(_: str, command: list[str]) -> Any:
        asked.append(command)

    monkeypatch.setattr("os.execv", started)
    arguments = ["view", str(results.path), str(results.path), "--port", "9000", "--no-open"]
    done = click.testing.CliRunner().invoke(commands, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    command = asked[0]
    assert Path(command[4]) == ROOT / "app" / "main.py"
    assert {"--server.address=127.0.0.1", "--server.port=9000"} <= set(command)
    assert {"--browser.gatherUsageStats=false", "--server.headless=true"} <= set(command)
    assert command[-3:] == ["--", str(results.path), str(results.path)]


def test_without_streamlit_it_says_what_to_install(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["wdecomp.cli.view"], "find_spec", lambda _: None)
    done = click.testing.CliRunner().invoke(commands, ["view", str(results.path)])
    assert "pip install 'wdecomp[app]'" in str(done.exception)


def test_the_app_imports_neither_torch_nor_what_reads_weights(results: Results) -> None:
    code = f"""
import json, sys
from streamlit.testing.v1 import AppTest
sys.argv = ["main.py", {str(results.path)!r}]
at = AppTest.from_file({str(ROOT / "app" / "main.py")!r}, default_timeout=120).run()
for page in ("layers", "fits", "columns", "findings", "data"):
    at.switch_page(f"views/{{page}}.py").run()
assert not at.exception
print(json.dumps(list(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    reading = {f"wdecomp.{name}" for name in ("checkpoint", "decomposition", "scan", "train")}
    assert not loaded & ({"torch", "numba", "transformers"} | reading)
    assert "wdecomp.charts" in loaded


def test_columns_that_are_not_kept_are_said_to_be_missing(tmp_path: Path) -> None:
    folder = app_folders.unfinished(tmp_path / "r", columns=False)
    with pytest.raises(ResultsError, match="keeps no columns along the output axis"):
        read_growing(folder, module_fits).columns("ft")
