"""`wdecomp train` from its flags to its files: three tasks, resumption, and what is refused."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from train_folder import flags, hashes, refused, run, tokenizer, write_folder
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import wdecomp
from wdecomp.train.export import quiet
from wdecomp.train.loop import Step
from wdecomp.train.run_folder import rows_writer

CURVES = {"training.svg", "training.png"}
# One float32 sum of 24 terms in another order, on logits of about 1.
ROUNDING = {"rtol": 0, "atol": 1e-6}

# Forks before anything is computed, so that torch is imported once; a child runs the command with
# one function that kills the process, as `kill -9` would, when it is called for the nth time.
KILLED = """
import json, os, signal, sys, torch
from wdecomp.cli.train import train
import wdecomp.train.running
def arm(owner, name, n):
    calls, real = iter(range(1, 10**6)), getattr(owner, name)
    def deadly(*args, **kwargs):
        if next(calls) == n:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    setattr(owner, name, deadly)
for out, name, n, *flags in json.loads(sys.argv[1]):
    child = os.fork()
    if not child:
        arm(*((torch.optim.AdamW, "step") if name == "step" else (os, name)), n)
        train.main([*flags, "--out", out], standalone_mode=False)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("train"))


def test_a_run_leaves_checkpoints_a_table_and_its_picture(folder: Path, tmp_path: Path) -> None:
    given = flags(folder, "bert", "pairs", "--method", "dora", "--warmup", "2", "--epochs", "4")
    out = run(tmp_path / "out", [*given, "--save-at", "0.25,10"])
    record = json.loads((out / "train.json").read_text())
    expected = {"method": "dora", "task": "pairs", "targets": ["query", "value"], "rank": 3}
    expected |= {"steps": 16, "save_at": [4, 10, 16], "rows": 20, "max_length": 16}
    assert expected.items() <= record.items()
    assert record["data_sha256"] == hashes(folder)["pairs.jsonl"]
    table = pd.read_csv(out / "steps.csv")
    assert list(table) == ["step", "loss", "gradient_norm", "lr"]
    assert table["step"].tolist() == list(range(1, 17))
    assert table["lr"].tolist()[:3] == [0.005, 0.01, 0.01]
    assert table["loss"].tail(4).mean() < 0.9 * table["loss"].head(4).mean()
    assert (out / "training.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (out / "training.svg").read_text()
    results = wdecomp.compare(folder / "bert", out, out=tmp_path / "results", progress=False)
    assert sorted(results.modules["step"].unique()) == [4, 10, 16]
    assert sorted(results.modules["module"].unique()) == ["q", "v"]


def test_runs_killed_at_any_moment_end_with_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    more = ["--steps", "9", "--save-at", "3,6", "--accumulate", "2", "--clip", "0.5"]
    given, plan = {}, []
    for method in ("full", "dora"):
        given[method] = flags(folder, "bert", "pairs", "--method", method, "--dropout", "0.2")
        given[method] += more
        # Before the first state is there; in the midst of the second checkpoint; after its state.
        in_second = 11 if method == "dora" else 13  # a tokenizer has two files more
        for name, n in (("step", 2), ("fsync", in_second), ("step", 8)):
            plan.append([str(tmp_path / f"{method}-{name}-{n}"), name, n, *given[method]])
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", KILLED, json.dumps(plan)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.split() == [str(-signal.SIGKILL)] * len(plan), done.stderr
    whole = {method: hashes(run(tmp_path / method, given[method])) for method in given}
    for out, name, n, *_ in plan:
        killed, method = Path(out), Path(out).name.partition("-")[0]
        assert (killed / "training.state").exists() == (n != 2)
        assert len(list(killed.glob("checkpoint-6/.partial-*"))) == (name == "fsync")
        assert not (killed / "checkpoint-9").exists()
        assert hashes(run(killed, given[method])) == whole[method]
        assert hashes(run(killed, given[method])) == whole[method]  # with nothing left to do


@pytest.mark.parametrize(
    ("method", "model", "heads"),
    [("lora", "bert", ["pooler", "classifier"]), ("vera", "llama", ["score"])],
)
def test_a_new_head_is_trained_and_saved_beside_the_adapters(
    folder: Path, tmp_path: Path, method: str, model: str, heads: list[str]
) -> None:
    given = flags(folder, model, "classify", "--method", method, "--steps", "4")
    out = run(tmp_path / "out", given) / "checkpoint-4"
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["modules_to_save"] == sorted(heads)
    stored = load_file(out / "adapter_model.safetensors")
    key = f"{heads[-1]}.weight"
    torch.manual_seed(1)  # another head than ours
    with quiet():
        base = AutoModelForSequenceClassification.from_pretrained(folder / model, num_labels=2)
    new = base.get_parameter(key).detach().clone()
    tuned = PeftModel.from_pretrained(base, out).merge_and_unload().eval()
    ours = stored[f"base_model.model.{key}"]
    torch.testing.assert_close(tuned.get_parameter(key).data, ours, rtol=0, atol=0)
    assert not torch.equal(ours, new)
    still = run(tmp_path / "still", [*given, "--lr", "1e-9"]) / "checkpoint-4"
    start = load_file(still / "adapter_model.safetensors")
    whole = [key for key in stored if any(f".{head}." in key for head in heads)]
    assert len(whole) == (4 if model == "bert" else 1)
    for key in whole:
        assert (stored[key] - start[key]).abs().max() > 1e-3  # it has moved from where it began


def test_full_classification_gives_a_model_with_its_labels(folder: Path, tmp_path: Path) -> None:
    given = flags(folder, "llama", "classify", "--method", "full", "--epochs", "12")
    out = run(tmp_path / "out", given)
    with quiet():
        tuned = AutoModelForSequenceClassification.from_pretrained(out / "checkpoint-48").eval()
    rows = [json.loads(line) for line in (folder / "classify.jsonl").read_text().splitlines()]
    ids = [tokenizer("llama")(row["text"])["input_ids"] for row in rows]
    found = [tuned.config.id2label[int(tuned(torch.tensor([i])).logits.argmax())] for i in ids]
    right = sum(one == row["label"] for one, row in zip(found, rows, strict=True))
    assert right >= 18  # of 20 that it was trained on: the head and the labels are in one order


def test_a_language_model_learns_its_completions(folder: Path, tmp_path: Path) -> None:
    given = flags(folder, "llama", "lm", "--method", "dora", "--epochs", "10")
    given += ["--magnitude-targets", "k_proj,o_proj", "--norm-gradient", "exact"]
    out = run(tmp_path / "out", given)
    losses = pd.read_csv(out / "steps.csv")["loss"]
    assert losses.tail(4).mean() < 0.96 * losses.head(4).mean()
    with quiet():
        base = AutoModelForCausalLM.from_pretrained(folder / "llama")
    tuned = PeftModel.from_pretrained(base, out / "checkpoint-40").merge_and_unload()
    assert tuned.config.model_type == "llama"
    record = json.loads((out / "train.json").read_text())
    assert (record["targets"], record["task"]) == (["q_proj", "v_proj"], "lm")


def test_flags_and_a_file_make_the_same_run(folder: Path, tmp_path: Path) -> None:
    given = flags(folder, "bert", "pairs", "--method", "lora", "--steps", "2", "--rslora")
    (tmp_path / "a.toml").write_text('method = "vera"\nsteps = 2\nrslora = true\nepochs = 9\n')
    (tmp_path / "b.toml").write_text('method = "lora"\nrslora = true\nepochs = 9\n')
    runs = [run(tmp_path / "0", given)]
    short = flags(folder, "bert", "pairs", "--steps", "2")
    runs += [run(tmp_path / "1", [*short, "--config", str(tmp_path / "b.toml")])]
    assert hashes(runs[0]) == hashes(runs[1])


def test_the_table_drops_the_rows_of_steps_that_come_again(tmp_path: Path) -> None:
    for number in range(1, 5):  # a process that was killed at its fifth step
        rows_writer(tmp_path)(Step(number, 0.1 * number, 1.5, 0.01))
    with (tmp_path / "steps.csv").open("a") as table:
        table.write("5,0.")
    write = rows_writer(tmp_path)  # and one that goes on from the state of its second
    for number in (3, 4):
        write(Step(number, 7.0, 1.5, 0.01))
    table = pd.read_csv(tmp_path / "steps.csv")
    assert table["step"].tolist() == [1, 2, 3, 4]
    assert table["loss"].tolist() == [0.1, 0.2, 7, 7]


def without_tokenizer(model: Path) -> None:
    for file in model.glob("tokenizer*"):
        file.unlink()


def with_nan(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["encoder.layer.1.attention.self.query.weight"][3, 5] = torch.nan
    save_file(tensors, model / "model.safetensors", {"format": "pt"})


def with_few_tokens(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    name = "embeddings.word_embeddings.weight"
    save_file(tensors | {name: tensors[name][:9].clone()}, model / "model.safetensors")
    text = (model / "config.json").read_text().replace('"vocab_size": 30', '"vocab_size": 9')
    (model / "config.json").write_text(text)


def without_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(b"never opened")


def with_lost_weights(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    del tensors["encoder.layer.1.attention.self.query.weight"]
    save_file(tensors, model / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_tokenizer, "has no tokenizer, vocab.txt or tokenizer.json was expected"),
        (with_nan, "encoder.layer.1.attention.self.query.weight has 1 numbers that are not finite"),
        (with_few_tokens, "its tokenizer gives the token 27, the model has 9"),
        (without_weights, "transformers reads no model for pairs from it"),
        (with_lost_weights, "has no weights, or others, for encoder.layer.1.attention.self.query"),
        (lambda model: (model / "config.json").write_text("{}"), "transformers reads no"),
        (lambda model: (model / "config.json").unlink(), "has no config.json, the folder of a"),
    ],
)
def test_a_base_that_cannot_be_trained_is_one_line(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], object],
    message: str,
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for file in (folder / "bert").iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    spoil(base)
    given = flags(folder, "bert", "pairs", "--method", "lora", "--out", str(tmp_path / "out"))
    line = refused([*given, "--model", str(base)], capsys)
    assert line.startswith(f"{base}: ")
    assert message in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--targets", "qurey"], "targets: 'qurey' is the name of no module. The model's linear"),
        (["--targets", "dropout"], "dropout: is a Dropout, expected a Linear"),
        (["--rank", "0"], "rank: is 0, at least 1 was expected."),
        (["--rank", "1", "--half-rank"], "rank: is 0, at least 1 was expected."),
        (["--max-length", "17"], "max_length: is 17, at most 16 was expected."),
        (["--batch", "1"], "batch: is of 1 pair, at least 2 were expected."),
        (["--task", "lm"], "has the fields query, document, expected prompt and completion"),
        (["--data", "{empty}"], "has no rows, one at least was expected."),
        (["--model", "{empty}"], "has no config.json, the folder of a transformers model was"),
        (["--out", "{full}"], "holds notes.txt, a new folder or a run of wdecomp train was"),
        (["--steps", "3", "--save-at", "4"], "save_at: is 4, above 0 and at most 3 was expected."),
        (["--lr", "1e30", "--method", "full"], ": the loss is nan, a finite number was expected."),
    ],
)
def test_bad_input_is_one_line(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    message: str,
) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    places = {"empty": tmp_path / "empty.txt", "full": tmp_path / "full"}
    given = flags(folder, "bert", "pairs", "--method", "dora", "--out", str(tmp_path / "out"))
    assert message in refused([*given, *(word.format(**places) for word in more)], capsys)


def test_a_folder_of_another_run_is_left_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = flags(folder, "bert", "pairs", "--method", "lora", "--steps", "2", "--seed", "3")
    out = run(tmp_path / "out", given)
    before = hashes(out)
    line = refused([*given, "--seed", "4", "--out", str(out)], capsys)
    assert line.startswith(f"{out}: holds a run with seed 3, this one has 4. Choose another")
    assert hashes(out) == before
    data = tmp_path / "pairs.jsonl"
    data.write_text((folder / "pairs.jsonl").read_text() + "\n")
    assert "holds a run with data" in refused(
        [*given, "--data", str(data), "--out", str(out)], capsys
    )
