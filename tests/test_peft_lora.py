"""LoRA and DoRA on every kind of layer, beside PEFT's own merge."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from oracle import DECOMPOSED, MERGED, adapted_weight, check_merged
from peft import LoraConfig, get_peft_model
from peft_models import (
    Attention,
    Make,
    Mixed,
    away_from_start,
    bert,
    gpt2,
    llama,
    seeded,
    write_base,
    write_case,
    write_merged,
)
from safetensors.torch import load_file, save_file
from torch import nn

import wdecomp
from wdecomp.adapter import read_adapter
from wdecomp.checkpoint import open_checkpoint
from wdecomp.pairing import pair

QVD = ["q_proj", "v_proj", "down_proj"]
GPT2 = ["c_attn", "c_proj", "c_fc"]
CONVS = ["conv1", "conv2", "conv3", "point", "linear"]
CASES: dict[str, tuple[Make, dict[str, Any]]] = {
    "lora linear": (llama, {"target_modules": QVD}),
    "lora rank-stabilised": (llama, {"target_modules": QVD, "use_rslora": True}),
    "lora conv1d of gpt2": (gpt2, {"target_modules": GPT2[:2], "fan_in_fan_out": True}),
    "lora conv1d and a head, flag denied": (gpt2, {"target_modules": [*GPT2[:2], "lm_head"]}),
    "lora convolutions": (Mixed, {"target_modules": CONVS}),
    "lora embedding": (Mixed, {"target_modules": ["embed_in"]}),
    "lora embedding of llama": (llama, {"target_modules": ["embed_tokens", "q_proj"]}),
    "lora multihead attention": (Attention, {"target_modules": ["attn"]}),
    "lora bias": (llama, {"target_modules": ["q_proj", "v_proj"], "lora_bias": True}),
    "lora, all biases": (llama, {"target_modules": QVD, "bias": "all"}),
    "lora, their biases": (llama, {"target_modules": QVD, "bias": "lora_only"}),
    "lora, a head saved": (llama, {"target_modules": QVD, "modules_to_save": ["lm_head"]}),
    "lora, a new head": (bert, {"target_modules": ["query"], "modules_to_save": ["classifier"]}),
    "lora, new tokens": (llama, {"target_modules": QVD, "trainable_token_indices": [3, 7, 11]}),
    "lora patterns": (
        llama,
        {
            "target_modules": QVD,
            "rank_pattern": {"v_proj": 3, "layers.1.self_attn.q_proj": 5},
            "alpha_pattern": {r"layers\.[01]\.mlp\.down_proj": 7, "v_proj": 1},
        },
    ),
    "dora linear": (llama, {"target_modules": QVD, "use_dora": True}),
    "dora conv1d of gpt2": (gpt2, {"target_modules": GPT2, "use_dora": True}),
    "dora convolutions": (Mixed, {"target_modules": CONVS, "use_dora": True}),
    "dora embedding": (Mixed, {"target_modules": ["embed_in"], "use_dora": True}),
    "dora of bert": (bert, {"target_modules": ["query", "dense"], "use_dora": True}),
    "pissa as trained": (llama, {"target_modules": QVD, "init_lora_weights": "pissa"}),
    "pissa of conv1d": (gpt2, {"target_modules": ["c_attn", "c_fc"], "init_lora_weights": "pissa"}),
    "pissa with dora": (
        llama,
        {"target_modules": QVD, "init_lora_weights": "pissa", "use_dora": True},
    ),
    "pissa beside an embedding": (
        llama,
        {"target_modules": ["q_proj", "embed_tokens"], "init_lora_weights": "pissa"},
    ),
    "olora of a square conv1d": (
        gpt2,
        {"target_modules": ["attn.c_proj"], "init_lora_weights": "olora"},
    ),
    "olora as trained": (llama, {"target_modules": QVD, "init_lora_weights": "olora"}),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("case", CASES)
def test_an_adapter_is_what_peft_merges(
    case: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wdecomp.adapter.updates.BLOCK_BYTES", 300)  # several for every norm
    make, config = CASES[case]
    write_case(tmp_path, make, LoraConfig(r=4, lora_alpha=9, **config), dtype)
    rough = "init_lora_weights" in config  # PEFT's SVD and QR are in float32
    error = DECOMPOSED if rough else MERGED
    found = check_merged(tmp_path, ratios=not rough, error=error)
    assert found.method == ("dora" if config.get("use_dora") else "lora")


def test_a_converted_pissa_is_a_plain_lora_of_twice_the_rank(tmp_path: Path) -> None:
    config = LoraConfig(r=4, lora_alpha=9, target_modules=QVD, init_lora_weights="pissa")
    write_base(seeded(llama), tmp_path / "base")
    adapted = get_peft_model(seeded(llama), config)
    adapted.peft_config["default"].init_lora_weights = True
    adapted.save_pretrained(tmp_path / "start")
    adapted.peft_config["default"].init_lora_weights = "pissa"
    away_from_start(adapted)
    adapted.save_pretrained(
        tmp_path / "adapter", path_initial_model_for_weight_conversion=str(tmp_path / "start")
    )
    write_merged(tmp_path, llama)
    found = check_merged(tmp_path, ratios=False)
    assert {each.tuned.update.rank for each in found.matrices.values()} == {8}  # type: ignore[union-attr]


def test_a_pissa_read_as_plain_lora_would_be_off_by_its_principal_part(tmp_path: Path) -> None:
    make, config = CASES["pissa as trained"]
    write_case(tmp_path, make, LoraConfig(r=4, lora_alpha=9, **config))
    file = tmp_path / "adapter/adapter_config.json"
    file.write_text(file.read_text().replace('"pissa"', "true"))
    with pytest.raises(AssertionError, match="Mismatched elements"):
        check_merged(tmp_path, tables=False)


def test_the_flag_for_conv1d_is_not_believed(tmp_path: Path) -> None:
    make, config = CASES["lora conv1d and a head, flag denied"]
    write_case(tmp_path, make, LoraConfig(r=4, lora_alpha=9, **config))
    assert '"fan_in_fan_out": false' in (tmp_path / "adapter/adapter_config.json").read_text()
    (tmp_path / "base/config.json").write_text('{"model_type": "gpt_bigcode"}')  # nn.Linear there
    with pytest.raises(Exception, match=r"Mismatched elements|trained on another base"):
        check_merged(tmp_path, tables=False)


def test_the_order_of_patterns_is_that_of_the_file_not_of_training(tmp_path: Path) -> None:
    patterns = {"self_attn.q_proj": 7, ".*q_proj": 100}
    config = LoraConfig(r=4, lora_alpha=9, target_modules=QVD, alpha_pattern=patterns)
    write_case(tmp_path, llama, config)
    found = check_merged(tmp_path, tables=False)
    q = found.matrices["model.layers.0.self_attn.q_proj.weight"]
    assert q.tuned.update.scaling == 100 / 4  # type: ignore[union-attr]


def test_multihead_attention_gets_its_output_lora_twice(tmp_path: Path) -> None:
    make, config = CASES["lora multihead attention"]
    write_case(tmp_path, make, LoraConfig(r=4, lora_alpha=8, **config))
    found = pair(open_checkpoint(tmp_path / "base"), open_checkpoint(tmp_path / "adapter"))
    out, once = found.matrices["attn.out_proj.weight"], 8 / 4
    assert out.tuned.update.scaling == 2 * once  # type: ignore[union-attr]
    assert {p for p in found.matrices if "in_proj" in p} == {
        f"attn.in_proj_weight[{part}]" for part in "qkv"
    }


def test_replacements_are_no_changes_to_be_added(tmp_path: Path) -> None:
    make, config = CASES["lora, new tokens"]
    write_case(tmp_path, make, LoraConfig(r=4, lora_alpha=9, **config))
    found = pair(open_checkpoint(tmp_path / "base"), open_checkpoint(tmp_path / "adapter"))
    each = found.matrices["model.embed_tokens.weight"]
    base = load_file(tmp_path / "base/model.safetensors")["model.embed_tokens.weight"].numpy()
    merged = load_file(tmp_path / "merged/model.safetensors")["model.embed_tokens.weight"].numpy()
    new = [3, 7, 11]
    rows = next(t for k, t in load_file(tmp_path / "adapter/adapter_model.safetensors").items()
                if "trainable_tokens" in k).numpy()  # fmt: skip
    assert_allclose(adapted_weight(each, 300)[:, new], rows.T, rtol=1e-6)
    assert np.abs(base[new] + rows - merged[new]).max() > 0.01


def test_a_whole_peft_model_is_read_with_the_config_beside_it(tmp_path: Path) -> None:
    make, config = CASES["dora linear"]
    write_case(tmp_path, make, LoraConfig(r=4, lora_alpha=9, **config))
    adapted = get_peft_model(seeded(make), LoraConfig(r=4, lora_alpha=9, **config))
    away_from_start(adapted)
    file = tmp_path / "adapter/adapter_model.safetensors"
    save_file({name: t.clone() for name, t in adapted.state_dict().items()}, file)
    check_merged(tmp_path)
    left_out = dict(read_adapter(open_checkpoint(tmp_path / "adapter")).left_out)
    assert set(left_out.values()) == {"a copy of the base"}


def test_an_embedding_whose_name_is_no_embeddings_is_known_by_its_adapter(tmp_path: Path) -> None:
    class Words(Mixed):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(30, 12)

    write_case(tmp_path, Words, LoraConfig(r=4, target_modules=["words"], use_dora=True))
    found = pair(open_checkpoint(tmp_path / "base"), open_checkpoint(tmp_path / "adapter"))
    want = load_file(tmp_path / "merged/model.safetensors")["words.weight"].T.numpy()
    assert_allclose(adapted_weight(found.matrices["words.weight"], 100), want, rtol=1e-5, atol=1e-6)


def test_a_named_adapter_is_in_a_folder_of_its_name(tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules=QVD)
    adapted = get_peft_model(seeded(llama), config, adapter_name="v_proj")
    away_from_start(adapted)
    write_base(seeded(llama), tmp_path / "base")
    adapted.save_pretrained(tmp_path / "all")
    (tmp_path / "all/v_proj").rename(tmp_path / "adapter")
    write_merged(tmp_path, llama)
    check_merged(tmp_path)


def test_a_zero_row_of_the_base_is_counted_and_never_nan(tmp_path: Path) -> None:
    model = seeded(llama)
    weight = model.model.layers[0].self_attn.q_proj.weight  # type: ignore[union-attr]
    weight.data[3] = 0
    write_base(model, tmp_path / "base")
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], use_dora=True))
    q = adapted.base_model.model.model.layers[0].self_attn.q_proj
    q.lora_B["default"].weight.data[5] = 0.1
    adapted.save_pretrained(tmp_path / "dora")
    modules = wdecomp.compare(tmp_path / "base", tmp_path / "dora").modules
    row = modules[modules["axis"] == "output"].iloc[0]
    assert (row["n_zero"], row["n_nonfinite"]) == (1, 0)
    assert np.isfinite(row["delta_magnitude"])


def test_a_merge_rounded_to_bf16_shows_its_rounding_and_not_the_adapter(tmp_path: Path) -> None:
    """Rounding alone turns every column by 1.4e-6: a small adapter is lost in that."""
    write_base(seeded(llama, torch.bfloat16), tmp_path / "base", torch.bfloat16)
    adapted = get_peft_model(
        seeded(llama, torch.bfloat16), LoraConfig(r=4, target_modules=["down_proj"])
    )
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=2e-5)
    adapted.save_pretrained(tmp_path / "adapter")
    write_merged(tmp_path, llama, torch.bfloat16)
    tensors = load_file(tmp_path / "merged/model.safetensors")
    exact = wdecomp.compare(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged").modules
    rounded = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    save_file(rounded, tmp_path / "merged/model.safetensors")
    coarse = wdecomp.compare(tmp_path / "base", tmp_path / "merged").modules
    small, same = (
        exact[exact["run"] == run]["delta_direction"].max() for run in ("adapter", "merged")
    )
    assert small == pytest.approx(same, rel=1e-4)
    floor = coarse["floor_delta_direction"].max()
    assert small < 0.1 * floor
    assert coarse["delta_direction"].max() != pytest.approx(small, rel=0.5)
