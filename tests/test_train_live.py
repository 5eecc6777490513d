"""ΔM and ΔD of a live model against `wdecomp compare` of the checkpoints that it would leave."""

from pathlib import Path
from typing import Any

import pandas as pd
import peft
import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import wdecomp
from wdecomp.decomposition import column_delta, summarise
from wdecomp.errors import ResultsError, TrainingError
from wdecomp.train import Adapter, adapt, adapted_layers, save_adapter, save_full
from wdecomp.train.callback import WdecompCallback
from wdecomp.train.live import Recorder

KEYS = ["step", "stack", "layer", "module", "parameter"]
FIGURES = ["delta_magnitude", "delta_direction", "relative_delta_magnitude"]
# Live in float64 from factors, compared in float32: means of some dozen columns differ by 1e-7.
RELATIVE = 1e-6
# A signed sum may cancel: it is as exact as the sum of sizes; the growth ratio as its signed sum.
# compare's sums are exact to 1e-6 of a column's change, of which its magnitude's is a part.
SIGNED = 1e-5
NOISE = 1e-15  # a ΔD that is rounding alone: magnitudes turn no column
SIZES = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
METHODS: list[tuple[Any, Any]] = [
    ("lora", ("output", "input")),
    ("dora", ("output",)),
    ("dora", ("output", "input")),
    ("vera", ("output",)),
    ("dvora", ("output",)),
    ("magnitude", ("output",)),
]


def tiny_bert() -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=50, num_attention_heads=2, **SIZES)
    return BertModel(config, add_pooling_layer=False).eval()


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, **heads, **SIZES)).eval()


def tiny_gpt2() -> GPT2Model:
    torch.manual_seed(0)
    sizes = {"n_embd": 24, "n_head": 2, "n_layer": 2, "bos_token_id": 0, "eos_token_id": 0}
    return GPT2Model(GPT2Config(vocab_size=50, **sizes)).eval()


def stored(model: PreTrainedModel, folder: Path) -> Path:
    save_full(model, None, folder)
    return folder


def moved(model: nn.Module, number: int) -> None:
    """Moves every trained tensor, by a seed."""
    generator = torch.Generator().manual_seed(number)
    for parameter in model.parameters():
        if parameter.requires_grad:
            move = torch.randn(parameter.shape, generator=generator)
            parameter.data += 3e-3 * move.to(parameter.dtype)


def of_first_run(results: wdecomp.Results, table: str) -> pd.DataFrame:
    """A table's rows in an order; DVoRA has a second adapter, which is another run."""
    rows = getattr(results, table)
    order = [*KEYS, "axis"] if table == "modules" else KEYS
    return rows[rows["run"] == rows["run"][0]].sort_values(order).reset_index(drop=True)


def same_rows(live: wdecomp.Results, compared: wdecomp.Results, axes: tuple[str, ...]) -> int:
    """How many rows of modules two results have, having found all of them equal."""
    ours, theirs = (of_first_run(results, "modules") for results in (live, compared))
    theirs = theirs[theirs["axis"].isin(axes)].reset_index(drop=True)
    exact = [*KEYS, "axis", "n_columns", "n_zero", "n_nonfinite", "dtype_base", "dtype_tuned"]
    pd.testing.assert_frame_equal(ours[exact], theirs[exact])
    size = theirs["delta_magnitude"]
    pd.testing.assert_frame_equal(ours[FIGURES], theirs[FIGURES], rtol=RELATIVE, atol=NOISE)
    floors = ["floor_delta_direction"]
    pd.testing.assert_frame_equal(ours[floors], theirs[floors], rtol=RELATIVE, atol=0)
    signed = "signed_delta_magnitude"
    assert ((ours[signed] - theirs[signed]).abs() <= SIGNED * size).all()
    turned = theirs["delta_direction"] > NOISE
    growth = theirs["growth_ratio"].abs()
    bound = growth * (RELATIVE + SIGNED * size / theirs[signed].abs())
    assert ((ours["growth_ratio"] - theirs["growth_ratio"]).abs() <= bound)[turned].all()
    facts, known = (of_first_run(results, "facts") for results in (live, compared))
    facts, known = (table.drop(columns=["run", "method"]) for table in (facts, known))
    pd.testing.assert_frame_equal(facts, known, rtol=RELATIVE)
    return len(ours)


