"""A whole network as LyCORIS trains it in kohya's scripts, on a pipeline and on one component."""

import json
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from lycoris.kohya import create_network
from oracle import adapted_weight, check_sound
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from wdecomp.adapter import Adapted
from wdecomp.adapter.change import index
from wdecomp.checkpoint import open_checkpoint
from wdecomp.pairing import pair

UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 12,
    "attention_head_dim": 4,
}


def _clip(width: int) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            hidden_size=width, intermediate_size=3 * width, num_hidden_layers=2,
            num_attention_heads=2, vocab_size=50, max_position_embeddings=8,
        )
    )  # fmt: skip


def _trained(folder: Path, encoders: list[CLIPTextModel], **settings: Any) -> Any:
    """base/, a pipeline, and kohya.safetensors with every factor away from where it starts."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**UNET)
    unet.save_pretrained(folder / "base/unet")
    index: dict[str, Any] = {"_class_name": "X", "unet": ["diffusers", "UNet2DConditionModel"]}
    for i, encoder in enumerate(encoders, 1):
        name = "text_encoder" if i == 1 else f"text_encoder_{i}"
        encoder.save_pretrained(folder / "base" / name)
        index[name] = ["transformers", "CLIPTextModel"]
    (folder / "base/model_index.json").write_text(json.dumps(index))
    asked = encoders if len(encoders) > 1 else encoders[0]
    network = create_network(1.0, 3, 7.0, None, asked, unet, preset="attn-mlp", **settings)
    network.apply_to(asked, unet, True, True)
    for name, parameter in network.named_parameters():
        if name.endswith("dora_scale"):
            parameter.data *= 1 + 0.2 * torch.rand_like(parameter)
        else:
            parameter.data = 0.2 * torch.randn_like(parameter)
    network.save_weights(str(folder / "kohya.safetensors"), torch.float32, {})
    return network


def _effective(lora: Any) -> np.ndarray:
    """(out, in·k): the answers to unit inputs, less the answer to none."""
    layer = lora.org_module[0]
    units = torch.eye(layer.weight[0].numel())
    ask = units if isinstance(layer, nn.Linear) else units.reshape(-1, *layer.weight.shape[1:])
    if isinstance(layer, nn.Conv2d):
        lora.kw_dict = {"stride": 1, "padding": 0}
        layer.stride, layer.padding = (1, 1), (0, 0)
    with torch.no_grad():
        answer = lora(ask) - lora(torch.zeros_like(ask))
    return answer.reshape(len(ask), -1).T.numpy()


@pytest.mark.parametrize("encoders", [1, 2])
@pytest.mark.parametrize(
    "settings",
    [{"algo": "lora", "rs_lora": True}, {"algo": "loha", "dora_wd": True}],
    ids=["rank-stabilised", "loha with magnitudes"],
)
def test_every_module_is_found_in_a_pipeline_and_merged_as_in_its_forward_pass(
    settings: dict[str, Any], encoders: int, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    network = _trained(tmp_path, [_clip(16), _clip(24)][:encoders], **settings)
    loras = [*network.unet_loras, *network.text_encoder_loras]
    found = pair(
        open_checkpoint(tmp_path / "base"), open_checkpoint(tmp_path / "kohya.safetensors")
    )
    assert found.left_out == []
    effective = {lora.lora_name: _effective(lora) for lora in loras}
    assert {each.tuned_name.split(".")[0] for each in found.matrices.values()} == effective.keys()
    assert sum(prod(each.shape) for each in found.matrices.values()) == sum(
        want.size for want in effective.values()
    )
    for each in found.matrices.values():
        assert isinstance(each.tuned, Adapted)
        name = each.tuned_name.split(".")[0]
        rows = each.tuned.outputs  # a GEGLU's projection is two matrices
        want = effective[name][slice(None) if rows is None else index(rows)]
        got = adapted_weight(each, 1 << 20)
        np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max(), err_msg=name)
    check_sound(tmp_path / "base", tmp_path / "kohya.safetensors")


@pytest.mark.parametrize("component", ["unet", "text_encoder", "text_encoder_2"])
def test_of_one_component_the_others_are_listed(component: str, tmp_path: Path) -> None:
    torch.manual_seed(2)
    _trained(tmp_path, [_clip(16), _clip(24)], algo="lora")
    file = tmp_path / "kohya.safetensors"
    found = pair(open_checkpoint(tmp_path / "base" / component), open_checkpoint(file))
    front = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
    modules = {key.split(".")[0] for key in load_file(file)}
    mine = {module for module in modules if module.startswith(front[component])}
    assert {each.tuned_name.split(".")[0] for each in found.matrices.values()} == mine
    assert {each.tensor.split(".")[0] for each in found.left_out} == modules - mine
    check_sound(tmp_path / "base" / component, file)
