"""Flat names lead where diffusers itself sends them."""

from types import SimpleNamespace

import pytest
from diffusers import UNet2DConditionModel
from diffusers.loaders.lora_conversion_utils import (
    _convert_unet_lora_key,
    _maybe_map_sgm_blocks_to_diffusers,
)

from wdecomp.flat_names import diffusers_modules, match_flat

ATTENTION = "transformer_blocks_0_attn1_to_q"
SDXL = [
    *(f"input_blocks_{i}_0_in_layers_2" for i in (1, 2, 4, 5, 7, 8)),
    *(f"input_blocks_{i}_0_emb_layers_1" for i in (1, 4)),
    *(f"input_blocks_{i}_0_out_layers_3" for i in (2, 8)),
    *(f"input_blocks_{i}_0_skip_connection" for i in (4, 7)),
    *(f"input_blocks_{i}_1_{ATTENTION}" for i in (4, 5, 7, 8)),
    *(f"input_blocks_{i}_0_op" for i in (3, 6)),
    *(f"middle_block_{i}_in_layers_2" for i in (0, 2)),
    f"middle_block_1_{ATTENTION}",
    "middle_block_1_proj_in",
    *(f"output_blocks_{i}_0_out_layers_3" for i in range(9)),
    *(f"output_blocks_{i}_1_{ATTENTION}" for i in range(6)),
    *(f"output_blocks_{i}_2_conv" for i in (2, 5)),
    *(
        "time_embed_0",
        "time_embed_2",
        "label_emb_0_0",
        "label_emb_0_2",
        "input_blocks_0_0",
        "out_2",
    ),
]


def _diffusers(module: str) -> str:
    """What diffusers makes of the key, flattened again."""
    key = f"lora_unet_{module}.lora_down.weight"
    [mapped] = _maybe_map_sgm_blocks_to_diffusers({key: None}, SimpleNamespace(layers_per_block=2))
    path = _convert_unet_lora_key(mapped.removesuffix(".lora_down.weight"))
    flat = path.removeprefix("unet.").replace(".", "_")
    return flat.replace("_processor_to_q", "_to_q").removesuffix("_lora")  # its place, once


@pytest.mark.parametrize("module", SDXL)
def test_the_original_names_of_sdxl_lead_where_diffusers_sends_them(module: str) -> None:
    assert diffusers_modules(module) == (_diffusers(module),)


@pytest.mark.parametrize("prefix", ["", "unet."])
def test_every_module_of_a_unet_is_found_by_its_flat_name(prefix: str) -> None:
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=12,
        attention_head_dim=4,
    )
    names = [prefix + name for name in unet.state_dict()]
    flat = {
        "lora_unet_"
        + name.removeprefix(prefix).rpartition(".")[0].replace(".", "_")
        + "."
        + name.rpartition(".")[2]: name
        for name in names
    }
    assert match_flat(names, flat) == {key: (name,) for key, name in flat.items()}


def test_prefixes_tell_the_components_of_a_pipeline_apart() -> None:
    layer = "encoder.layers.0.self_attn.q_proj.weight"
    base = [f"text_encoder.text_model.{layer}", f"text_encoder_2.text_model.{layer}"]
    flat = "text_model_encoder_layers_0_self_attn_q_proj.weight"
    found = match_flat(base, [f"lora_te1_{flat}", f"lora_te2_{flat}", f"lora_te3_{flat}"])
    assert list(found.values()) == [(base[0],), (base[1],), ()]


@pytest.mark.parametrize("level", ["", "text_model."])
@pytest.mark.parametrize("flat_level", ["", "text_model_"])
def test_clip_is_found_with_and_without_its_inner_level(level: str, flat_level: str) -> None:
    base = f"text_encoder.{level}encoder.layers.0.mlp.fc1.weight"
    flat = f"lora_te_{flat_level}encoder_layers_0_mlp_fc1.weight"
    assert match_flat([base], [flat]) == {flat: (base,)}


def test_original_single_files_are_found_by_either_set_of_names() -> None:
    base = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight"
    for flat in (
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.weight",
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q.weight",
    ):
        assert match_flat([base], [flat]) == {flat: (base,)}


def test_a_fused_projection_of_flux_is_the_three_of_diffusers() -> None:
    base = [f"transformer.transformer_blocks.0.attn.to_{each}.weight" for each in "qkv"]
    flat = "lora_unet_double_blocks_0_img_attn_qkv.weight"
    assert match_flat(base, [flat]) == {flat: tuple(base)}
    assert match_flat(base[:2], [flat]) == {flat: ()}


def test_a_name_is_matched_by_its_end_only_where_shapes_agree_and_one_does() -> None:
    base = ["model.layers.0.self_attn.q_proj.weight", "model.layers.1.self_attn.q_proj.weight"]
    flat = "lycoris_layers_0_self_attn_q_proj.weight"
    assert match_flat(base, [flat], lambda *_: True) == {flat: (base[0],)}
    assert match_flat(base, [flat], lambda *_: False) == {flat: ()}
    assert match_flat(base, [flat]) == {flat: ()}


def test_a_few_names_that_end_alike_are_chance() -> None:
    """A U-Net's LoRA on a VAE, whose encoder has one convolution of a U-Net's name."""
    base = [f"encoder.down_blocks.0.resnets.{i}.conv1.weight" for i in range(2)]
    flat = [f"lora_unet_down_blocks_{i}_resnets_0_conv1.weight" for i in range(3)]
    assert set(match_flat(base, flat, lambda *_: True).values()) == {()}
    wrapped = [f"net.{name.removeprefix('encoder.')}" for name in base]
    found = match_flat(wrapped, [flat[0]], lambda *_: True)
    assert found == {flat[0]: (wrapped[0],)}
