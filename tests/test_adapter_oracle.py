"""PEFT's own merge is the oracle for what an adapter does to its base."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose
from pandas.testing import assert_frame_equal
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

import wdecomp
from wdecomp.adapter import Adapted, ChangeReader
from wdecomp.checkpoint import MatrixReader, open_checkpoint
from wdecomp.dtypes import widen
from wdecomp.pairing import Pair, pair

MERGED = {"rtol": 2e-6, "atol": 1e-8}  # float32 products summed in another order
# The merged copy was rounded to float32 once more than the change that we form: by 6e-8 of a
# weight, where changes are about a hundredth of it and signed ones cancel.
TABLE = {"rtol": 1e-5, "atol": 3e-8}
RATIO = {"rtol": 1e-5, "atol": 1e-6}  # of such sums


def _llama() -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32,
            intermediate_size=56,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=96,
            attention_bias=True,
        )
    )


def _gpt2() -> PreTrainedModel:
    config = {"n_embd": 24, "n_layer": 2, "n_head": 2, "vocab_size": 64}
    return GPT2LMHeadModel(GPT2Config(**config, tie_word_embeddings=False))


def _bert() -> PreTrainedModel:
    return BertForSequenceClassification(
        BertConfig(
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=2,
            vocab_size=64,
        )
    )


CASES: dict[str, tuple[Callable[[], PreTrainedModel], dict[str, Any]]] = {
    "llama lora": (_llama, {"target_modules": ["q_proj", "k_proj", "down_proj"]}),
    "llama dora": (_llama, {"target_modules": ["q_proj", "v_proj", "up_proj"], "use_dora": True}),
    "llama rslora": (_llama, {"target_modules": ["q_proj", "o_proj"], "use_rslora": True}),
    "llama patterns": (
        _llama,
        {
            "target_modules": ["q_proj", "v_proj", "gate_proj"],
            "rank_pattern": {"v_proj": 3, "layers.1.self_attn.q_proj": 5},
            "alpha_pattern": {r"layers\.[02]\.mlp\.gate_proj": 7, "v_proj": 1},
            "use_dora": True,
        },
    ),
    "gpt2 lora": (_gpt2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "gpt2 dora": (
        _gpt2,
        {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True, "use_dora": True},
    ),
    "gpt2 with head": (_gpt2, {"target_modules": ["c_attn", "lm_head"], "use_dora": True}),
    "bert dora": (
        _bert,
        {"target_modules": ["query", "value", "dense"], "use_dora": True},
    ),
    "bert new head": (
        _bert,
        {"target_modules": ["query", "key"], "modules_to_save": ["classifier"]},
    ),
}


def _trained(case: str, folder: Path, base_dtype: torch.dtype) -> None:
    """base/, adapter/ and merged/ (float32), in a state away from initialisation."""
    torch.manual_seed(0)
    make, config = CASES[case]
    model = make()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(base_dtype).float()
    model.to(base_dtype).save_pretrained(folder / "base")
    model.float()
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=9, **config))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.02)
        if "magnitude" in name:
            parameter.data *= 1 + 0.2 * (2 * torch.rand_like(parameter) - 1)
        if "modules_to_save" in name:
            parameter.data += 0.01 * torch.randn_like(parameter)
    adapted.save_pretrained(folder / "adapter")
    reloaded = PeftModel.from_pretrained(model_again(folder, make), folder / "adapter")
    reloaded.merge_and_unload().save_pretrained(folder / "merged")


def model_again(folder: Path, make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    kind = type(make())
    return kind.from_pretrained(folder / "base", dtype=torch.float32)


def _merged_weight(each: Pair, block_bytes: int) -> np.ndarray:
    """W0 + ΔW, (output, input), gathered block by block."""
    assert isinstance(each.tuned, Adapted)
    whole = np.zeros(each.base.shape)
    with MatrixReader(each.base) as reader, ChangeReader(each.tuned, each.base) as change:
        for at in each.base.rectangles(each.base.shape, block_bytes):
            w0 = reader.read(at)
            whole[at.outputs, at.inputs] = widen(w0) + change.beside(w0, at).astype(np.float64)
    return whole


def _sorted(modules: pd.DataFrame) -> pd.DataFrame:
    """Without the columns that say how a run was stored."""
    told_apart = ["run", "method", "dtype_tuned", "floor_delta_direction"]
    return modules.drop(columns=told_apart).reset_index(drop=True)


@pytest.mark.parametrize("base_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_adapter_and_its_merged_copy_agree_with_peft(
    case: str, base_dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wdecomp.adapter.updates.BLOCK_BYTES", 300)  # several for every norm
    _trained(case, tmp_path, base_dtype)
    base, adapter, merged = (
        open_checkpoint(tmp_path / name) for name in ("base", "adapter", "merged")
    )
    theirs = pair(base, merged).matrices
    found = pair(base, adapter).matrices
    adapted = {name: each for name, each in found.items() if isinstance(each.tuned, Adapted)}
    assert adapted
    for name, each in adapted.items():
        tuned = theirs[name].tuned
        with MatrixReader(tuned) as reader:  # type: ignore[arg-type]
            at = next(iter(tuned.rectangles(tuned.shape, 1 << 30)))  # type: ignore[union-attr]
            want = reader.read(at).copy()
        for block_bytes in (100, 1 << 20):
            assert_allclose(_merged_weight(each, block_bytes), want, **MERGED)

    from_adapter = wdecomp.compare(tmp_path / "base", tmp_path / "adapter", columns="both")
    from_merged = wdecomp.compare(tmp_path / "base", tmp_path / "merged", columns="both")
    mine, copy = _sorted(from_adapter.modules), _sorted(from_merged.modules)
    assert_allclose(mine.pop("growth_ratio"), copy.pop("growth_ratio"), **RATIO)
    assert_frame_equal(mine, copy, check_exact=False, **TABLE)
    method = "dora" if CASES[case][1].get("use_dora") else "lora"
    assert set(from_adapter.modules["method"]) == {method}


def test_a_zero_row_of_the_base_is_counted_and_never_nan(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = _llama()
    weight = model.model.layers[0].self_attn.q_proj.weight
    weight.data[3] = 0
    model.save_pretrained(tmp_path / "base")
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], use_dora=True))
    adapted.base_model.model.model.layers[0].self_attn.q_proj.lora_B["default"].weight.data[5] = 0.1
    adapted.save_pretrained(tmp_path / "dora")
    modules = wdecomp.compare(tmp_path / "base", tmp_path / "dora").modules
    row = modules[modules["axis"] == "output"].iloc[0]
    assert (row["n_zero"], row["n_nonfinite"]) == (1, 0)
    assert np.isfinite(row["delta_magnitude"])
