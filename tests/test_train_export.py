"""The loop and what it writes: adapters for PEFT, full models for transformers."""

import copy
import errno
import hashlib
import json
import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoModel, BertConfig, BertModel

import wdecomp
from wdecomp.comparison import plan_comparison
from wdecomp.errors import TrainingError
from wdecomp.train import (
    Adapter,
    Settings,
    adapt,
    adapted_layers,
    export,
    save_adapter,
    save_full,
    train,
)
from wdecomp.train.loop import lr_factor

METHODS = pytest.mark.parametrize("method", ["full", "lora", "dora"])
# A float32 sum of a few terms in another order, for weights of about 0.1.
ROUNDING = {"rtol": 1e-6, "atol": 1e-7}


def tiny_bert() -> BertModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
    config = BertConfig(vocab_size=50, num_attention_heads=2, **sizes)
    return BertModel(config, add_pooling_layer=False).eval()


def settings(method: str, **changes: Any) -> Settings:
    given = {"lr": 0.01, "steps": 4, "save_steps": (2, 4), "base_name": "base", "progress": False}
    if method != "full":
        given["adapters"] = dict.fromkeys(("query", "dense"), Adapter(method, 3, 7))
    return Settings(method=method, **(given | changes))


def batches() -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(5)
    while True:
        yield torch.randint(0, 50, (4, 6), generator=generator)


def spread(model: BertModel, ids: Tensor) -> Tensor:
    return (model(ids).last_hidden_state[..., :5] - 1).square().mean()


def hashes(folder: Path) -> dict[str, str]:
    files = folder.rglob("*.*")  # reading a left-over ".partial-…" folder would fail
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_saved_adapter_loads_in_peft_and_merges_to_our_weights(tmp_path: Path, method: str) -> None:
    model = tiny_bert()
    base = copy.deepcopy(model)
    train(model, batches(), spread, settings(method), tmp_path)
    peft = PeftModel.from_pretrained(base, tmp_path / "checkpoint-4").merge_and_unload()
    adapters = adapted_layers(model)
    assert len(adapters) == 2 * 4
    for name, adapter in adapters.items():
        theirs = peft.get_submodule(name).weight.data
        torch.testing.assert_close(adapter.merged(), theirs, **ROUNDING)
        assert not torch.equal(theirs, adapter.base.weight.data)


def test_adapter_files_have_pefts_names_and_our_settings(tmp_path: Path) -> None:
    model = tiny_bert().double()
    adapt(model, {"query": Adapter("dora", 3, 7, dropout=0.25)})
    save_adapter(model, tmp_path, "some/base")
    assert set(hashes(tmp_path)) == {"adapter_config.json", "adapter_model.safetensors"}
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        parts = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")
        ours = {key for key in file.keys() if "layer.1" in key}  # noqa: SIM118 - not a dict
        query = "base_model.model.encoder.layer.1.attention.self.query"
        assert ours == {f"{query}.{part}" for part in parts}
        assert {str(file.get_tensor(key).dtype) for key in ours} == {"torch.float32"}
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    expected = {"base_model_name_or_path": "some/base", "peft_type": "LORA", "use_dora": True}
    expected |= {"r": 3, "lora_alpha": 7, "lora_dropout": 0.25, "target_modules": ["query"]}
    assert expected.items() <= config.items()


def test_full_checkpoint_loads_in_transformers_under_the_same_names(tmp_path: Path) -> None:
    model = tiny_bert()
    save_full(model, None, tmp_path)
    again = AutoModel.from_pretrained(tmp_path, local_files_only=True, add_pooling_layer=False)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(model.state_dict())
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "disk full"), SafetensorError("disk full")]
)
def test_interrupted_save_leaves_the_older_checkpoint_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def torn(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"torn")
        raise error

    model = tiny_bert()
    adapt(model, {"query": Adapter("lora", 3, 7)})
    save_adapter(model, tmp_path, "base")
    before = hashes(tmp_path)
    monkeypatch.setattr(export, "save_file", torn)
    with pytest.raises(TrainingError, match=r"cannot be written \(disk full\)"):
        save_adapter(model, tmp_path, "base")
    assert hashes(tmp_path) == before


