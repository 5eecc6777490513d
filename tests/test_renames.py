"""Names in memory to names on disk, with models that transformers itself saved."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from wdecomp.checkpoint import Checkpoint, StoredTensor, open_checkpoint, read_whole
from wdecomp.layouts import layout
from wdecomp.matching import match
from wdecomp.renames import spellings
from wdecomp.renames.table import EVERYWHERE, TABLE, UNKNOWN

pytestmark = pytest.mark.skipif(
    int(transformers.__version__.split(".")[0]) < 5, reason="names and stacks of transformers 5"
)

SIZES: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 2, "vocab_size": 11, "pad_token_id": 0}
GROUPED = SIZES | {"num_key_value_heads": 1, "head_dim": 8}
IMAGE = {"image_size": 8, "patch_size": 4}
VIT = SIZES | IMAGE
MOE = GROUPED | {"num_local_experts": 3, "num_experts": 3, "moe_intermediate_size": 10}
MOE |= {"num_experts_per_tok": 2}
QWEN_VISION = {"depth": 2, "embed_dim": 16, "num_heads": 2, "hidden_size": 16, "patch_size": 2}
QWEN_VISION |= {"intermediate_size": 12, "out_hidden_size": 16, "fullatt_block_indexes": [1]}
MROPE = GROUPED | {"rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]}}
CLIP = {"model_type": "clip_vision_model", **VIT}
SIGLIP = {"model_type": "siglip_vision_model", **VIT}
TEXT = {"model_type": "llama", **GROUPED}


def over(text: dict[str, Any], vision: dict[str, Any]) -> dict[str, Any]:
    return {"text_config": text, "vision_config": vision, "image_token_index": 5}


MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViTForImageClassification", VIT),
    "vit-base": ("ViTModel", VIT),
    "deit": ("DeiTForImageClassification", VIT),
    "beit": ("BeitForImageClassification", VIT | {"use_relative_position_bias": True}),
    "vit_mae": ("ViTMAEForPreTraining", VIT | {"decoder_hidden_size": 16}),
    "ast": ("ASTModel", SIZES | {"max_length": 32, "num_mel_bins": 16, "patch_size": 8}),
    "dinov2": ("Dinov2Model", VIT),
    "dinov3": ("DINOv3ViTModel", VIT),
    "swin": ("SwinModel", {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], **IMAGE}),
    "segformer": (
        "SegformerModel",
        {"num_encoder_blocks": 2, "depths": [2, 1], "sr_ratios": [2, 1], "hidden_sizes": [8, 16]},
    ),
    "mixtral": ("MixtralForCausalLM", MOE),
    "phimoe": ("PhimoeForCausalLM", MOE),
    "qwen2_moe": ("Qwen2MoeForCausalLM", MOE | {"shared_expert_intermediate_size": 14}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", MOE),
    "olmoe": ("OlmoeForCausalLM", MOE),
    "granitemoe": ("GraniteMoeForCausalLM", MOE),
    "jamba": (
        "JambaForCausalLM",
        MOE | {"expert_layer_offset": 0, "expert_layer_period": 1, "mamba_d_state": 4},
    ),
    "gpt_oss": ("GptOssForCausalLM", MOE),
    "gpt_neox": ("GPTNeoXForCausalLM", SIZES),
    "llava": ("LlavaForConditionalGeneration", over(TEXT, CLIP)),
    "llava-base": ("LlavaModel", over(TEXT, CLIP)),
    "llava_next": ("LlavaNextForConditionalGeneration", over(TEXT, CLIP)),
    "paligemma": (
        "PaliGemmaForConditionalGeneration",
        over({"model_type": "gemma", **GROUPED}, SIGLIP),
    ),
    "gemma3": ("Gemma3ForConditionalGeneration", over(GROUPED, VIT)),
    "qwen2_vl": (
        "Qwen2VLForConditionalGeneration",
        {"text_config": MROPE, "vision_config": QWEN_VISION},
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VLForConditionalGeneration",
        {"text_config": MROPE, "vision_config": QWEN_VISION},
    ),
    "clip": ("CLIPModel", {"text_config": SIZES, "vision_config": VIT, "projection_dim": 6}),
    "clip-vision": ("CLIPVisionModel", VIT),
    "clip-text": ("CLIPTextModel", SIZES),
    "siglip-vision": ("SiglipVisionModel", VIT),
    "bert": ("BertForMaskedLM", SIZES),
}
# How many names at least differ between memory and disk, where transformers renames at all.
RENAMED = {"vit", "vit-base", "deit", "beit", "vit_mae", "ast", "dinov2", "swin", "segformer"}
RENAMED |= {"mixtral", "phimoe", "granitemoe", "gpt_neox", "llava", "llava_next", "paligemma"}
RENAMED |= {"gemma3", "qwen2_vl", "qwen2_5_vl"}

STACKED = {"mixtral", "phimoe", "qwen2_moe", "qwen3_moe", "olmoe", "jamba"}  # in memory only


@cache
def built(family: str) -> Any:
    torch.manual_seed(0)
    class_name, config = MODELS[family]
    model_class = getattr(transformers, class_name)
    model = model_class(model_class.config_class(**config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            nn.init.normal_(parameter)
    return model


def saved(family: str, folder: Path) -> tuple[Checkpoint, dict[str, torch.Tensor]]:
    model = built(family)
    model.save_pretrained(folder)
    live = {name: p.detach() for name, p in model.named_parameters()}
    return open_checkpoint(folder), live


def matched(
    checkpoint: Checkpoint, live: dict[str, torch.Tensor], model_type: str | None
) -> dict[str, str | None]:
    return match(checkpoint.tensors, live, model_type)


def on_disk(checkpoint: Checkpoint, name: str) -> np.ndarray:
    tensor = checkpoint.tensors[name]
    assert isinstance(tensor, StoredTensor)
    return read_whole(tensor)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("with_type", [True, False])
@pytest.mark.parametrize("family", MODELS)
def test_every_parameter_in_memory_finds_itself_on_disk(
    family: str, with_type: bool, tmp_path: Path
) -> None:
    checkpoint, live = saved(family, tmp_path)
    model_type = checkpoint.model_type if with_type else None
    found = matched(checkpoint, live, model_type)
    for name, here in found.items():
        if here is not None:
            np.testing.assert_array_equal(on_disk(checkpoint, here), live[name].numpy())
    alone = [name for name, here in found.items() if here is None]
    assert all(family in STACKED and live[name].ndim == 3 for name in alone)
    if family in RENAMED:
        assert sum(here != name for name, here in found.items()) >= 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("front", ["base_model.model.", "module.", "_orig_mod.module."])
def test_wrapped_names_in_memory_find_themselves_too(front: str, tmp_path: Path) -> None:
    for family in ("vit", "llava", "qwen2_vl"):
        checkpoint, live = saved(family, tmp_path / family)
        wrapped = {front + name: tensor for name, tensor in live.items()}
        found = matched(checkpoint, wrapped, checkpoint.model_type)
        assert None not in found.values()
        plain = matched(checkpoint, live, checkpoint.model_type)
        assert list(found.values()) == list(plain.values())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", sorted(STACKED))
def test_a_stack_in_memory_is_its_experts_on_disk(family: str, tmp_path: Path) -> None:
    checkpoint, live = saved(family, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    stacks = {name: tensor for name, tensor in live.items() if tensor.ndim == 3}
    stacks = {name: tensor for name, tensor in stacks.items() if "experts" in name}
    compared = 0
    for name, tensor in stacks.items():
        found = layout(name, tuple(tensor.shape), config)
        assert found.input_first is False
        for part in found.parts:
            names = [n for n in part.split_names if n in checkpoint.tensors]
            assert len(names) == 1, part
            matrix = tensor[part.plane].numpy()
            rows = [i for piece in part.outputs or (range(len(matrix)),) for i in piece]
            np.testing.assert_array_equal(on_disk(checkpoint, names[0]), matrix[rows])
            compared += 1
    assert compared == 2 * 3 * 3  # layers, experts, matrices


@pytest.mark.filterwarnings("ignore")
def test_experts_of_qwen3_vl_may_be_stored_either_way(tmp_path: Path) -> None:
    """The hub's files hold (input, output); transformers 5 turns them, and saves them turned."""
    text = MOE | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
    config = transformers.Qwen3VLMoeConfig(text_config=text, vision_config=QWEN_VISION)
    model = transformers.Qwen3VLMoeForConditionalGeneration(config)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    saved_now = load_file(file)
    stacks = {n for n, t in saved_now.items() if ".experts." in n and t.ndim == 3}
    hub = {n: t.mT.contiguous() if n in stacks else t for n, t in saved_now.items()}
    save_file(hub, file, {"format": "pt"})
    loaded = type(model).from_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert len(stacks) == 4
    for name in stacks:
        live = loaded.get_parameter(name).detach()
        memory, disk = (layout(name, tuple(t.shape), written) for t in (live, hub[name]))
        assert (memory.input_first, disk.input_first) == (False, True)
        for one, other in zip(memory.parts, disk.parts, strict=True):
            assert (one.label, one.outputs) == (other.label, other.outputs)
            torch.testing.assert_close(hub[name][other.plane].T, live[one.plane])


