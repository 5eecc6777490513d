"""Flat names are found in their own component, and in originals as well as in diffusers' models."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel
from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers
from oracle import adapted_weight
from safetensors.torch import load_file, save_file
from torch import Tensor

from wdecomp.checkpoint import open_checkpoint
from wdecomp.errors import PairingError
from wdecomp.flat_names import match_flat
from wdecomp.pairing import pair

LAYER = "encoder.layers.0.self_attn.q_proj.weight"
FLAT = "text_model_encoder_layers_0_self_attn_q_proj.weight"
ONE, TWO, THREE = (f"lora_te{i}_{FLAT}" for i in (1, 2, 3))


@pytest.mark.parametrize(
    "components",
    [
        ("text_encoder.text_model.", "text_encoder_2.text_model."),
        ("conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model."),
        ("text_encoders.clip_l.transformer.text_model.", "text_encoders.clip_g.transformer."),
    ],
)
def test_a_text_encoder_that_the_base_has_not_is_no_other(components: tuple[str, str]) -> None:
    first, second = (component + LAYER for component in components)
    found = match_flat(["unet.conv_in.weight", first], [ONE, TWO])
    assert found == {ONE: (first,), TWO: ()}
    found = match_flat(["unet.conv_in.weight", second], [ONE, TWO])
    assert found == {ONE: (), TWO: (second,)}


def test_no_text_encoder_is_looked_for_in_a_unet() -> None:
    names = ["lora_te_conv_in.weight", "lora_unet_conv_in.weight"]
    found = match_flat(["unet.conv_in.weight"], names)
    assert list(found.values()) == [(), ("unet.conv_in.weight",)]


@pytest.mark.parametrize("mine", [ONE, TWO, THREE])
def test_a_lone_text_encoder_is_the_one_whose_shapes_it_has(mine: str) -> None:
    base = f"text_model.{LAYER}"
    found = match_flat([base], [ONE, TWO, THREE], lambda name, _: name == mine)
    assert found == {name: (base,) if name == mine else () for name in (ONE, TWO, THREE)}


def test_an_adapter_of_one_text_encoder_is_taken_at_its_word() -> None:
    base = f"text_model.{LAYER}"
    assert match_flat([base], [TWO], lambda *_: False) == {TWO: (base,)}


def test_the_t5_of_flux_has_another_number_in_diffusers() -> None:
    layer = "encoder.block.0.layer.0.SelfAttention.q.weight"
    flat = "lora_te3_encoder_block_0_layer_0_SelfAttention_q.weight"
    flux = [f"text_encoder.text_model.{LAYER}", f"text_encoder_2.{layer}"]
    assert match_flat(flux, [ONE, flat]) == {ONE: (flux[0],), flat: (flux[1],)}
    sd3 = [*flux, f"text_encoder_3.{layer}"]
    assert match_flat(sd3, [flat]) == {flat: (sd3[2],)}
    assert match_flat(flux, [flat, TWO])[flat] == ()  # of an SD3 adapter there is a second CLIP


@pytest.mark.parametrize(
    ("name", "flat"),
    [
        ("attn.out_proj", "self_attn_out_proj"),
        ("mlp.c_fc", "mlp_fc1"),
        ("mlp.c_proj", "mlp_fc2"),
        ("ln_2", "layer_norm2"),
    ],
)
def test_open_clip_has_other_names_for_the_same_layers(name: str, flat: str) -> None:
    base = f"conditioner.embedders.1.model.transformer.resblocks.3.{name}.weight"
    asked = f"lora_te2_text_model_encoder_layers_3_{flat}.weight"
    assert match_flat([base], [asked]) == {asked: (base,)}


@pytest.mark.parametrize("front", ["model.diffusion_model.", "diffusion_model.", ""])
@pytest.mark.parametrize(
    "module",
    ["double_blocks.0.img_attn.qkv", "double_blocks.0.txt_mlp.2", "single_blocks.1.linear1",
     "single_blocks.1.linear2", "final_layer.linear", "final_layer.adaLN_modulation.1", "img_in",
     "time_in.in_layer"],
)  # fmt: skip
def test_the_original_flux_has_the_same_modules(front: str, module: str) -> None:
    base, flat = f"{front}{module}.weight", f"lora_unet_{module.replace('.', '_')}.weight"
    assert match_flat([base, f"{front}guidance_in.out_layer.weight"], [flat]) == {flat: (base,)}


def test_sd_scripts_oft_has_a_prefix_of_its_own() -> None:
    flat = "oft_unet_mid_block_attentions_0_proj_in.weight"
    base = "unet.mid_block.attentions.0.proj_in.weight"
    assert match_flat([base], [flat]) == {flat: (base,)}


def test_lycoris_names_of_a_wrapped_model_are_found_by_their_ends_where_shapes_agree() -> None:
    base = "layers.0.self_attn.q_proj.weight"
    flat = "lycoris_model_layers_0_self_attn_q_proj.weight"
    assert match_flat([base], [flat], lambda *_: True) == {flat: (base,)}
    assert match_flat([base], [flat], lambda *_: False) == {flat: ()}


def test_two_names_for_one_tensor_are_an_error() -> None:
    base = "unet.down_blocks.1.attentions.0.proj_in.weight"
    flat = [
        f"lora_unet_{m}_proj_in.weight" for m in ("down_blocks_1_attentions_0", "input_blocks_4_1")
    ]
    with pytest.raises(PairingError, match=r"both lora_unet_down_blocks_1.*are this tensor"):
        match_flat([base], flat)


def _flux(folder: Path) -> dict[str, Tensor]:
    torch.manual_seed(0)
    flux = FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=24, pooled_projection_dim=20,
        axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    flux.save_pretrained(folder / "base")
    return load_file(folder / "base/diffusion_pytorch_model.safetensors")


MODULES = {  # of a Flux of width 32: flat name → (outputs, inputs)
    "double_blocks_0_img_attn_qkv": (96, 32),
    "double_blocks_0_txt_attn_qkv": (96, 32),
    "double_blocks_0_img_attn_proj": (32, 32),
    "double_blocks_0_txt_attn_proj": (32, 32),
    "double_blocks_0_img_mlp_0": (128, 32),
    "double_blocks_0_img_mlp_2": (32, 128),
    "double_blocks_0_txt_mlp_0": (128, 32),
    "double_blocks_0_txt_mlp_2": (32, 128),
    "double_blocks_0_img_mod_lin": (192, 32),
    "double_blocks_0_txt_mod_lin": (192, 32),
    "single_blocks_0_linear2": (32, 160),
    "single_blocks_0_modulation_lin": (96, 32),
    "img_in": (32, 4),
    "txt_in": (32, 24),
    "time_in_in_layer": (32, 256),
    "time_in_out_layer": (32, 32),
    "vector_in_in_layer": (32, 20),
    "vector_in_out_layer": (32, 32),
    "guidance_in_in_layer": (32, 256),
    "guidance_in_out_layer": (32, 32),
    "final_layer_linear": (4, 32),
}
SINGLE = {"single_blocks_0_linear1": (96 + 128, 32)}  # diffusers' converter knows full size alone


def _lora(modules: dict[str, tuple[int, int]]) -> dict[str, Tensor]:
    tensors = {}
    for module, (outputs, inputs) in modules.items():
        tensors[f"lora_unet_{module}.lora_down.weight"] = torch.randn(3, inputs)
        tensors[f"lora_unet_{module}.lora_up.weight"] = torch.randn(outputs, 3)
        if "final" not in module:  # whose alpha diffusers' converter does not follow
            tensors[f"lora_unet_{module}.alpha"] = torch.tensor(6.0)
    return tensors


def _changes(folder: Path) -> dict[str, np.ndarray]:
    base = load_file(folder / "base/diffusion_pytorch_model.safetensors")
    found = pair(open_checkpoint(folder / "base"), open_checkpoint(folder / "lora.safetensors"))
    assert found.left_out == []
    return {n: adapted_weight(e, 300) - base[n].numpy() for n, e in found.matrices.items()}


def test_a_flux_lora_is_split_as_diffusers_splits_it(tmp_path: Path) -> None:
    _flux(tmp_path)
    tensors = _lora(MODULES)
    save_file(tensors, tmp_path / "lora.safetensors")
    converted = _convert_kohya_flux_lora_to_diffusers(dict(tensors))
    wanted = {
        key.removeprefix("transformer.").removesuffix(".lora_A.weight"): (
            converted[key.replace("lora_A", "lora_B")] @ converted[key]
        ).numpy()
        for key in converted
        if "lora_A" in key
    }
    found = _changes(tmp_path)
    assert {f"{name}.weight" for name in wanted} == found.keys()
    for name, want in wanted.items():
        np.testing.assert_allclose(found[f"{name}.weight"], want, atol=1e-5 * np.abs(want).max())


def test_the_first_layer_of_a_single_block_is_four_of_diffusers(tmp_path: Path) -> None:
    _flux(tmp_path)
    tensors = _lora(SINGLE)
    save_file(tensors, tmp_path / "lora.safetensors")
    down, up, alpha = tensors.values()
    change = (alpha / 3 * up @ down).numpy()
    found, first = _changes(tmp_path), 0
    for part in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"):
        got = found[f"single_transformer_blocks.0.{part}.weight"]
        want = change[first : first + len(got)]
        np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())
        first += len(got)
    assert first == len(change)
