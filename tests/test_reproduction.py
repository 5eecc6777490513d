"""The paper's experiments, on a model of a few thousand parameters: every trial, and the page."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import BertConfig, BertModel, BertTokenizerFast

from wdecomp.demo.training import Size
from wdecomp.errors import ResultsError
from wdecomp.reproduction import trials
from wdecomp.reproduction.figures import Runs, correlation_table, score_table, spread
from wdecomp.reproduction.memory import measured_saving
from wdecomp.reproduction.page import write_page
from wdecomp.reproduction.running import Done, Outcome, run_trials
from wdecomp.reproduction.trials import Trial, all_trials, trial
from wdecomp.reproduction.wording import above, settled, sign

TINY = Size(4, 4, 16)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    words = [f"{letter}" for letter in "abcdefghijklmnopqrstuvwxyz().,_"]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *(f"##{w}" for w in words)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertTokenizerFast(vocab_file=str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def test_equal_settings_are_trained_once_and_every_trial_has_its_own_folder() -> None:
    chosen = all_trials(range(3))
    assert len(chosen) == len(set(chosen)) == len({each.name for each in chosen}) == 99
    assert trial("dora") in trials.ranks()
    assert trial("dora") in trials.sizes()
    assert {each.alpha for each in trial("lora", rank=4).adapters.values()} == {8}


def test_half_of_the_matrices_have_magnitudes_alone() -> None:
    methods = {end: each.method for end, each in trials.granularity()[2].adapters.items()}
    assert methods["key"] == "dora"
    assert methods["intermediate.dense"] == "magnitude"


def test_trials_leave_scores_and_tables_and_are_not_run_again(
    encoder: Path, tmp_path: Path
) -> None:
    chosen = [trial("full"), trial("dora", decay=1.0), trial("lora", nf4=True)]
    full, dora, quantized = run_trials(tmp_path, encoder, chosen, TINY, 1, progress=False)
    assert full.outcome.rounded is not None
    assert dora.outcome.rounded is None
    assert quantized.results is None
    assert dora.results is not None
    assert set(dora.results.modules["step"]) == {1, 2, 3, 4}
    assert set(dora.results.modules["module"]) == {"q", "v"}
    assert not list(tmp_path.rglob("*.state"))
    kept = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("outcome.json")}
    again = run_trials(tmp_path, encoder, chosen, TINY, 1, progress=False)
    assert [each.outcome for each in again] == [each.outcome for each in (full, dora, quantized)]
    assert kept == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("outcome.json")}
    with pytest.raises(ResultsError, match="other settings"):
        run_trials(tmp_path, encoder, chosen, replace(TINY, batch=8), 1, progress=False)
    _page_of(full, dora, tmp_path, encoder)


def _page_of(full: Done, dora: Done, folder: Path, encoder: Path) -> None:
    """The page of made-up scores and of these trials' tables: every figure is where it belongs."""
    done = []
    for number, each in enumerate(all_trials(range(2))):
        outcome = Outcome(0.5 + number / 1000, 0.25, 1.0, 100, 1.5, 1.0)
        results = None if each.nf4 else (full if each.method == "full" else dora).results
        done.append(Done(each, outcome, results))
    runs = Runs(done)
    page = write_page(folder, runs, (0.125, 0.0625), measured_saving(encoder)).read_text()
    for picture in re.findall(r"\]\((.+?)\)", page):
        assert (folder / picture).stat().st_size > 5000
    assert "MRR@10 (base 0.125)" in page
    assert "in NF4 0.062" in page
    assert "to the byte, whatever the batch" in page
    lora, other = (score_table(runs, [trial(m)]).iloc[0] for m in ("lora", "dora"))
    assert f"| LoRA | 16 | 1.500 | {lora['mean']:.3f} [{lora['low']:.3f}" in page
    gained = other["mean"] - lora["mean"]
    assert f"DoRA above LoRA in 2 of 2 seeds, by {gained:+.3f}" in page
    assert "nan" not in page.lower()
    table = correlation_table(runs, [trial("dora")], ["q"])
    assert list(table["axis"]) == ["output", "input"]
    figures = dora.results.modules  # type: ignore[union-attr]
    query = figures[(figures["module"] == "q") & (figures["axis"] == "output")]
    expected = query["delta_direction"].corr(query["delta_magnitude"])
    assert table["mean"][0] == pytest.approx(expected, abs=1e-9)


def test_sentences_say_what_the_seeds_say() -> None:
    assert above([2.0, 1.0], [1.0, 2.0], "A", "B").startswith(
        "A above B in 1 of 2 seeds, by +0.000"
    )
    assert settled({"x": ([1.0], [2.0])}, "A", "B") == "A is not above B in any seed at x"
    assert sign(-0.2, 0.1, -0.3) == "a sign that changes with the seed"
    assert spread([1.0, 2.0, 6.0]) == {"mean": 3.0, "low": 1.0, "high": 6.0}


def test_a_trial_is_json(tmp_path: Path) -> None:
    assert json.loads(json.dumps(Trial("dora", seed=2).record()))["lr"] == 5e-3
