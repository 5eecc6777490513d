"""The whole demo, reduced: it trains, compares, prints and draws."""

import json
from pathlib import Path

import pytest

import wdecomp
from wdecomp.demo.experiment import run_demo
from wdecomp.errors import ResultsError


@pytest.mark.slow
def test_the_quick_demo_ends_with_the_table_and_the_picture(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    text = run_demo(folder, None, quick=True, progress=False)
    found = json.loads((folder / "demo.json").read_text())["findings"]
    assert [(row["decay"], row["run"]) for row in found] == [
        (decay, run) for decay in (0, 1) for run in ("ft", "lora", "dora")
    ]
    for row in found:
        assert f"{row['late']:+.2f} [{row['low']:+.2f},{row['high']:+.2f}]" in text
    by = {(row["decay"], row["run"]): row for row in found}
    # Arithmetic, not learning: LoRA's norms grow as geometry forces them to, and decay shrinks
    # long columns more than short ones.
    assert 0.85 < by[0, "lora"]["growth_ratio"] < 1.15
    assert by[1, "ft"]["within_step"] < -0.7
    assert by[1, "dora"]["within_step"] < -0.4
    for name in ("figure-2.svg", "figure-2.png", "figure-2.html"):
        assert (folder / name).stat().st_size > 10_000
    modules = wdecomp.read_results(folder / "results-decay-1").modules
    assert sorted(modules["method"].unique()) == ["dora", "full", "lora"]
    assert sorted(modules["step"].unique()) == [2, 4, 5, 6, 7, 8]


def test_a_folder_that_is_no_demo_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ResultsError, match=r"holds thesis\.txt, which is no demo"):
        run_demo(tmp_path, None, quick=True, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
