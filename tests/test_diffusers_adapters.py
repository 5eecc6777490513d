"""LoRA files as diffusers writes and wrote them, beside what diffusers makes of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from numpy.testing import assert_allclose
from oracle import adapted_weight, check_columns, check_sound
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from wdecomp.checkpoint import open_checkpoint
from wdecomp.errors import AdapterError
from wdecomp.pairing import Pairing, pair

FILE = "pytorch_lora_weights.safetensors"
TARGETS = ["to_q", "to_v", "to_out.0", "conv1", "proj_in"]
CASES: dict[str, dict[str, Any]] = {
    "lora": {"r": 4, "lora_alpha": 4},
    "lora alpha 3r": {"r": 4, "lora_alpha": 12},
    "rslora": {"r": 4, "lora_alpha": 8, "use_rslora": True},
    "dora": {"r": 4, "lora_alpha": 8, "use_dora": True, "target_modules": TARGETS[:3]},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "rank_pattern": {"to_v": 2},
        "alpha_pattern": {"attn1.to_q": 5},
    },
    "bias": {"r": 4, "lora_alpha": 8, "lora_bias": True, "target_modules": ["to_out.0"]},
}


def _unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=12,
        attention_head_dim=4,
    )


def _trained(case: str, folder: Path) -> UNet2DConditionModel:
    """base/ (a U-Net) and an adapter with all that diffusers writes into its header."""
    unet = _unet()
    unet.save_pretrained(folder / "base")
    unet.add_adapter(LoraConfig(**{"target_modules": TARGETS} | CASES[case]))
    for name, parameter in unet.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn_like(parameter)
        if "magnitude" in name:
            parameter.data *= 1 + 0.2 * torch.rand_like(parameter)
    config = unet.peft_config["default"].to_dict()
    plain = {k: list(v) if isinstance(v, set) else v for k, v in config.items()}
    StableDiffusionPipeline.save_lora_weights(
        str(folder / "lora"),
        unet_lora_layers=get_peft_model_state_dict(unet),
        unet_lora_adapter_metadata=plain,
    )
    return unet


def _merged(folder: Path, unet: UNet2DConditionModel) -> dict[str, Tensor]:
    unet.fuse_lora()
    unet.unload_lora()
    unet.save_pretrained(folder / "merged")
    return load_file(folder / "merged/diffusion_pytorch_model.safetensors")


def _check(found: Pairing, merged: dict[str, Tensor], prefix: str = "") -> None:
    assert len(found.matrices) >= 4
    for name, each in found.matrices.items():
        want = merged[name.removeprefix(prefix)].reshape(each.shape).numpy()
        for block_bytes in (100, 1 << 20):
            assert_allclose(adapted_weight(each, block_bytes), want, rtol=1e-5, atol=1e-6)
        check_columns(each, want.astype(np.float64))
    for name, each in found.vectors.items():
        want = merged[name.removeprefix(prefix)].reshape(1, -1).numpy()
        assert_allclose(adapted_weight(each, 100), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_a_file_with_metadata_is_merged_as_diffusers_merges_it(case: str, tmp_path: Path) -> None:
    merged = _merged(tmp_path, _trained(case, tmp_path))
    found = pair(open_checkpoint(tmp_path / "base"), open_checkpoint(tmp_path / "lora" / FILE))
    _check(found, merged)
    assert found.dialect == "diffusers"
    assert found.notes == ()
    assert bool(found.vectors) == (case == "bias")
    check_sound(tmp_path / "base", tmp_path / "lora" / FILE, tmp_path / "merged")


def test_without_metadata_alpha_is_the_rank_and_that_is_said(tmp_path: Path) -> None:
    unet = _trained("lora alpha 3r", tmp_path)
    tensors = load_file(tmp_path / "lora" / FILE)
    save_file(tensors, tmp_path / "bare.safetensors")
    found = pair(open_checkpoint(tmp_path / "base"), open_checkpoint(tmp_path / "bare.safetensors"))
    base = open_checkpoint(tmp_path / "base")
    with_alpha = pair(base, open_checkpoint(tmp_path / "lora" / FILE))
    name = next(iter(found.matrices))
    before = unet.state_dict()[name.replace(".weight", ".base_layer.weight")].flatten(1).numpy()
    change = adapted_weight(found.matrices[name], 300) - before
    trained = adapted_weight(with_alpha.matrices[name], 300) - before
    assert_allclose(3 * change, trained, atol=1e-6)
    assert "alpha" in found.notes[0]


@pytest.mark.parametrize("spelling", ["lora.down", "processor"])
def test_older_spellings_are_the_same_adapter(spelling: str, tmp_path: Path) -> None:
    unet = _trained("lora", tmp_path)
    tensors = {
        _older(key, spelling): tensor
        for key, tensor in load_file(tmp_path / "lora" / FILE).items()
        if ".to_" in key
    }
    save_file(tensors, tmp_path / "old.safetensors")
    found = pair(open_checkpoint(tmp_path / "base"), open_checkpoint(tmp_path / "old.safetensors"))
    _check(found, _merged(tmp_path, unet))
    check_sound(tmp_path / "base", tmp_path / "old.safetensors")


def _older(key: str, spelling: str) -> str:
    module, _, part = key.rpartition(".lora_")
    side = "down" if part.startswith("A") else "up"
    if spelling == "lora.down":
        return f"{module}.lora.{side}.weight"
    attention, _, name = module.removesuffix(".0").rpartition(".")
    return f"{attention}.processor.{name}_lora.{side}.weight"


def test_a_rank_that_the_metadata_deny_is_a_contradiction(tmp_path: Path) -> None:
    _trained("lora", tmp_path)
    tensors = load_file(tmp_path / "lora" / FILE)
    metadata = {"lora_adapter_metadata": json.dumps({"unet.r": 8, "unet.lora_alpha": 8})}
    save_file(tensors, tmp_path / "wrong.safetensors", metadata)
    base = open_checkpoint(tmp_path / "base")
    with pytest.raises(AdapterError, match="gives other ranks than the tensors have"):
        pair(base, open_checkpoint(tmp_path / "wrong.safetensors"))


def test_the_magnitude_of_a_dora_matters(tmp_path: Path) -> None:
    unet = _trained("dora", tmp_path)
    found = pair(open_checkpoint(tmp_path / "base"), open_checkpoint(tmp_path / "lora" / FILE))
    name, each = next(iter(found.matrices.items()))
    merged = _merged(tmp_path, unet)[name].flatten(1).numpy()
    without = pair(
        open_checkpoint(tmp_path / "base"), open_checkpoint(_without_magnitude(tmp_path))
    ).matrices[name]
    assert np.abs(adapted_weight(without, 300) - merged).max() > 0.01
    assert_allclose(adapted_weight(each, 300), merged, rtol=1e-5, atol=1e-6)


def _without_magnitude(folder: Path) -> Path:
    tensors = load_file(folder / "lora" / FILE)
    kept = {key: tensor for key, tensor in tensors.items() if "magnitude" not in key}
    save_file(kept, folder / "without.safetensors")
    return folder / "without.safetensors"