def test_model_without_adapters_is_not_saved_as_one(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="the model has no adapters"):
        save_adapter(tiny_bert(), tmp_path / "none", "base")
    assert not (tmp_path / "none").exists()


@METHODS
def test_checkpoints_stand_at_the_chosen_steps_and_the_loss_falls(
    tmp_path: Path, method: str
) -> None:
    run = settings(method, steps=9, save_steps=(1, 6, 9))
    losses = [step.loss for step in train(tiny_bert(), batches(), spread, run, tmp_path)]
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["checkpoint-1", "checkpoint-6", "checkpoint-9", "training.state"]
    assert len(losses) == 9
    assert losses[-1] < 0.95 * losses[0]


@METHODS
def test_one_seed_gives_the_same_bytes_and_another_does_not(tmp_path: Path, method: str) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        model = tiny_bert().train()  # its dropout draws from the seed, too
        train(model, batches(), spread, settings(method, seed=seed), tmp_path / name)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    assert hashes(tmp_path / "a") != hashes(tmp_path / "c")


@METHODS
@pytest.mark.parametrize(
    ("scale", "name"),
    [(lambda x: x * math.nan, "loss is nan"), (lambda x: (x - x).sqrt(), "gradient norm is nan")],
)
def test_numbers_that_are_no_longer_finite_stop_the_run_and_name_the_step(
    tmp_path: Path, method: str, scale: Any, name: str
) -> None:
    steps = iter(range(1, 9))

    def breaks(model: BertModel, ids: Tensor) -> Tensor:
        value = spread(model, ids)
        return scale(value) if next(steps) == 4 else value

    with pytest.raises(TrainingError, match=f"step 4: the {name}, a finite number was expected"):
        train(tiny_bert(), batches(), breaks, settings(method), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-2", "training.state"]


def test_batches_that_end_early_are_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="batches: ended after 3, 4 were expected"):
        train(tiny_bert(), islice(batches(), 3), spread, settings("lora"), tmp_path)


def test_learning_rate_warms_up_and_then_falls_to_zero() -> None:
    run = settings("full", steps=6, warmup=2)
    assert [lr_factor(step, run) for step in range(7)] == [0.5, 1, 1, 0.75, 0.5, 0.25, 0]
    assert [lr_factor(step, settings("full", steps=4)) for step in range(4)] == [1, 0.75, 0.5, 0.25]
    cosine = [lr_factor(step, settings("full", steps=4, schedule="cosine")) for step in (0, 2)]
    assert cosine == pytest.approx([1, 0.5])
    assert lr_factor(3, settings("full", steps=4, schedule="constant")) == 1


def test_full_training_is_adamw_on_the_gradient_of_each_batch(tmp_path: Path) -> None:
    model, plain, source = tiny_bert(), tiny_bert(), batches()
    run = settings("full", weight_decay=0.1, warmup=2)
    train(model, batches(), spread, run, tmp_path)
    optimizer = torch.optim.AdamW(plain.parameters(), weight_decay=0.1, foreach=False)
    for step in range(4):
        optimizer.param_groups[0]["lr"] = 0.01 * lr_factor(step, run)
        optimizer.zero_grad()
        spread(plain, next(source)).backward()
        optimizer.step()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        # Adam divides by √v: where a gradient is all rounding, so is the step. Hence the mean.
        assert (ours - theirs).abs().mean() < 1e-4  # of steps of 1e-2


@METHODS
def test_weight_decay_shrinks_every_trained_tensor(tmp_path: Path, method: str) -> None:
    # With a zero gradient AdamW's step is the decay alone: w ← w · (1 − lr · factor · decay).
    model, start = tiny_bert(), tiny_bert()
    run = settings(method, weight_decay=2.0, warmup=2)
    if method != "full":
        torch.manual_seed(run.seed)
        adapt(start, run.adapters)
    train(model, batches(), lambda m, ids: 0 * spread(m, ids), run, tmp_path)
    shrunk = math.prod(1 - 0.01 * lr_factor(step, run) * 2.0 for step in range(4))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert any("query" in name for name in trained)
    for name, before in start.named_parameters():
        expected = before.data * shrunk if name in trained else before.data
        torch.testing.assert_close(model.get_parameter(name).data, expected, **ROUNDING)