# Data -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "model_type"),
    [
        ("embed_out.weight", "lm_head.weight", "gpt_neox"),
        ("a.LayerNorm.gamma", "a.LayerNorm.weight", "bert"),
        ("c.conv.weight_g", "c.conv.parametrizations.weight.original0", "wav2vec2"),
        (
            "model.layers.3.block_sparse_moe.experts.17.w1.weight",
            "model.layers.3.mlp.experts.17.gate_proj.weight",
            "mixtral",
        ),
        (
            "language_model.model.layers.3.mlp.up_proj.weight",
            "model.language_model.layers.3.mlp.up_proj.weight",
            "mistral3",
        ),
        (
            "vision_model.encoder.layers.0.mlp.fc1.weight",
            "encoder.layers.0.mlp.fc1.weight",
            "siglip_vision_model",
        ),
        (
            "segformer.encoder.block.1.0.mlp.dense1.weight",
            "segformer.stages.1.blocks.0.mlp.fc1.weight",
            "segformer",
        ),
        (
            "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight",
            "model.vision_tower.encoder.layers.0.mlp.fc1.weight",
            "llava",
        ),
        (
            "layers.3.attn.indexer.wq_b.weight",
            "layers.3.self_attn.compressor.indexer.q_b_proj.weight",
            "deepseek_v4",
        ),
        (
            "model.encoder.layers.2.self_attn.out_proj.weight",
            "model.encoder.layers.2.self_attn.o_proj.weight",
            "detr",
        ),
    ],
)
def test_a_spelling_leads_to_the_other_and_back(one: str, other: str, model_type: str) -> None:
    assert other in spellings(one, model_type)
    assert one in spellings(other, model_type)


