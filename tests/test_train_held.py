"""Bases in NF4 and bfloat16, records beside a training, and what a folder was begun with."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from train_folder import flags, hashes, refused, run, tokenizer, write_folder
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

import wdecomp
from wdecomp.errors import TrainingError
from wdecomp.train import Settings, train
from wdecomp.train.export import quiet
from wdecomp.train.layers import row_norm
from wdecomp.train.nf4 import nf4_rounded
from wdecomp.train.nf4_base import quantize_linears

FIGURES = ["delta_magnitude", "delta_direction"]
KEYS = ["step", "parameter"]
QUERY = "encoder.layer.0.attention.self.query"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("train"))


def figures(results: wdecomp.Results, run: str) -> pd.DataFrame:
    """ΔM and ΔD of outputs by step and parameter."""
    rows = results.modules
    rows = rows[(rows["run"] == run) & (rows["axis"] == "output")]
    return rows.set_index(KEYS)[FIGURES].sort_index()


def magnitudes(checkpoint: Path) -> dict[str, Tensor]:
    """Of a DoRA, by the layers' names."""
    stored = load_file(checkpoint / "adapter_model.safetensors")
    end = ".lora_magnitude_vector"
    return {
        key.removeprefix("base_model.model.").removesuffix(end): tensor
        for key, tensor in stored.items()
        if key.endswith(end)
    }


# Records.


@pytest.mark.parametrize(
    ("method", "model", "task"), [("dora", "llama", "classify"), ("full", "bert", "pairs")]
)
def test_records_are_those_of_the_checkpoints_and_change_nothing(
    folder: Path, tmp_path: Path, method: str, model: str, task: str
) -> None:
    given = flags(folder, model, task, "--method", method, "--steps", "5", "--save-at", "2,4")
    given += ["--dropout", "0.2"]
    without = hashes(run(tmp_path / "without", given))
    out = run(tmp_path / "with", [*given, "--record-every", "2"])
    beside = {name: digest for name, digest in hashes(out).items() if name[:5] != "live/"}
    assert beside == without
    live = wdecomp.read_results(out / "live")
    assert live.run["base"]["path"] == str(folder / model)
    assert set(live.modules["method"]) == {method}
    assert len(live.fits) > 0
    compared = wdecomp.compare(folder / model, out, columns="none")
    assert set(compared.modules["run"]) == {"with"}  # live/ is none
    ours, theirs = figures(live, "live"), figures(compared, "with")
    assert sorted({step for step, _ in ours.index}) == [2, 4, 5]
    # float32 in compare, of changes of a thousandth; live in float64, or by the same kernel
    pd.testing.assert_frame_equal(ours, theirs, rtol=2e-6)


