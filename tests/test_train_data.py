"""The training set on disk, the configuration, the order of batches, and the tasks' losses."""

import json
import math
from itertools import chain, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from wdecomp.errors import TrainingError
from wdecomp.train.config import (
    adapters_of,
    planned_steps,
    read_config,
    saved_steps,
)
from wdecomp.train.data import Dataset, Row, batches, epoch_order, read_dataset
from wdecomp.train.learner import default_targets
from wdecomp.train.tasks import Example, contrastive, encode, lm_loss, loss_of, unit_means

NEEDED = {"method": "dora", "model": "m", "data": "d.txt", "out": "o"}
WORDS = ["[PAD]", "[UNK]", "<s>", "</s>", "a", "b", "c", "d", "e"]
# Float64 sums of a few hundred terms in another order.
ROUNDING = {"rtol": 1e-12, "atol": 1e-12}


def tokenizer() -> PreTrainedTokenizerFast:
    """Words to ids, <s> before a text."""
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", bos_token="<s>", eos_token="</s>"
    )


def write(file: Path, *rows: Any) -> Path:
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("row", "task", "texts", "label"),
    [
        ({"anchor": "a", "positive": "b"}, "pairs", ("a", "b"), None),
        ({"document": "b", "query": "a", "id": 7}, "pairs", ("a", "b"), None),
        ({"text1": "a", "text2": "b"}, "pairs", ("a", "b"), None),
        ({"sentence1": "a", "sentence2": "b"}, "pairs", ("a", "b"), None),
        ({"text": "a", "label": "x"}, "classify", ("a",), "x"),
        ({"text": "a"}, "lm", ("a",), None),
        ({"completion": "b", "prompt": "a"}, "lm", ("a", "b"), None),
    ],
)
def test_the_fields_say_what_the_task_is(
    tmp_path: Path, row: dict[str, str], task: str, texts: tuple[str, ...], label: str | None
) -> None:
    other = row | {"label": "y"} if task == "classify" else row
    file = write(tmp_path / "a.jsonl", row, other)
    found = read_dataset(file)
    assert (found.task, found.rows[0]) == (task, Row(f"{file}:1", texts, label))
    assert found == read_dataset(file, found.task)


def test_labels_are_in_the_order_of_numbers_or_of_texts(tmp_path: Path) -> None:
    numbers = [{"text": "a", "label": label} for label in (10, 9, 2)]
    assert read_dataset(write(tmp_path / "a.jsonl", *numbers)).labels == ("2", "9", "10")
    texts = [{"text": "a", "label": label} for label in ("z", "10", "9")]
    assert read_dataset(write(tmp_path / "a.jsonl", *texts)).labels == ("10", "9", "z")


def test_a_text_file_has_a_text_in_each_line_and_a_list_has_its_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\n\n  two\u2028half\n".encode())
    rows = read_dataset(tmp_path / "a.txt").rows
    assert rows == [
        Row(f"{tmp_path}/a.txt:1", ("one",)),
        Row(f"{tmp_path}/a.txt:3", ("two\u2028half",)),
    ]
    (tmp_path / "b.json").write_text('\n[ {"text":\n"x"},\n\n {"text": "y"} , {"text": "]["}]')
    rows = read_dataset(tmp_path / "b.json").rows
    assert [row.where.rpartition(":")[2] for row in rows] == ["2", "5", "5"]
    assert [row.texts[0] for row in rows] == ["x", "y", "]["]
    write(tmp_path / "lines.json", {"text": "x"}, {"text": "y"})
    assert len(read_dataset(tmp_path / "lines.json").rows) == 2


@pytest.mark.parametrize(
    ("name", "content", "task", "message"),
    [
        ("a.csv", b"x", "auto", "a.csv: is a .csv file, .txt or .jsonl or .json was expected"),
        ("a.txt", b" \n\n", "auto", "a.txt: has no rows, one at least was expected"),
        ("a.txt", b"x\nb\xff", "auto", "a.txt:2: is not UTF-8 (byte 0xff)"),
        ("a.jsonl", b'{"text": "x"}\n{"text"\n', "auto", "a.jsonl:2: is not JSON (Expecting"),
        ("a.jsonl", b"[" * 100_000, "auto", "a.jsonl:1: is not JSON ("),
        ("a.jsonl", b'{"x": 1, "y": 2}', "auto", "a.jsonl:1: has the fields x, y, expected text"),
        ("a.jsonl", b'["x"]', "auto", "a.jsonl:1: has a list, expected text and label or"),
        ("a.jsonl", b'{"text": "x"}\n{}', "auto", "a.jsonl:2: has no fields, expected prompt and"),
        ("a.jsonl", b'{"text": 5}', "auto", "a.jsonl:1: text is 5, a text was expected"),
        ("a.jsonl", b'{"text": "\\ud800"}', "auto", "a.jsonl:1: text has half a surrogate pair"),
        (
            "a.jsonl",
            b'{"text": "x", "label": 0.5}',
            "auto",
            "a.jsonl:1: label is 0.5, a text or a whole number was expected",
        ),
        ("a.jsonl", b'{"text": "x", "label": 1}', "auto", "a.jsonl: has the label 1 alone, two"),
        (
            "a.jsonl",
            b'{"text1": "x", "text2": "y", "label": 0}',
            "auto",
            "a.jsonl:1: has the fields text1, text2, label, expected",
        ),
        (
            "a.jsonl",
            b'{"text": "x", "label": "y"}',
            "pairs",
            "a.jsonl:1: has the fields text, label, expected anchor and positive or query and",
        ),
    ],
)
def test_a_bad_row_is_one_line_with_its_place(
    tmp_path: Path, name: str, content: bytes, task: Any, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TrainingError) as error:
        read_dataset(tmp_path / name, task)
    assert str(error.value).startswith(f"{tmp_path}/{message}")
    assert "\n" not in str(error.value)


