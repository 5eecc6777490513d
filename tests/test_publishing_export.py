"""Exported tables hold what the results hold, and nothing in them is obeyed."""

import csv
import io
import json
import re
from pathlib import Path

import click.testing
import pandas as pd
import pyarrow.parquet as pq
import pytest
from synthetic_tables import small_results

from wdecomp.cli import commands
from wdecomp.errors import ResultsError
from wdecomp.publishing import FORMATS, TABLES, Selection, export
from wdecomp.publishing.formats import write_csv, write_latex, write_markdown
from wdecomp.table import Results

HOSTILE = [
    *("=HYPERLINK(1)", "+1", "-1", "@SUM(A1)", " =1", "\uff1d1", "\t=1", "\r=1"),
    *("![x](http://host/x.png)", "[a](http://host)", "http://host/x", "<script>alert(1)</script>"),
    *("a|b`c", "\\input{x}", "$x$ & % # _ ^ ~", "a\x1b[2J\u202eb", "www.host.com", "**b**"),
]
EVERYTHING = Selection()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return small_results(tmp_path_factory.mktemp("export") / "results")


def _exported(results: Results, table: str, form: str, selection: Selection = EVERYTHING) -> bytes:
    stream = io.BytesIO()
    export(results, table, form, stream, selection)
    return stream.getvalue()


@pytest.mark.parametrize("table", ["modules", "fits", "facts", "left_out"])
def test_csv_json_and_parquet_hold_the_whole_table(results: Results, table: str) -> None:
    expected = getattr(results, table)
    rows = list(csv.DictReader(io.StringIO(_exported(results, table, "csv").decode())))
    found = json.loads(_exported(results, table, "json"))
    read = pq.read_table(io.BytesIO(_exported(results, table, "parquet"))).to_pandas()
    assert found["table"] == table
    assert len(rows) == len(found["rows"]) == len(read) == len(expected)
    assert list(rows[0]) == list(found["rows"][0]) == list(read) == list(expected)
    for column in expected.select_dtypes("float"):
        known = expected[column].to_list()
        assert pd.Series([float(row[column] or "nan") for row in rows]).equals(pd.Series(known))
        assert [row[column] for row in found["rows"]] == [None if v != v else v for v in known]
    assert read.astype(str).equals(expected.astype(str)) or len(read) == len(expected)


def test_columns_have_their_checkpoint_and_place(results: Results) -> None:
    read = pq.read_table(io.BytesIO(_exported(results, "columns", "parquet"))).to_pandas()
    assert list(read)[:7] == ["run", "step", "stack", "layer", "module", "parameter", "axis"]
    assert len(read) == 3 * 4 * 2 * 4 * 2 * 24  # runs, steps, axes, layers, modules, columns
    some = Selection(runs=("dora",), steps=(4000,), modules=("v",), axis="input")
    found = json.loads(_exported(results, "columns", "json", some))["rows"]
    expected = results.columns("dora", 4000, axis="input")
    expected = expected[expected["parameter"].str.contains("v_proj")]
    assert [row["delta_direction"] for row in found] == expected["delta_direction"].tolist()
    assert {row["layer"] for row in found} == {0, 1, 2, 3}


def test_a_selection_of_nothing_is_an_error_not_an_empty_table(results: Results) -> None:
    for selection, said in {
        Selection(runs=("lra",)): "'lra': no such run. There are ft, lora, dora",
        Selection(steps=(1,)): "1: no such step. There are 1000, 2000, 3000 and 1 more",
        Selection(modules=("k",)): "'k': no such module. There are q, v",
    }.items():
        with pytest.raises(ResultsError, match=said):
            _exported(results, "modules", "csv", selection)