def test_records_go_on_with_the_training(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = flags(folder, "bert", "pairs", "--method", "dora", "--steps", "7")
    given += ["--save-at", "4", "--record-every", "3"]
    whole = hashes(run(tmp_path / "whole", given))
    real, calls = torch.optim.AdamW.step, iter(range(1, 100))

    def deadly(self: Any, *args: Any) -> Any:
        assert next(calls) < 7
        return real(self, *args)

    with monkeypatch.context() as patch:  # after the record of step 6 and the state of step 4
        patch.setattr(torch.optim.AdamW, "step", deadly)
        with pytest.raises(AssertionError):
            run(tmp_path / "cut", given)
    live = wdecomp.read_results(tmp_path / "cut/live")
    assert sorted(set(live.modules["step"])) == [3, 6]
    assert not live.run["live"]["finished"]
    assert hashes(run(tmp_path / "cut", given)) == whole
    again = hashes(run(tmp_path / "cut", given))  # with nothing left to do
    rewritten = {"live/facts.parquet", "live/DONE.json"}
    assert {name for name in whole if whole[name] != again[name]} <= rewritten
    facts = [wdecomp.read_results(tmp_path / name / "live").facts for name in ("whole", "cut")]
    pd.testing.assert_frame_equal(*facts)


def test_a_finished_run_has_nothing_to_record(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = flags(folder, "bert", "pairs", "--method", "lora", "--steps", "2")
    out = run(tmp_path / "out", given)
    given.remove("--quiet")
    run(out, [*given, "--record-every", "1"])
    assert f"{out}/live: no step was left to be recorded.\n" in capsys.readouterr().err


# NF4.


def test_adapters_are_trained_on_the_nf4_base_that_is_kept(folder: Path, tmp_path: Path) -> None:
    given = flags(folder, "llama", "lm", "--method", "dora", "--quantize", "nf4", "--steps", "4")
    out = run(tmp_path / "out", [*given, "--record-every", "2", "--save-at", "2"])
    config = json.loads((out / "checkpoint-4/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(folder / "llama")
    base = load_file(folder / "llama/model.safetensors")
    kept = load_file(out / "base-nf4/model.safetensors")
    coded = {key for key in base if kept[key].dtype == torch.uint8}
    assert coded == {key for key in base if key.endswith("_proj.weight")}
    assert len(coded) == 2 * 7
    assert torch.equal(kept["lm_head.weight"], base["lm_head.weight"])
    both = wdecomp.compare(folder / "llama", out, base_dequantized=out / "base-nf4")
    assert set(both.modules["run"]) == {"quantization", "out", "out+quantization"}
    live = wdecomp.read_results(out / "live")
    pd.testing.assert_frame_equal(figures(live, "live"), figures(both, "out"), rtol=2e-6)
    still = run(tmp_path / "still", [*given, "--lr", "1e-12"])
    for name, m in magnitudes(still / "checkpoint-4").items():
        w = base[f"{name}.weight"]
        torch.testing.assert_close(m, row_norm(nf4_rounded(w)), rtol=1e-6, atol=0)
        assert (m / row_norm(w) - 1).abs().max() > 1e-3


def test_a_new_head_is_not_quantised_whatever_its_layers_are_called(
    folder: Path, tmp_path: Path
) -> None:
    given = flags(folder, "bert", "classify", "--method", "lora", "--steps", "1")
    out = run(tmp_path / "out", [*given, "--quantize", "nf4"])
    kept = load_file(out / "base-nf4/model.safetensors")
    coded = {key for key, tensor in kept.items() if tensor.dtype == torch.uint8}
    coded = {key for key in coded if key.endswith(".weight")}
    assert len(coded) == 2 * 6
    assert "bert.encoder.layer.1.output.dense.weight" in coded
    assert {"bert.pooler.dense.weight", "classifier.weight"} <= kept.keys() - coded
    wdecomp.compare(folder / "bert", out, base_dequantized=out / "base-nf4", columns="none")


def test_full_fine_tuning_is_quantised_after_the_training(folder: Path, tmp_path: Path) -> None:
    given = flags(folder, "llama", "lm", "--method", "full", "--steps", "3", "--save-at", "2")
    before = run(tmp_path / "float32", given)
    after = run(tmp_path / "nf4", [*given, "--quantize", "nf4"])
    assert (before / "steps.csv").read_bytes() == (after / "steps.csv").read_bytes()
    assert not (after / "base-nf4").exists()
    for step in (2, 3):
        name = f"checkpoint-{step}/model.safetensors"
        plain, rounded = load_file(before / name), load_file(after / name)
        assert plain.keys() == rounded.keys()
        for key, tensor in plain.items():
            expected = nf4_rounded(tensor) if key.endswith("_proj.weight") else tensor
            torch.testing.assert_close(rounded[key], expected, rtol=0, atol=0)


def test_codes_are_not_trained_whole(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 5))
    quantize_linears(model, ["0"])
    settings = Settings("full", "base", lr=1e-3, steps=1, save_steps=(1,), progress=False)
    message = r"^0: is in NF4, a Linear layer was expected to be trained whole\. .*before\.$"
    with pytest.raises(TrainingError, match=message):
        train(model, iter([torch.ones(1, 6)]), lambda m, x: m(x).sum(), settings, tmp_path)


def test_a_model_without_linear_layers_has_none_to_quantise(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"n_embd": 24, "n_head": 2, "n_layer": 1, "n_positions": 16, "vocab_size": 30}
    with quiet():
        GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(tmp_path / "gpt2")
        tokenizer("gpt2").save_pretrained(tmp_path / "gpt2")
    given = flags(folder, "llama", "lm", "--method", "lora", "--quantize", "nf4")
    given += ["--model", str(tmp_path / "gpt2"), "--out", str(tmp_path / "out")]
    assert "has no Linear layer beside its output head, one at" in refused(given, capsys)


# Precision, device.


@pytest.mark.parametrize("more", [[], ["--quantize", "nf4"]], ids=["plain", "nf4"])
def test_a_base_in_bfloat16_is_trained_on_in_float32(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    given = flags(folder, "llama", "classify", "--method", "dora", "--epochs", "6", *more)
    given.remove("--quiet")
    wide = run(tmp_path / "wide", given)
    capsys.readouterr()
    narrow = run(tmp_path / "narrow", [*given, "--precision", "bfloat16"])
    told = "is not stored in BF16. It is trained on in that, and compare will measure from what is"
    assert (told in capsys.readouterr().err) == (not more)
    before, after = (pd.read_csv(out / "steps.csv") for out in (wide, narrow))
    # bfloat16 has 8 bits; the first step has seen the base alone.
    assert after["loss"][0] == pytest.approx(before["loss"][0], rel=2e-3)
    assert after["gradient_norm"][0] == pytest.approx(before["gradient_norm"][0], rel=0.02)
    for losses in (before["loss"], after["loss"]):
        assert losses.tail(4).mean() < 0.8 * losses.head(4).mean()
    stored = load_file(narrow / "checkpoint-24/adapter_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    head = stored["base_model.model.score.weight"]
    assert not torch.equal(head, head.bfloat16().float())
    still = [*given, "--precision", "bfloat16", "--lr", "1e-12", "--steps", "1"]
    still.remove("--epochs")
    still.remove("6")
    found = magnitudes(run(tmp_path / "still", still) / "checkpoint-1")
    base = load_file(folder / "llama/model.safetensors")
    for name, m in found.items():
        w0 = base[f"{name}.weight"].bfloat16()
        w0 = nf4_rounded(w0) if more else w0
        torch.testing.assert_close(m, row_norm(w0.float()), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--device", "tpu"], "device: is 'tpu', cpu, cuda, cuda:N or mps was expected."),
        (["--device", "cuda:01"], "device: is 'cuda:01', cpu, cuda, cuda:N or mps was expected."),
        (["--device", "cuda:99"], "device: is cuda:99, torch sees "),
        (
            ["--precision", "bfloat16", "--method", "full"],
            "precision: is bfloat16 beside full, float32 was expected. ",
        ),
    ],
)
def test_what_the_machine_has_not_is_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    given = flags(folder, "bert", "pairs", "--method", "lora", "--out", str(tmp_path / "out"))
    assert refused([*given, *more], capsys).startswith(message)
    assert not (tmp_path / "out").exists()


# What belongs to a run.


def test_a_run_does_not_go_on_from_other_weights(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = shutil.copytree(folder / "bert", tmp_path / "base")
    given = flags(folder, "bert", "pairs", "--method", "lora", "--steps", "2")
    given += ["--model", str(base)]
    out = run(tmp_path / "out", given)
    before = hashes(out)
    tensors = load_file(base / "model.safetensors")
    tensors[f"{QUERY}.weight"][3, 5] += 1e-6
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    line = refused([*given, "--out", str(out)], capsys)
    assert line == (
        f"{base}: has other weights than when {out} was begun. "
        "Put those back, choose another folder with --out, or remove it to begin anew.\n"
    )
    shutil.copy(folder / "bert/model.safetensors", base)
    assert hashes(run(out, given)) == before


def test_a_folder_in_which_nothing_was_trained_is_taken_again(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = flags(folder, "llama", "lm", "--method", "lora", "--quantize", "nf4", "--steps", "1")
    out = tmp_path / "out"
    line = refused([*given, "--targets", "qq_proj", "--out", str(out)], capsys)
    assert line.startswith("targets: 'qq_proj' is the name of no module.")
    assert sorted(path.name for path in out.iterdir()) == ["base-nf4", "train.json"]
    run(out, [*given, "--targets", "q_proj"])
    assert (out / "base-nf4/model.safetensors").exists()


def test_a_full_checkpoint_has_its_tokenizer(folder: Path, tmp_path: Path) -> None:
    given = flags(folder, "bert", "pairs", "--method", "full", "--steps", "1")
    out = run(tmp_path / "out", given)
    found = AutoTokenizer.from_pretrained(out / "checkpoint-1")
    assert found("w3 w9")["input_ids"] == tokenizer("bert")("w3 w9")["input_ids"] != []