def test_the_order_is_a_function_of_seed_and_epoch_and_sees_each_row_once() -> None:
    assert epoch_order(7, 3, 1) == epoch_order(7, 3, 1)
    assert len({tuple(epoch_order(7, seed, epoch)) for seed in (3, 4) for epoch in (0, 1)}) == 4
    epochs = list(islice(batches(7, 3, 3), 6))
    assert [len(batch) for batch in epochs] == [2, 2, 3, 2, 2, 3]
    first, second = list(chain(*epochs[:3])), list(chain(*epochs[3:]))
    assert [first, second] == [epoch_order(7, 3, epoch) for epoch in (0, 1)]
    assert sorted(second) == list(range(7))


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('method = "lora"\nlr = 1\nepochs = 2\nsave-at = [1.0, 3]\ntargets = ["q"]\n')
    config = read_config(NEEDED | {"steps": 9}, file)
    assert (config.method, config.lr, config.steps, config.epochs) == ("dora", 1, 9, None)
    assert (config.save_at, config.targets, config.rank) == ((1.0, 3), ("q",), 16)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "ranks = 3\nlrs = 3",
            r"a.toml: has lrs, ranks, expected only method, model, .*, save_at\.",
        ),
        ("rank = 3.0", r"a.toml: rank is 3.0, a whole number was expected\."),
        ("rank = true", r"a.toml: rank is True, a whole number was expected\."),
        ('lr = "1e-3"', r"a.toml: lr is '1e-3', a number was expected\."),
        ("targets = 'q'", r"a.toml: targets is 'q', a list, each a text, was expected\."),
        ("rslora = 1", r"a.toml: rslora is 1, true or false was expected\."),
        ("axis = 'row'", r"a.toml: axis is 'row', output or input was expected\."),
        ("rank = ", r"a.toml: is not TOML \(Invalid value .*\)\."),
        ("rank = 0", r"^rank: is 0, at least 1 was expected\.$"),
        ("lr = 0.0", r"^lr: is 0.0, more than 0 was expected\.$"),
        ("clip = nan", r"^clip: is nan, a finite number was expected\.$"),
        ("dropout = 1.0", r"^dropout: is 1.0, less than 1 was expected\.$"),
        ("steps = 1\nepochs = 1", r"^steps and epochs: are both given, one was expected\."),
        (
            "method = 'lora'\nmagnitude_targets=['k']",
            r"^magnitude_targets: .* beside lora, dora or",
        ),
        ("targets = ['k']\nmagnitude_targets = ['k']", r"^targets: has k, which is in magnitude_"),
    ],
)
def test_a_bad_configuration_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.toml").write_text(text)
    told = [line.partition(" =")[0] for line in text.splitlines()]
    flags = {key: value for key, value in NEEDED.items() if key not in told}
    with pytest.raises(TrainingError, match=message):
        read_config(flags, tmp_path / "a.toml")


def test_what_is_missing_is_named() -> None:
    with pytest.raises(TrainingError, match=r"^data: is not given, a text was expected. .*--data"):
        read_config({"method": "full", "model": "m", "out": "o"})


def test_steps_and_checkpoints_follow_from_rows_and_shares() -> None:
    config = read_config(NEEDED | {"batch": 4, "accumulate": 2, "save_at": [0.25, 5]})
    assert planned_steps(config, 17) == 8  # 3 epochs of 5 batches, two in a step
    assert saved_steps(config, 8) == (2, 5, 8)
    for at in ([0], [9], [1.5], [-0.5]):
        with pytest.raises(TrainingError, match=f"save_at: is {at[0]}, above 0 and at most"):
            saved_steps(read_config(NEEDED | {"save_at": at}), 8)


def test_adapters_are_of_targets_and_of_magnitudes_alone() -> None:
    given = {"rank": 6, "alpha": 5, "half_rank": True, "magnitude_targets": ["k"]}
    found = adapters_of(read_config(NEEDED | given), ["q", "v"])
    assert {n: (a.method, a.rank, a.alpha) for n, a in found.items() if n != "k"} == {
        "q": ("dora", 3, 6),
        "v": ("dora", 3, 6),
    }
    assert found["k"].method == "magnitude"
    assert adapters_of(read_config(NEEDED | {"method": "full"}), ["q"]) == {}