@pytest.mark.parametrize("text", HOSTILE)
def test_csv_cells_are_inert(text: str) -> None:
    stream = io.BytesIO()
    write_csv([pd.DataFrame({"parameter": [text], "value": [-1.5]})], stream, "t")
    (row,) = csv.DictReader(io.StringIO(stream.getvalue().decode()))
    assert not re.match(r"\s*[=+\-@\uff1d]", row["parameter"])
    assert row["value"] == "-1.5"  # a number stays a number
    assert row["parameter"].isprintable()
    if text.isprintable() and not re.match(r"\s*[=+\-@\uff1d]", text):
        assert row["parameter"] == text


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_cells_are_inert(text: str) -> None:
    stream = io.BytesIO()
    write_markdown([pd.DataFrame({"parameter": [text], "n": [0.123456]})], stream, "t")
    line = stream.getvalue().decode().splitlines()[2]
    cells = re.split(r"(?<!\\)\|", line)
    assert len(cells) == 4
    cell = cells[1].strip()
    assert cells[2].strip() == "0.1235"
    fence = re.match("`*", cell)
    assert fence is not None
    inside = cell.strip("`") if fence[0] else cell
    assert fence[0] or re.fullmatch(r"[\w .-]+", cell), cell
    assert fence[0] not in re.findall("`+", inside) or not fence[0]


@pytest.mark.parametrize("text", HOSTILE)
def test_latex_cells_are_inert(text: str) -> None:
    stream = io.BytesIO()
    write_latex([pd.DataFrame({"parameter": [text]})], stream, "t")
    cell = stream.getvalue().decode().splitlines()[4].removesuffix(r" \\")
    commands = re.findall(r"\\([a-zA-Z]+)", cell)
    assert set(commands) <= {*("textbackslash", "textasciitilde", "textasciicircum"),
                             *("textless", "textgreater", "textbar", "textquotedbl")}  # fmt: skip
    assert not re.search(r"(?<!\\)[&%$#_]", cell)


def test_markdown_and_latex_are_tables(results: Results) -> None:
    lines = _exported(results, "modules", "md").decode().splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) == len(results.modules) + 2
    tex = _exported(results, "modules", "latex").decode()
    assert tex.startswith("\\begin{tabular}{ll")
    assert tex.endswith("\\bottomrule\n\\end{tabular}\n")
    assert tex.count("\\\\\n") == len(results.modules) + 1


def _run(*arguments: str) -> click.testing.Result:
    return click.testing.CliRunner().invoke(commands, ["export", *arguments])


def test_the_command_prints_or_writes(results: Results, tmp_path: Path) -> None:
    printed = _run(str(results.path), "--table", "fits", "--run", "dora")
    assert printed.exit_code == 0
    assert printed.stdout_bytes == _exported(results, "fits", "csv", Selection(runs=("dora",)))
    file = tmp_path / "a.parquet"
    written = _run(str(results.path), "--format", "parquet", "-o", str(file))
    assert (written.stdout, written.stderr) == ("", f"Wrote {file}.\n")
    assert len(pq.read_table(file)) == len(results.modules)
    again = _run(str(results.path), "--run", "none", "-o", str(file))
    assert isinstance(again.exception, ResultsError)
    assert len(pq.read_table(file)) == len(results.modules)


def test_the_command_offers_what_there_is() -> None:
    options = {p.name: p.type for p in commands.commands["export"].params}
    assert tuple(options["table"].choices) == TABLES
    assert tuple(options["form"].choices) == tuple(FORMATS)


@pytest.mark.parametrize("command", ["report", "export"])
def test_a_folder_is_no_name_of_a_file(command: str, results: Results, tmp_path: Path) -> None:
    for name in (".", ""):
        done = click.testing.CliRunner().invoke(commands, [command, str(results.path), "-o", name])
        assert done.exit_code == 2
        assert "names no file" in done.output
    done = click.testing.CliRunner().invoke(
        commands, [command, str(results.path), "-o", str(tmp_path)]
    )
    assert isinstance(done.exception, ResultsError)
    assert str(done.exception).startswith(f"{tmp_path}: cannot be written")
    assert list(tmp_path.iterdir()) == []
