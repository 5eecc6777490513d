"""Tuners that are merged by PEFT's own layers, one module at a time, against its merge of all."""

import builtins
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from builders import write_full
from peft_cases import Make, gpt2, llama, write
from peft_oracle import check_merge

import wdecomp
from wdecomp.adapter.peft import THROUGH_PEFT
from wdecomp.errors import AdapterError

Config = Callable[..., peft.PeftConfig]
CASES: dict[str, tuple[Make, Config, dict[str, Any]]] = {
    "c3a": (llama, peft.C3AConfig, {"block_size": 8}),
    "c3a patterns": (
        llama,
        peft.C3AConfig,
        {"block_size": 8, "block_size_pattern": {"layers.1.self_attn.q_proj": 4}},
    ),
    "deft": (llama, peft.DeftConfig, {"r": 4}),
    "deft conv1D": (gpt2, peft.DeftConfig, {"r": 4, "fan_in_fan_out": True}),
    "fourierft": (llama, peft.FourierFTConfig, {"n_frequency": 20, "random_loc_seed": 5}),
    "fourierft conv1D": (gpt2, peft.FourierFTConfig, {"n_frequency": 20, "fan_in_fan_out": True}),
    "gralora": (llama, peft.GraloraConfig, {"r": 4, "gralora_k": 2, "hybrid_r": 2}),
    "gralora conv1D": (gpt2, peft.GraloraConfig, {"r": 4, "gralora_k": 2, "fan_in_fan_out": True}),
    "hira": (llama, peft.HiraConfig, {"r": 4, "rank_pattern": {"layers.0.self_attn.q_proj": 2}}),
    "hira conv1D": (gpt2, peft.HiraConfig, {"r": 4, "fan_in_fan_out": True}),
    "miss": (llama, peft.MissConfig, {"r": 4}),
    "miss bat": (llama, peft.MissConfig, {"r": 4, "init_weights": "bat"}),
    "miss mini": (llama, peft.MissConfig, {"r": 4, "mini_r": 8, "init_weights": "mini"}),
    "peanut": (llama, peft.PeanutConfig, {"r": 4}),
    "road": (llama, peft.RoadConfig, {"group_size": 8}),
    "road 4": (llama, peft.RoadConfig, {"group_size": 8, "variant": "road_4"}),
    "shira": (llama, peft.ShiraConfig, {"r": 4, "random_seed": 3}),
    "supertuning": (llama, peft.SupertuningConfig, {}),
    "supertuning with ranks": (llama, peft.SupertuningConfig, {"r": 2}),
    "waveft": (llama, peft.WaveFTConfig, {"n_frequency": 20, "random_loc_seed": 5}),
    "waveft conv1D": (gpt2, peft.WaveFTConfig, {"n_frequency": 20, "fan_in_fan_out": True}),
    "beft": (llama, peft.BeftConfig, {}),
}
TARGETS = {llama: ["q_proj", "down_proj"], gpt2: ["attn.c_proj", "mlp.c_proj"]}


@pytest.mark.parametrize("case", CASES)
def test_what_peft_merges_alone_is_what_it_merges_in_the_model(case: str, tmp_path: Path) -> None:
    make, config, fields = CASES[case]
    write(tmp_path, make, config(target_modules=TARGETS[make], **fields))
    state = torch.random.get_rng_state()
    found = check_merge(tmp_path, error=2e-6)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert found.method == case.split()[0]


def test_every_tuner_that_goes_through_peft_has_a_case() -> None:
    assert {case.split()[0].upper() for case in CASES} == {*THROUGH_PEFT, "BEFT"}


def test_without_peft_an_error_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, llama, peft.MissConfig(target_modules=["q_proj"], r=4))
    there = builtins.__import__

    def absent(name: str, *rest: Any, **named: Any) -> Any:
        if name == "peft":
            raise ModuleNotFoundError("No module named 'peft'")
        return there(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(AdapterError, match="MISS adapters are merged by PEFT's own code, which is"):
        wdecomp.compare(tmp_path / "base", tmp_path / "adapter")


def test_an_adapter_of_another_base_is_an_error_of_one_line(tmp_path: Path) -> None:
    write(tmp_path, llama, peft.HiraConfig(target_modules=["q_proj"], r=4))
    other = {f"model.layers.{i}.self_attn.q_proj.weight": torch.ones(7, 9) for i in range(2)}
    write_full(tmp_path / "other", other)
    with pytest.raises(AdapterError, match="PEFT cannot merge it into a weight") as refused:
        wdecomp.compare(tmp_path / "other", tmp_path / "adapter")
    assert "\n" not in str(refused.value)