def test_default_targets_are_queries_and_values_or_what_holds_them() -> None:
    block = "model.layers.1.self_attn."
    assert default_targets([block + n for n in ("q_proj", "k_proj", "v_proj")]) == (
        *("q_proj", "v_proj"),
    )
    assert default_targets(["transformer.h.0.attn.c_attn", "transformer.h.0.mlp.c_fc"]) == (
        "c_attn",
    )
    with pytest.raises(TrainingError, match=r"targets: are not given, and no module"):
        default_targets(["net.0", ""])


@pytest.mark.parametrize(
    ("texts", "length", "ids", "prompt"),
    [
        (("a b",), 9, "<s> a b </s>", 0),
        (("a b c",), 3, "<s> a b", 0),
        (("a b", "c d"), 9, "<s> a b c d </s>", 3),
        (("a b", "c d"), 4, "<s> a b c", 3),
    ],
)
def test_a_completion_follows_its_prompt_and_ends(
    texts: tuple[str, ...], length: int, ids: str, prompt: int
) -> None:
    (example,) = encode(Dataset("lm", [Row("f:1", texts)], (), ""), tokenizer(), length)
    assert example == Example([WORDS.index(word) for word in ids.split()], prompt=prompt)


def test_a_prompt_that_leaves_nothing_to_learn_is_named() -> None:
    row = Row("f:7", ("a b", "c"))
    with pytest.raises(TrainingError, match=r"f:7: the prompt has 3 tokens of at most 3, and none"):
        encode(Dataset("lm", [row], (), ""), tokenizer(), 3)


def test_texts_are_cut_and_labels_numbered() -> None:
    rows = [Row("f:1", ("a b c",), "y"), Row("f:2", ("d",), "x")]
    assert encode(Dataset("classify", rows, ("x", "y"), ""), tokenizer(), 3) == [
        Example([2, 4, 5], label=1),
        Example([2, 7], label=0),
    ]


def test_lm_loss_is_the_mean_over_the_tokens_that_are_to_be_learnt() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    config = LlamaConfig(vocab_size=9, num_attention_heads=2, num_key_value_heads=1, **sizes)
    model = LlamaForCausalLM(config).double().eval()
    examples = [Example([2, 4, 5, 3]), Example([2, 6, 7, 8, 4, 3], prompt=3)]
    terms = []
    for example in examples:  # each alone, without padding
        log = model(torch.tensor([example.ids])).logits[0].log_softmax(1)
        first = max(1, example.prompt)
        terms += [-log[i - 1, example.ids[i]] for i in range(first, len(example.ids))]
    assert len(terms) == 3 + 3
    ours = loss_of("lm", 0)(model, examples)
    torch.testing.assert_close(ours, torch.stack(terms).float().mean(), rtol=1e-6, atol=0)
    torch.testing.assert_close(lm_loss(model, examples, 1), ours, **ROUNDING)  # any padding


class Angles(nn.Module):
    """A stand-in for an encoder: a token is a vector at its angle in degrees, of length 3."""

    def __init__(self) -> None:
        super().__init__()
        self.length = nn.Parameter(torch.tensor(3.0, dtype=torch.float64))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        angles = torch.deg2rad(input_ids.double())
        hidden = self.length * torch.stack([angles.cos(), angles.sin()], 2)
        return SimpleNamespace(last_hidden_state=hidden, logits=hidden.sum(1))


def test_pairs_are_told_from_those_of_the_batch_both_ways() -> None:
    examples = [Example([0], [3]), Example([5], [1]), Example([20], [30])]
    ours = loss_of("pairs", 0)(Angles(), examples)
    a, b = np.radians([0, 5, 20]), np.radians([3, 1, 30])
    p = np.exp(20 * np.cos(a[:, None] - b))
    own = np.diagonal(p)
    expected = -(np.log(own / p.sum(1)).mean() + np.log(own / p.sum(0)).mean()) / 2
    np.testing.assert_allclose(ours.item(), expected, rtol=1e-12)


def test_a_sentence_is_the_unit_mean_of_its_own_tokens() -> None:
    rows = unit_means(Angles(), [[10, 50], [80]], 77)  # 10° and 50° have their mean at 30°
    expected = [[math.cos(math.radians(x)), math.sin(math.radians(x))] for x in (30, 80)]
    torch.testing.assert_close(rows, torch.tensor(expected, dtype=torch.float64), **ROUNDING)
    assert contrastive(rows, rows) < contrastive(rows, rows.flip(0))


def test_classification_is_the_cross_entropy_of_the_labels() -> None:
    examples = [Example([10], label=1), Example([70], label=0), Example([45], label=1)]
    ours = loss_of("classify", 0)(Angles(), examples)
    degrees = torch.deg2rad(torch.tensor([10.0, 70, 45]))
    logits = 3 * torch.stack([degrees.cos(), degrees.sin()], 1)
    expected = F.cross_entropy(logits, torch.tensor([1, 0, 1]))
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=0)
