"""Charts and the printed table show what the tables hold, and nothing in a name is markup."""

import re
from pathlib import Path

import pytest
import torch
from builders import moved, tiny_llama, write_full
from matplotlib import rc_context

import wdecomp
from wdecomp import report
from wdecomp.charts import interactive_scatter, panels, static_scatter
from wdecomp.table import Results


@pytest.fixture
def results(tmp_path: Path) -> Results:
    base = tiny_llama()
    for step in (20, 100):
        write_full(tmp_path / f"ft/checkpoint-{step}", moved(base, 1e-4 * step, seed=step))
    return wdecomp.compare(write_full(tmp_path / "base", base), tmp_path / "ft")


def test_a_panel_has_the_points_and_the_line_of_the_tables(results: Results) -> None:
    (panel,) = panels(results.modules, results.fits, "q", "decoder")
    rows = results.modules.query("module == 'q' and axis == 'output'")
    assert panel.points["delta_magnitude"].tolist() == rows["delta_magnitude"].tolist()
    fits = results.fits.query("module == 'q' and axis == 'output' and grouping == 'pooled'")
    fits = fits[fits["response"] == "delta_magnitude"].set_index("estimator")["value"]
    assert (panel.correlation, panel.slope) == (fits["pearson"], fits["slope"])
    assert panel.caption == f"ft: r = {fits['pearson']:+.2f}, n = 6"


def test_the_static_picture_says_what_it_shows(results: Results, tmp_path: Path) -> None:
    grid = {"LLaMA": panels(results.modules, results.fits, "q", "decoder")}
    with rc_context({"svg.fonttype": "none"}):
        static_scatter(grid, "A title", tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    for words in ("A title", "ft: r = ", "ΔD", "ΔM", "step 20", "step 100", "layer"):
        assert words in text
    static_scatter(grid, "A title", tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_the_interactive_picture_needs_no_network_and_obeys_no_name(tmp_path: Path) -> None:
    evil = "layers.{}.<a href='http://host/x'>q</a>.q_proj.weight"
    base = {evil.format(i): torch.randn(6, 5) for i in range(3)}
    a, b = write_full(tmp_path / "a", base), write_full(tmp_path / "b", moved(base))
    results = wdecomp.compare(a, b)
    grid = {"x": panels(results.modules, results.fits, "q", "decoder")}
    interactive_scatter(grid, "A title", tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", page)
    assert "<a href='http://host" not in page
    assert "&lt;a href=" in page or r"\u0026lt;a href=" in page


def test_the_table_has_a_line_for_each_module_kind_with_layers(results: Results) -> None:
    table = report.summary(results)
    assert table["module"].tolist() == ["down", "q", "v"]
    last = results.modules.query("module == 'q' and axis == 'output' and step == 100")
    q = table.set_index("module").loc["q"]
    assert q["delta_direction"] == pytest.approx(last["delta_direction"].mean())
    assert (q["layers"], q["steps"]) == (3, 2)
    text = report.as_text(table, "output")
    assert text.isascii()
    assert max(len(line) for line in text.splitlines()) <= 100


def test_notes_tell_of_broken_zero_unchanged_and_left_out(tmp_path: Path) -> None:
    base = tiny_llama(2)
    tuned = moved(base) | {"extra.weight": torch.ones(2, 3)}
    del tuned["model.norm.weight"]
    q, v = (f"model.layers.0.self_attn.{kind}_proj.weight" for kind in "qv")
    tuned[q][0, 0] = float("nan")
    base[v][2] = 0
    same = "model.layers.1.mlp.down_proj.weight"
    tuned[same] = base[same].clone()
    results = wdecomp.compare(write_full(tmp_path / "a", base), write_full(tmp_path / "b", tuned))
    notes = "\n".join(report.notes(results))
    assert f"1 of 7 matrices equal the base's ({same})" in notes
    assert f"{q}: 1 output columns hold NaN" in notes
    assert f"1 zero columns have no direction and are left out ({v})" in notes
    assert "2 tensors are not compared (extra.weight, model.norm.weight)" in notes


def test_json_is_one_object_of_plain_numbers(results: Results) -> None:
    found = report.as_json(results, "output")
    assert found["schema"] == 1
    assert [row["module"] for row in found["summary"]] == ["down", "q", "v"]
    assert all(type(row["delta_magnitude"]) is float for row in found["summary"])