@pytest.mark.parametrize(("method", "axes"), METHODS)
def test_our_adapters_are_measured_as_their_checkpoints(
    tmp_path: Path, method: Any, axes: Any
) -> None:
    model = tiny_bert()
    base = stored(model, tmp_path / "base")
    adapt(model, {name: Adapter(method, 3, 7) for name in ("query", "dense")})
    recorder = Recorder(tmp_path / "live", base, axes=axes)
    for step in (2, 5):
        moved(model, step)
        rows = recorder.record(model, step)
        save_adapter(model, tmp_path / f"run/checkpoint-{step}", str(base))
    live, compared = (
        wdecomp.read_results(tmp_path / "live"),
        wdecomp.compare(base, tmp_path / "run", columns="none"),
    )
    assert same_rows(live, compared, axes) == 2 * len(rows) == 2 * 2 * 4 * len(axes)


def test_small_changes_keep_their_digits(tmp_path: Path) -> None:
    model = tiny_bert()
    adapt(model, {"query": Adapter("dora", 3, 7)})
    layers = adapted_layers(model).values()
    for layer in layers:
        torch.nn.init.normal_(layer.lora_B, std=1e-8)
    rows = Recorder(tmp_path, "a/name").record(model, 1)
    for row, layer in zip(rows, layers, strict=True):
        w0, a, b, m = (
            each.detach().double()
            for each in (layer.base.weight, layer.lora_A, layer.lora_B, layer.magnitude)
        )
        v = w0 + layer.adapter.scaling * b @ a
        expected = summarise(column_delta(w0, v * (m / v.norm(dim=1)).unsqueeze(1)))
        assert 0 < row["delta_direction"] < 1e-12
        for name in FIGURES:
            assert row[name] == pytest.approx(getattr(expected, name), rel=RELATIVE)


@pytest.mark.parametrize(
    ("make", "dora", "named"),
    [(tiny_llama, False, True), (tiny_llama, True, False), (tiny_gpt2, True, True)],
)
def test_pefts_adapters_are_measured_as_their_checkpoints(
    tmp_path: Path, make: Any, dora: bool, named: bool
) -> None:
    base = stored(make(), tmp_path / "base")
    targets = ["q_proj", "v_proj", "down_proj"] if make is tiny_llama else ["c_attn", "wte"]
    config = peft.LoraConfig(r=3, lora_alpha=7, target_modules=targets, use_dora=dora)
    model = peft.get_peft_model(make(), config)
    recorder = Recorder(tmp_path / "live", base if named else "a/name")
    for step in (2, 5):
        moved(model, step)
        recorder.record(model, step)
        model.save_pretrained(tmp_path / f"run/checkpoint-{step}", save_embedding_layers=False)
    live, compared = (
        wdecomp.read_results(tmp_path / "live"),
        wdecomp.compare(base, tmp_path / "run", columns="none"),
    )
    assert same_rows(live, compared, ("output",)) == 2 * (6 if make is tiny_llama else 7)
    assert set(live.modules["method"]) == {"dora" if dora else "lora"}


@pytest.mark.parametrize("kept", [None, torch.float32], ids=["folder", "copy"])
def test_full_fine_tuning_is_measured_as_its_checkpoints(tmp_path: Path, kept: Any) -> None:
    model = tiny_llama()
    base = stored(model, tmp_path / "base")
    recorder = Recorder(tmp_path / "live", "a/name" if kept else base, copy=kept)
    if kept is not None:
        recorder.keep(model)
    for step in (2, 5):
        moved(model, step)
        recorder.record(model, step)
        save_full(model, None, tmp_path / f"run/checkpoint-{step}")
    live, compared = (
        wdecomp.read_results(tmp_path / "live"),
        wdecomp.compare(base, tmp_path / "run", columns="none"),
    )
    assert same_rows(live, compared, ("output",)) == 2 * 16