@pytest.mark.parametrize("method", ["lora", "dora", "vera", "dvora", "magnitude"])
def test_every_method_loads_in_peft_and_merges_to_our_weights(tmp_path: Path, method: str) -> None:
    model = tiny_bert()
    base = copy.deepcopy(model)
    run = settings(method, lr=0.1)
    train(model, batches(), spread, run, tmp_path)
    peft = PeftModel.from_pretrained(base, tmp_path / "checkpoint-4").merge_and_unload()
    for name, adapter in adapted_layers(model).items():
        theirs = peft.get_submodule(name).weight.data
        torch.testing.assert_close(adapter.merged(), theirs, **ROUNDING)
        assert not torch.equal(theirs, adapter.base.weight.data)


def test_directions_and_magnitudes_alone_are_one_adapter_for_peft(tmp_path: Path) -> None:
    """The paper's section 5.6: most layers have magnitudes and directions, some magnitudes only."""
    adapters = {"query": Adapter("dora", 3, 7), "dense": Adapter("magnitude")}
    model = tiny_bert()
    base = copy.deepcopy(model)
    train(model, batches(), spread, settings("dora", adapters=adapters), tmp_path)
    peft = PeftModel.from_pretrained(base, tmp_path / "checkpoint-4").merge_and_unload()
    for name, adapter in adapted_layers(model).items():
        theirs = peft.get_submodule(name).weight.data
        torch.testing.assert_close(adapter.merged(), theirs, **ROUNDING)


@pytest.mark.parametrize(
    ("method", "changes", "place"),
    [
        ("dvora", {}, "checkpoint-4/compact"),
        ("dora", {"axis": "input"}, "checkpoint-4"),
        ("magnitude", {"axis": "input"}, "checkpoint-4"),
    ],
)
def test_what_peft_has_not_is_read_by_compare(
    tmp_path: Path, method: Any, changes: dict[str, Any], place: str
) -> None:
    model = tiny_bert()
    save_full(model, None, tmp_path / "base")
    adapter = Adapter(method, 3, 7, **changes)
    train(model, batches(), spread, settings(method, adapters={"query": adapter}), tmp_path / "run")
    found = wdecomp.compare(tmp_path / "base", tmp_path / "run" / place).modules
    base = AutoModel.from_pretrained(tmp_path / "base", add_pooling_layer=False)
    layers = adapted_layers(model)
    assert len(found) == 2 * len(layers)
    for row in found.itertuples():
        name = row.parameter.removesuffix(".weight")
        weight, merged = base.get_submodule(name).weight, layers[name].merged()
        delta = wdecomp.column_delta(weight, merged, row.axis)
        assert row.delta_magnitude == pytest.approx(abs(delta.delta_magnitude).mean(), rel=1e-4)
        assert row.delta_direction == pytest.approx(delta.delta_direction.mean(), rel=1e-4)


def test_the_compact_copy_of_an_adapter_is_no_run_of_its_own(tmp_path: Path) -> None:
    base, run = tmp_path / "base", tmp_path / "run"
    model = tiny_bert()
    save_full(model, None, base)
    adapters = {"query": Adapter("dvora", 3, 7)}
    train(model, batches(), spread, settings("dvora", adapters=adapters, lr=0.1), run)

    def runs(*tuned: Path) -> list[tuple[str, int | None]]:
        return [(each.name, each.step) for each in plan_comparison(base, *tuned).runs]

    last = run / "checkpoint-4"
    assert runs(run) == [("run", 2), ("run", 4)]
    assert runs(last) == [("run", 4)]
    assert runs(last / "compact") == [("compact", None)]
    both = wdecomp.compare(base, last, last / "compact").modules
    sizes = both.pivot(index=["parameter", "axis"], columns="run", values="delta_direction")
    np.testing.assert_allclose(sizes["compact"], sizes["run"], rtol=1e-3)
    # Without what it is a copy of, it is the adapter; and other named adapters are runs.
    for file in last.glob("adapter_*"):
        file.unlink()
    assert runs(last) == [("compact", 4)]
    save_adapter(tiny_with("dora"), last, "base")
    save_adapter(tiny_with("lora"), last / "other", "base")
    assert runs(last) == [("run", 4), ("other", 4)]


