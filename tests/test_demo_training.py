"""The demo's data, its task, and a small run of the whole experiment."""

import math
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors import safe_open

from wdecomp.demo import encoder
from wdecomp.demo.pairs import Pair, split, standard_library_pairs
from wdecomp.demo.training import fine_tune
from wdecomp.errors import CheckpointError, TrainingError

PAIRS = [
    Pair("textwrap.dedent(text)", "Remove any common leading whitespace from every line."),
    Pair("class queue.Queue", "Create a queue object with a given maximum size."),
    Pair("bisect.insort(a, x)", "Insert item."),
]
# Padding changes the order of float32 sums of up to 1536 terms; the vectors have length 1.
ROUNDING = {"rtol": 0, "atol": 5e-6}

SOURCE = '''
raise SystemExit("imported")
class Box:
    """A box that holds exactly one thing.

    A second paragraph.
    """
    def put(self, item, /, *rest, lid=None, **more):
        """Puts   an item
        into the box."""
        def inner():
            """A function within a function is left out."""
    @classmethod
    async def make(cls): "Makes a box out of nothing."
    def short(self): "Too short."
def twin(): "A box that HOLDS exactly one thing."
'''


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)


def test_pairs_are_read_from_the_source_without_running_it(tmp_path: Path) -> None:
    for name in ("pack/__init__.py", "pack/test/skipped.py", "idlelib/skipped.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(SOURCE)
    (tmp_path / "template.py").write_text("def {name}():")
    assert standard_library_pairs(tmp_path) == [
        ("class pack.Box", "A box that holds exactly one thing."),
        ("pack.Box.put(item, *rest, lid, **more)", "Puts an item into the box."),
        ("pack.Box.make()", "Makes a box out of nothing."),
    ]


def test_standard_library_gives_thousands_of_distinct_pairs_in_one_order() -> None:
    pairs = standard_library_pairs()
    assert pairs == standard_library_pairs()
    assert len({summary.casefold() for _, summary in pairs}) == len(pairs) > 2000
    assert dict(pairs)["textwrap.dedent(text)"].startswith("Remove any common leading whitespace")


def test_split_depends_on_the_pair_alone_and_takes_a_tenth_for_testing() -> None:
    pairs = [Pair(f"f{i}()", f"The function number {i}.") for i in range(3000)]
    train, test = split(pairs)
    assert sorted(train + test) == sorted(pairs)
    assert 250 < len(test) < 350
    half = set(pairs[::2])
    expected = [pair for pair in train if pair in half], [pair for pair in test if pair in half]
    assert split(pairs[::2]) == expected


def test_pairs_need_no_framework() -> None:
    code = "import sys, wdecomp.demo.pairs; print({'torch', 'numpy'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"


def test_packaged_model_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (encoder.packaged_model() / "config.json").is_file()
    monkeypatch.setattr(encoder, "SHA256", "0" * 64)
    with pytest.raises(CheckpointError, match=r"has SHA-256 53aa51.*, 000.* was expected"):
        encoder.packaged_model()


def test_embedding_is_the_unit_mean_of_the_tokens_whatever_shares_the_chunk(
    offline: None,
) -> None:
    folder = encoder.packaged_model()
    model, tokens = encoder.load_encoder(folder), encoder.tokenize(folder, PAIRS)
    assert max(map(len, tokens.summaries)) <= encoder.LONGEST
    sentences = (tokens.signatures + tokens.summaries) * 3  # 18: two chunks
    assert len({len(ids) for ids in sentences}) > 3
    with torch.no_grad():
        rows = encoder.embed(model, sentences, tokens.pad)
        for row, ids in zip(rows, sentences, strict=True):
            mean = model(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(0)
            torch.testing.assert_close(row, mean / mean.norm(), **ROUNDING)


def plane(model: object, sentences: list[list[int]], pad: int) -> torch.Tensor:
    """A stand-in for `embed`: a sentence's first token is its angle in degrees."""
    angles = torch.tensor([math.radians(ids[0]) for ids in sentences], dtype=torch.float64)
    return torch.stack([angles.cos(), angles.sin()], 1)


def test_contrastive_loss_is_the_cross_entropy_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "embed", plane)
    batch = encoder.TokenPairs([[0], [5], [20]], [[3], [1], [30]], 0)
    ours = encoder.contrastive_loss(SimpleNamespace(), batch)
    a, b = np.radians([0, 5, 20]), np.radians([3, 1, 30])
    p = np.exp(20 * np.cos(a[:, None] - b))
    own = np.diagonal(p)
    expected = -(np.log(own / p.sum(1)).mean() + np.log(own / p.sum(0)).mean()) / 2
    np.testing.assert_allclose(ours.item(), expected, rtol=1e-12)


def test_score_counts_the_better_ranked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "embed", plane)
    summaries = [[10 * i] for i in range(1, 13)]  # at 10°, 20°, …, 120°
    signatures = [[121], [11], [14], [179], *summaries[4:]]
    pairs = encoder.TokenPairs(signatures, summaries, 0)
    ranks = [12, 2, 3, 9] + [1] * 8  # a rank of 12 counts as 0
    reciprocal = [1 / rank if rank <= 10 else 0 for rank in ranks]
    score = encoder.retrieval_score(SimpleNamespace(), pairs)
    np.testing.assert_allclose(score, (np.mean(reciprocal), 8 / 12), rtol=1e-6)


def test_folder_without_an_encoder_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"has no config.json with a .safetensors file"):
        fine_tune(tmp_path / "out", tmp_path, quick=True, progress=False)


def names_in(path: Path) -> set[str]:
    with safe_open(path, "pt") as file:
        return set(file.keys())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_quick_demo_writes_all_runs_and_scores_them(
    tmp_path: Path, offline: None, capfd: pytest.CaptureFixture[Any]
) -> None:
    base, *runs = fine_tune(tmp_path, encoder.packaged_model(), quick=True, progress=False)
    assert capfd.readouterr() == ("", "")
    assert [(run.method, run.decay) for run in runs] == [
        (method, decay) for decay in (0, 1) for method in ("full", "lora", "dora")
    ]
    for run in runs:
        steps = sorted(path.name for path in run.folder.iterdir())
        assert steps == [*(f"checkpoint-{n}" for n in (2, 4, 5, 6, 7, 8)), "training.state"]
        assert run.mrr > base.mrr
        assert len(run.losses) == 8
    on_disk = names_in(base.folder / "model.safetensors")
    full, lora, dora = (run.folder / "checkpoint-8" for run in runs[:3])
    assert on_disk - names_in(full / "model.safetensors") == {"embeddings.position_ids"}
    key = "base_model.model.encoder.layer.0.attention.self.query.lora_A.weight"
    assert key in names_in(lora / "adapter_model.safetensors")

    _, test_pairs = split(standard_library_pairs())
    tokens = encoder.tokenize(base.folder, test_pairs[:64])
    again = PeftModel.from_pretrained(encoder.load_encoder(base.folder), dora)
    np.testing.assert_allclose(encoder.retrieval_score(again, tokens)[0], runs[2].mrr, rtol=1e-3)
    shutil.rmtree(tmp_path)  # 1.2 GB, which pytest would keep