def test_a_module_that_peft_trains_whole_is_measured_beside_its_original(tmp_path: Path) -> None:
    base = stored(tiny_llama(), tmp_path / "base")
    config = peft.LoraConfig(r=3, target_modules=["q_proj"], modules_to_save=["lm_head"])
    model = peft.get_peft_model(tiny_llama(), config)
    recorder = Recorder(tmp_path / "live", "a/name")
    for step in (2, 5):
        moved(model, step)
        recorder.record(model, step)
    model.save_pretrained(tmp_path / "run/checkpoint-5", save_embedding_layers=False)
    compared = wdecomp.compare(base, tmp_path / "run", columns="none").modules
    live = wdecomp.read_results(tmp_path / "live").modules
    for module in ("q", "head"):
        ours, theirs = (
            t[(t["module"] == module) & (t["step"] == 5) & (t["axis"] == "output")]
            for t in (live, compared)
        )
        columns = ["parameter", *FIGURES]
        ours, theirs = (t[columns].reset_index(drop=True) for t in (ours, theirs))
        pd.testing.assert_frame_equal(ours, theirs, rtol=RELATIVE)


def test_a_folder_can_be_read_after_every_step_and_goes_on_where_it_was_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_bert()
    adapt(model, {"query": Adapter("lora", 3, 7)})

    def steps() -> list[int]:
        results = wdecomp.read_results(tmp_path)
        there = [run["step"] for run in results.run["runs"]]
        assert sorted(set(results.modules["step"])) == sorted(set(results.facts["step"])) == there
        return there

    recorder = Recorder(tmp_path, "a/name")
    for step in (2, 5, 9):
        moved(model, step)
        recorder.record(model, step)
        assert steps()[-1] == step
        assert len(wdecomp.read_results(tmp_path).fits) == 0
    with pytest.raises(ResultsError, match="another wdecomp is writing there"):
        Recorder(tmp_path, "a/name")
    with monkeypatch.context() as patch:  # killed
        patch.setattr("wdecomp.train.live.write_part", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            recorder.record(model, 11)
    recorder = again(recorder, tmp_path)
    assert steps() == [2, 5, 9]
    with monkeypatch.context() as patch:  # killed later: the step is there, the tables are not
        patch.setattr("wdecomp.train.live.files.commit_table", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            recorder.record(model, 12)
    recorder = again(recorder, tmp_path)
    assert steps() == [2, 5, 9]
    recorder.record(model, 13)
    assert steps() == [2, 5, 9, 12, 13]
    recorder.record(model, 5)  # a training that went back to a checkpoint
    assert steps() == [2, 5]
    assert len(recorder.finish().fits) > 0
    assert not (tmp_path / "parts").exists()
    recorder = again(recorder, tmp_path)
    recorder.record(model, 7)
    recorder = again(recorder, tmp_path)
    assert steps() == [2, 5, 7]
    recorder._open.close()
    with pytest.raises(ResultsError, match=r"results of another run \(base"):
        Recorder(tmp_path, "another/name")
    Recorder(tmp_path, "another/name", restart=True)


def again(recorder: Recorder, folder: Path) -> Recorder:
    """Another recorder, after the one that was there has ended without a word."""
    recorder._open.close()
    return Recorder(folder, "a/name")


def test_what_cannot_be_recorded_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="full fine-tuning changes the model's own"):
        Recorder(tmp_path / "a", "a/name").record(tiny_bert(), 1)
    config = peft.LoraConfig(r=2, target_modules=["query"], init_lora_weights="olora")
    model = peft.get_peft_model(tiny_bert(), config)
    with pytest.raises(TrainingError, match="init_lora_weights='olora' changes the model's own"):
        Recorder(tmp_path / "b", "a/name").record(model, 1)
    config = peft.LoraConfig(r=2, target_modules=["query"])
    model = peft.get_peft_model(tiny_bert(), config)
    model.merge_adapter()
    with pytest.raises(TrainingError, match=r"query: its adapter is merged into the base"):
        Recorder(tmp_path / "c", "a/name").record(model, 1)
    with pytest.raises(TrainingError, match="every: is 0, at least 1 was expected"):
        WdecompCallback(Recorder(tmp_path / "d", "a/name"), every=0)


class Reporter(TrainerCallback):
    """What a Trainer's reporters are told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, dict[str, float]]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.told.append((state.global_step, dict(logs)))


def trained_by_trainer(
    folder: Path, dora: bool, callbacks: list[TrainerCallback], told: bool = True
) -> tuple[Trainer, list[torch.Tensor]]:
    """A Trainer after five steps with dropout, and all that the training has left behind."""
    torch.manual_seed(0)
    config = BertConfig(vocab_size=50, num_attention_heads=2, **SIZES)
    task = {"r": 3, "lora_dropout": 0.3, "target_modules": ["query", "value"], "use_dora": dora}
    model = peft.get_peft_model(BertForSequenceClassification(config), peft.LoraConfig(**task))
    ids = torch.randint(0, 50, (40, 7), generator=torch.Generator().manual_seed(1))
    data = [{"input_ids": row, "labels": int(row[0]) % 2} for row in ids]
    arguments = TrainingArguments(
        folder, max_steps=5, per_device_train_batch_size=4, learning_rate=1e-2, logging_steps=2,
        save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True, seed=3,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=data, callbacks=callbacks)
    for callback in callbacks:
        if isinstance(callback, WdecompCallback):
            callback.trainer = trainer if told else None
    trainer.train()
    return trainer, [*(p.detach().clone() for p in model.parameters()), torch.get_rng_state()]


def expected_logs(results: wdecomp.Results) -> dict[tuple[int, str], float]:
    """The mean over layers of every step, module kind and figure."""
    means = results.modules.groupby(["step", "module"])[FIGURES[:2]].mean()
    return {
        (step, f"wdecomp/{module}/{name}"): value
        for (step, module), row in means.iterrows()
        for name, value in row.items()
    }


def test_a_trainer_logs_and_reports_and_trains_as_without(tmp_path: Path) -> None:
    reporter, recorder = Reporter(), Recorder(tmp_path / "live", "a/name")
    _, without = trained_by_trainer(tmp_path / "a", True, [])
    callback = WdecompCallback(recorder, every=2)
    trainer, state = trained_by_trainer(tmp_path / "b", True, [reporter, callback])
    for ours, theirs in zip(state, without, strict=True):
        assert torch.equal(ours, theirs)
    results = wdecomp.read_results(tmp_path / "live")
    expected = expected_logs(results)
    assert {step for step, _ in expected} == {2, 4, 5}
    assert {key for _, key in expected} == {
        f"wdecomp/{module}/{name}" for module in "qv" for name in FIGURES[:2]
    }
    for (step, key), value in expected.items():
        logged = [e[key] for e in trainer.state.log_history if e["step"] == step and key in e]
        told = [logs[key] for at, logs in reporter.told if at == step and key in logs]
        assert logged == told == [pytest.approx(value, rel=1e-12)]
        assert value > 0
    assert len(results.fits) > 0
    losses = [entry["step"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses == [2, 4]


def test_a_callback_without_a_trainer_logs_to_the_history_alone(tmp_path: Path) -> None:
    reporter = Reporter()
    callback = WdecompCallback(Recorder(tmp_path / "live", "a/name"), every=3)
    trainer, _ = trained_by_trainer(tmp_path / "a", False, [reporter, callback], told=False)
    expected = expected_logs(wdecomp.read_results(tmp_path / "live"))
    assert {step for step, _ in expected} == {3, 5}
    for (step, key), value in expected.items():
        logged = [e[key] for e in trainer.state.log_history if e["step"] == step and key in e]
        assert logged == [pytest.approx(value, rel=1e-12)]
        assert not [logs for _, logs in reporter.told if key in logs]


def test_reporters_that_cannot_be_told_are_named(tmp_path: Path) -> None:
    callback = WdecompCallback(Recorder(tmp_path / "live", "a/name"))
    arguments = TrainingArguments(tmp_path / "out", report_to=["tensorboard"], use_cpu=True)
    with pytest.raises(TrainingError, match="report_to: is tensorboard, but the callback knows no"):
        callback.on_train_begin(arguments, None, None, model=None)
