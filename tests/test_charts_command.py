"""`wdecomp plot` writes what was asked for, or says in one line why not."""

from pathlib import Path

import click.testing
import pytest
from matplotlib import rc_context
from synthetic_tables import small_results

from wdecomp.charts.views import FIGURES
from wdecomp.cli import commands, main
from wdecomp.table import Results


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return small_results(tmp_path_factory.mktemp("plot") / "results")


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