def tiny_with(method: Any) -> BertModel:
    model = tiny_bert()
    adapt(model, {"query": Adapter(method, 3, 7)})
    return model


@METHODS
def test_an_interrupted_run_ends_with_the_bytes_of_one_that_was_not(
    tmp_path: Path, method: str
) -> None:
    class Killed(Exception):
        pass

    run = settings(method, steps=7, save_steps=(2, 5, 7), accumulate=2, weight_decay=0.1, clip=0.5)
    train(tiny_bert().train(), batches(), spread, run, tmp_path / "whole")
    for last in (1, 2, 4, 6):

        def stop(step: Any, last: int = last) -> None:
            if step.step == last:
                raise Killed

        with pytest.raises(Killed):
            train(tiny_bert().train(), batches(), spread, run, tmp_path / "cut", stop)
    steps = train(tiny_bert().train(), batches(), spread, run, tmp_path / "cut")
    assert [step.step for step in steps] == list(range(1, 8))
    assert hashes(tmp_path / "whole") == hashes(tmp_path / "cut")


def test_the_state_of_another_run_is_not_continued(tmp_path: Path) -> None:
    train(tiny_bert(), batches(), spread, settings("lora"), tmp_path)
    with pytest.raises(TrainingError, match=r"holds a run with lr 0.01, this one has 0.5\. Choose"):
        train(tiny_bert(), batches(), spread, settings("lora", lr=0.5), tmp_path)
    (tmp_path / "training.state").write_bytes(b"torn")
    with pytest.raises(TrainingError, match=r"training\.state: is no state of this run"):
        train(tiny_bert(), batches(), spread, settings("lora"), tmp_path)


def test_accumulated_gradients_are_those_of_one_batch(tmp_path: Path) -> None:
    def halves() -> Iterator[Tensor]:
        for batch in batches():
            yield from batch.chunk(2)

    once = train(tiny_bert(), batches(), spread, settings("dora"), tmp_path / "a")
    twice = train(tiny_bert(), halves(), spread, settings("dora", accumulate=2), tmp_path / "b")
    for one, two in zip(once, twice, strict=True):
        assert one.loss == pytest.approx(two.loss, rel=1e-5)
        assert one.gradient_norm == pytest.approx(two.gradient_norm, rel=1e-4)


def test_targets_that_other_layers_are_called_by_too_are_named_in_full(tmp_path: Path) -> None:
    model = tiny_bert()
    adapt(model, {"layer.1.*.query": Adapter("lora", 3, 7)})
    save_adapter(model, tmp_path, "base")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_modules"] == ["encoder.layer.1.attention.self.query"]
    peft = PeftModel.from_pretrained(tiny_bert(), tmp_path).merge_and_unload()
    for name, adapter in adapted_layers(model).items():
        torch.testing.assert_close(adapter.merged(), peft.get_submodule(name).weight.data)


def test_a_layer_that_two_targets_name_is_refused() -> None:
    with pytest.raises(
        TrainingError, match=r"query and 1 more is named twice|query is named twice"
    ):
        adapt(tiny_bert(), {"query": Adapter("lora"), "self.query": Adapter("dora")})


@pytest.mark.parametrize(
    ("target", "axis", "message"),
    [
        ("dense", "output", r"dense: is both adapted and trained whole"),
        ("query", "input", r"dense: is trained whole beside magnitudes of inputs"),
    ],
)
def test_what_cannot_be_saved_is_not_trained(
    tmp_path: Path, target: str, axis: Any, message: str
) -> None:
    adapters = {target: Adapter("dora", 3, 7, axis=axis)}
    run = settings("dora", adapters=adapters, modules_to_save=("dense",))
    with pytest.raises(TrainingError, match=message):
        train(tiny_bert(), batches(), spread, run, tmp_path)
    assert not list(tmp_path.iterdir())
