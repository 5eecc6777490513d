"""The HTML report: one file, offline, with what the tables say; no name in it is obeyed."""

import base64
import gzip
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import click.testing
import pandas as pd
import pytest
from synthetic_tables import small_results

from wdecomp.audit import Finding, Rule
from wdecomp.cli import commands
from wdecomp.publishing.page import page
from wdecomp.stats import Conclusion
from wdecomp.table import Results

EVIL = "<img src=x onerror=alert(1)><a href='http://host/x'>q</a>"
RULE = Rule("frozen", "the magnitude <i>never</i> moved", "Train it.")
CONCLUSION = Conclusion(EVIL, "decoder", "q", "output", ("rises",), "The slope is real.")
FINDING = Finding(RULE, "error", EVIL, (10, 20), "all of 4 are", {"n": 4}, (EVIL,))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return small_results(tmp_path_factory.mktemp("report") / "results", EVIL)


@pytest.fixture(scope="module")
def html(results: Results) -> str:
    run = results.run | {"base": results.run["base"] | {"path": "/home/someone/secret/a/base"}}
    return page(_With(results.path, run=run), [FINDING], [CONCLUSION])


class _Tags(HTMLParser):
    """Every tag with its attributes, and the text between."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def _payload(html: str) -> tuple[dict[str, Any], str]:
    """The figures, and plotly's script."""
    letters = re.search(r'id="payload">([^<]*)<', html)
    assert letters is not None
    packed = base64.b85decode(letters[1].replace(",", "<"))
    line, _, script = gzip.decompress(packed).decode().partition("\n")
    return json.loads(line), script


def test_the_page_asks_nothing_of_anyone(html: str) -> None:
    tags = _Tags(html).tags
    assert len(html.encode()) < 2_500_000
    links = [(tag, a.get("href") or a.get("src")) for tag, a in tags if {"href", "src"} & set(a)]
    assert all(link.startswith("#") for tag, link in links if tag == "a" and link)
    assert {tag for tag, _ in links} == {"a", "link"}  # the link is an empty icon
    kept = {value for _, a in tags for key, value in a.items() if key.endswith("xlink:href")}
    assert all(value and value.startswith(("#", "data:image/png;")) for value in kept)


def test_only_the_two_scripts_that_the_policy_knows_can_run(html: str) -> None:
    policy = next(a["content"] for tag, a in _Tags(html).tags if a.get("http-equiv"))
    assert policy is not None
    own = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert len(own) == 1
    digests = [
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        for script in (_payload(html)[1], own[0])
    ]
    assert re.findall(r"'sha256-([^']+)'", policy) == digests
    assert policy.startswith("default-src 'none';")
    assert "unsafe-eval" not in policy
    assert "<!--" not in own[0]


def test_the_figures_hold_the_table(html: str, results: Results) -> None:
    payload, _ = _payload(html)
    words, figures = payload["words"], payload["figures"]
    assert list(figures) == ["scatter", "layers", "heatmap", "trajectories", "columns"]
    choices = [variant["choice"] for variant in figures["scatter"]]
    assert choices == [{"module": m, "axis": a} for m in ("q", "v") for a in ("output", "input")]
    v_input = figures["scatter"][3]["data"]
    rows = results.modules.query("module == 'v' and axis == 'input' and run == 'dora'")
    found = {
        words[text]: (x, y)
        for trace in v_input
        if trace.get("mode") == "markers" and "text" in trace
        for text, x, y in zip(trace["text"], trace["x"], trace["y"], strict=True)
    }
    for row in rows.itertuples():
        key = f"dora · step {row.step} · layer {row.layer} · {row.parameter}"
        expected = (row.delta_direction, row.delta_magnitude)
        assert found[key] == pytest.approx(expected, rel=1e-3)


def test_readers_without_scripts_see_tables_and_pictures(html: str, results: Results) -> None:
    tags = _Tags(html)
    assert sum(tag == "svg" for tag, _ in tags.tags) == 5
    words = " ".join(tags.words)
    for expected in ("ΔM, mean |m − m0|", "step 4000", "lm_head.weight", "not adapted"):
        assert expected in words
    last = results.modules.query(
        "module == 'q' and axis == 'output' and run == 'dora' and step == 4000"
    )
    assert f"{last['delta_direction'].mean():.3g}" in tags.words


def test_no_name_is_markup(html: str) -> None:
    tags = _Tags(html).tags
    assert not [tag for tag, a in tags if tag in ("img", "iframe", "i") or "onerror" in a]
    assert "alert(1)" in "".join(_Tags(html).words)
    words = _payload(html)[0]["words"]
    assert not [word for word in words if "<" in word]


def test_what_a_script_shows_has_no_markup_and_steers_no_direction(tmp_path: Path) -> None:
    name = "</script><b>a\u202eb\x1b[31m"
    figures = _payload(page(small_results(tmp_path / "results", name), [], []))[0]["figures"]
    shown = json.dumps(figures, ensure_ascii=False)
    assert "a\\\\u202eb" in shown
    assert not {"\u202e", "\x1b"} & set(shown)
    drawn = json.dumps([each["layout"] for found in figures.values() for each in found])
    assert "&lt;/script&gt;" in drawn
    assert "</script>" not in drawn


def test_findings_and_conclusions_are_told(html: str) -> None:
    text = " ".join(" ".join(_Tags(html).words).split())
    for words in ("1 error.", "steps 10 to 20", "the magnitude <i>never</i> moved", "n 4",
                  "What to do: Train it.", "The slope is real."):  # fmt: skip
        assert words in text, words
    assert re.search(r'<a href="#findings">', html)
    assert re.search(r'<section id="conclusions">', html)


def test_paths_of_the_one_who_compared_are_not_told(html: str) -> None:
    assert "someone" not in html
    assert "a/base" in html


@pytest.mark.parametrize(
    ("query", "figures"),
    [
        ("axis == 'input' and step == 4000", ["scatter", "layers", "heatmap", "columns"]),
        ("layer == 0", []),
        ("run == 'nothing'", []),
    ],
)
def test_a_report_has_the_figures_that_there_is_something_for(
    results: Results, query: str, figures: list[str]
) -> None:
    said = page(_With(results.path, modules=results.modules.query(query)), [], [])
    assert list(_payload(said)[0]["figures"]) == figures
    assert "What was compared" in said
    assert 'id="findings"' not in said


def test_the_command_writes_the_same_page(results: Results, html: str, tmp_path: Path) -> None:
    file = tmp_path / "a.html"
    arguments = ["report", str(results.path), "-o", str(file)]
    done = click.testing.CliRunner().invoke(commands, arguments)
    assert done.exit_code == 0, done.output
    assert done.stdout == ""
    assert re.fullmatch(r"Wrote .*a\.html \(2\.\d MB\)\.\n", done.stderr)
    written = file.read_text(encoding="utf-8")
    assert written[written.index("<h2>Magnitude") :] == html[html.index("<h2>Magnitude") :]
    assert "The slope is real." not in written


class _With(Results):
    """Results of which some tables are others."""

    def __init__(self, path: Path, **tables: pd.DataFrame | dict[str, Any]) -> None:
        super().__init__(path)
        self.__dict__.update(tables)