def test_what_a_name_has_already_is_not_given_to_it_again() -> None:
    assert spellings("model.layer.3.x.weight", "dinov3_vit") == ("layer.3.x.weight",)
    assert spellings("timm_model.conv1.weight", "timm_wrapper") == ("conv1.weight",)


@pytest.mark.parametrize("model_type", [*TABLE, None, "something_new"])
def test_spellings_keep_the_indices_and_are_never_the_name_itself(model_type: str | None) -> None:
    for name in (
        "model.layers.12.mlp.experts.345.w1.weight",
        "vit.encoder.layer.7.attention.attention.query.weight",
        "x.#.weight",
        "weight",
        "",
    ):
        others = spellings(name, model_type)
        assert name not in others
        assert len(set(others)) == len(others) < 40
        digits = [part for part in name.split(".") if part.isdigit()]
        assert all([p for p in o.split(".") if p.isdigit()] == digits for o in others)


def test_every_pair_keeps_the_number_of_indices() -> None:
    sections = {section for row in TABLE.values() for section in row} | {*EVERYWHERE, *UNKNOWN}
    lines = [line.split() for section in sections for line in section.strip().splitlines()]
    assert [line for line in lines if len(line) != 2] == []
    assert [line for line in lines if line[0].count("#") != line[1].count("#")] == []
