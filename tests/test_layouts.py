"""Layouts against what the models really do with the rows of their fused weights.

No model is asked how it splits. Queries, keys and values are told apart by what moves the output at
the last token, a GLU's halves by which of them is linear.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import diffusers.models.activations
import diffusers.models.attention_processor
import pytest
import torch
import transformers
from rows import said
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from wdecomp.layouts import Layout, layout

pytestmark = pytest.mark.skipif(
    int(transformers.__version__.split(".")[0]) < 5, reason="names and stacks of transformers 5"
)

WIDTH = 24
ZERO = 1e-6  # of the largest gradient: a softmax in float32 leaves 1e-7, the least real one is 1e-4
SIZES: dict[str, Any] = {"hidden_size": WIDTH, "intermediate_size": 20, "num_hidden_layers": 1}
SIZES |= {"num_attention_heads": 4, "vocab_size": 11, "pad_token_id": 0}
GROUPED = SIZES | {"num_key_value_heads": 2}
GPT2 = {"n_embd": WIDTH, "n_layer": 1, "n_head": 4, "vocab_size": 11, "n_positions": 7}
ROPE = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.67}
FALCON = SIZES | {"alibi": False, "bias": False}
DBRX: dict[str, Any] = {"d_model": WIDTH, "n_heads": 4, "n_layers": 1, "vocab_size": 11}
DBRX |= {"attn_config": {"kv_n_heads": 2, "clip_qkv": 1e9, "rope_theta": 1e4}}
DBRX |= {"ffn_config": {"ffn_hidden_size": 5, "moe_num_experts": 3, "moe_top_k": 2}}

# model class, its config, the fused module
FUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "gpt2": ("GPT2Model", GPT2, "h.0.attn.c_attn"),
    "openai-gpt": ("OpenAIGPTModel", GPT2, "h.0.attn.c_attn"),
    "imagegpt": ("ImageGPTModel", GPT2, "h.0.attn.c_attn"),
    "bigcode-mqa": ("GPTBigCodeModel", GPT2 | {"multi_query": True}, "h.0.attn.c_attn"),
    "bigcode-mha": ("GPTBigCodeModel", GPT2 | {"multi_query": False}, "h.0.attn.c_attn"),
    "phi3": ("Phi3Model", GROUPED, "layers.0.self_attn.qkv_proj"),
    "phi3-mha": ("Phi3Model", SIZES, "layers.0.self_attn.qkv_proj"),
    "gpt_neox": ("GPTNeoXModel", SIZES, "layers.0.attention.query_key_value"),
    "neox-ja": ("GPTNeoXJapaneseModel", SIZES, "layers.0.attention.query_key_value"),
    "persimmon": (
        "PersimmonModel",
        SIZES | {"rope_parameters": ROPE},
        "layers.0.self_attn.query_key_value",
    ),
    "bloom": (
        "BloomModel",
        {"hidden_size": WIDTH, "n_head": 4, "n_layer": 1, "vocab_size": 11},
        "h.0.self_attention.query_key_value",
    ),
    "falcon-rw": (
        "FalconModel",
        FALCON | {"multi_query": False},
        "h.0.self_attention.query_key_value",
    ),
    "falcon-7b": (
        "FalconModel",
        FALCON | {"multi_query": True},
        "h.0.self_attention.query_key_value",
    ),
    "falcon-40b": (
        "FalconModel",
        FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2},
        "h.0.self_attention.query_key_value",
    ),
    "mpt": (
        "MptModel",
        {"d_model": WIDTH, "n_heads": 4, "n_layers": 1, "vocab_size": 11, "max_seq_len": 8},
        "blocks.0.attn.Wqkv",
    ),
    "dbrx": ("DbrxModel", DBRX, "blocks.0.norm_attn_norm.attn.Wqkv"),
    "codegen": (
        "CodeGenModel",
        GPT2 | {"rotary_dim": 4, "n_head": 4, "n_ctx": 7},
        "h.0.attn.qkv_proj",
    ),
    "deberta": ("DebertaModel", SIZES, "encoder.layer.0.attention.self.in_proj"),
    "modernbert": ("ModernBertModel", SIZES, "layers.0.attn.Wqkv"),
}
ORDERED = {  # as a naive reading, three equal parts, would have it
    *("gpt2", "openai-gpt", "imagegpt", "phi3-mha", "mpt", "modernbert"),
}


def built(class_name: str, config: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    model_class = getattr(transformers, class_name)
    own = model_class.config_class(**config)
    own._attn_implementation = "eager"
    model = model_class(own).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def stored_config(model: Any) -> dict[str, Any]:
    """What config.json would hold."""
    config: dict[str, Any] = json.loads(model.config.to_json_string())
    return config


@contextmanager
def fed(module: nn.Module, inputs: Tensor) -> Iterator[None]:
    """The module sees these inputs, whatever its model gives it."""
    hook = module.register_forward_pre_hook(lambda *_: (inputs,))
    try:
        yield
    finally:
        hook.remove()


def last_token(model: Any, module: nn.Module, inputs: Tensor) -> Tensor:
    ids = torch.arange(1, 1 + inputs.shape[1])[None]
    with fed(module, inputs):
        hidden: Tensor = model(input_ids=ids, use_cache=False).last_hidden_state
    return hidden[0, -1]


def moving(output: Tensor, weight: Tensor) -> Tensor:
    """The size of the gradient of a direction of the output, per stored weight."""
    direction = torch.linspace(1, 2, output.numel(), dtype=output.dtype)
    (gradient,) = torch.autograd.grad(output.reshape(-1) @ direction.sin(), weight)
    return gradient.abs()


def kinds(run: Callable[[Tensor], Tensor], weight: Tensor, input_first: bool) -> str:
    """q, k or v for every output of a fused weight, from the model's own behaviour.

    With one and the same input at every token, all values are equal and no score matters: only v
    moves the output. With inputs of the last token in other features than those of the rest, the
    last token's query alone does not see the features of the rest.
    """

    def rows(x: Tensor, features: slice) -> Tensor:
        gradient = moving(run(x), weight)
        gradient = gradient.T if input_first else gradient
        return gradient[:, features].amax(1) > ZERO * gradient.max()

    x = torch.randn(1, 5, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values = rows(x[:, :1].expand_as(x).contiguous(), slice(None))
    half = WIDTH // 2
    x[:, :-1, half:] = 0
    x[:, -1, :half] = 0
    elsewhere = rows(x, slice(half))
    assert rows(x, slice(None)).all()  # every row takes part
    told = zip(values.tolist(), elsewhere.tolist(), strict=True)
    return "".join("v" if value else "k" if seen else "q" for value, seen in told)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FUSED)
def test_queries_keys_and_values_are_the_rows_that_the_model_uses_as_such(family: str) -> None:
    class_name, config, name = FUSED[family]
    model = built(class_name, config)
    module = model.get_submodule(name)
    input_first = isinstance(module, Conv1D)
    weight = module.weight
    word = kinds(lambda x: last_token(model, module, x), weight, input_first)
    prefix = f"{model.base_model_prefix}." if model.base_model_prefix else ""
    found = layout(f"{prefix}{name}.weight", tuple(weight.shape), stored_config(model))
    assert said(found, len(word)) == word
    assert [part.module for part in found.parts] == [part.label for part in found.parts]
    third = len(word) // 3
    naive = "q" * third + "k" * third + "v" * third
    assert (word == naive) == (family in ORDERED)


def test_in_proj_of_a_multihead_attention() -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True).double()
    weight = attention.in_proj_weight
    word = kinds(lambda x: attention(x, x, x)[0][0, -1], weight, input_first=False)
    for name in ("visual.transformer.resblocks.3.attn", "transformer.encoder.layers.0.self_attn"):
        assert said(layout(f"{name}.in_proj_weight", tuple(weight.shape), {}), 72) == word


def test_projections_fused_by_diffusers() -> None:
    torch.manual_seed(0)
    attention = diffusers.models.attention_processor.Attention(WIDTH, heads=4, dim_head=6).double()
    attention.fuse_projections()
    processor = diffusers.models.attention_processor.FusedAttnProcessor2_0()
    attention.set_processor(processor)
    weight = attention.to_qkv.weight
    word = kinds(lambda x: attention(x)[0, -1], weight, input_first=False)
    assert said(layout("blocks.0.attn1.to_qkv.weight", tuple(weight.shape), {}), 72) == word


def test_the_vision_tower_of_qwen() -> None:
    vision = {"depth": 1, "embed_dim": WIDTH, "num_heads": 4, "hidden_size": 16, "patch_size": 2}
    text = GROUPED | {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 1]}}
    config = transformers.Qwen2VLConfig(text_config=text, vision_config=vision)
    config.vision_config._attn_implementation = "eager"
    torch.manual_seed(0)
    tower = transformers.models.qwen2_vl.modeling_qwen2_vl.VisionAttention(config.vision_config)
    tower = tower.double()
    rotary = torch.ones(5, 6, dtype=torch.float64), torch.zeros(5, 6, dtype=torch.float64)

    def run(x: Tensor) -> Tensor:
        ends = torch.tensor([0, 5], dtype=torch.int32)
        output: Tensor = tower(x[0], cu_seqlens=ends, position_embeddings=rotary)
        return output[-1]

    shape = tuple(tower.qkv.weight.shape)
    word = kinds(run, tower.qkv.weight, input_first=False)
    for name in ("visual.blocks.0.attn.qkv.weight", "model.visual.blocks.0.attn.qkv.weight"):
        assert said(layout(name, shape, config.to_dict()), 72) == word


# GLUs -----------------------------------------------------------------------------------------


def activated(run: Callable[[], Tensor], weight: Tensor, input_first: bool = False) -> str:
    """Which outputs go through an activation: g. Others, u, are linear in their row."""
    rows = weight.data.T if input_first else weight.data
    word = ""
    for row in rows:
        kept = row.clone()
        at = [run() for factor in (0.0, 1.0, 2.0) if row.copy_(kept * factor) is not None]
        row.copy_(kept)
        bend = (at[2] - 2 * at[1] + at[0]).abs().max()
        assert (at[1] - at[0]).abs().max() > 0
        word += "u" if bend < 1e-12 else "g"
    return word


def halves_said(found: Layout, outputs: int) -> str:
    return said(found, outputs).replace("gate", "g").replace("up", "u")


@torch.no_grad()
@pytest.mark.parametrize(
    ("path", "class_name", "config_class", "config", "module", "name"),
    [
        ("phi3", "Phi3MLP", "Phi3Config", SIZES, "gate_up_proj", "layers.0.mlp"),
        ("glm", "GlmMLP", "GlmConfig", SIZES, "gate_up_proj", "layers.0.mlp"),
        ("dia", "DiaMLP", "DiaDecoderConfig", SIZES, "gate_up_proj", "decoder.layers.0.mlp"),
        ("modernbert", "ModernBertMLP", "ModernBertConfig", SIZES, "Wi", "layers.0.mlp"),
        (
            "granitemoeshared",
            "GraniteMoeSharedMLP",
            "GraniteMoeSharedConfig",
            SIZES | {"shared_intermediate_size": 10},
            "input_linear",
            "layers.0.shared_mlp",
        ),
        (
            "phi4_multimodal",
            "Phi4MultimodalAudioMLP",
            "Phi4MultimodalAudioConfig",
            {"hidden_size": WIDTH, "intermediate_size": 10},
            "gate_up_proj",
            "model.embed_tokens_extend.audio_embed.encoder.encoders.0.feed_forward_in",
        ),
    ],
)
def test_the_gate_is_the_half_that_is_activated(
    path: str, class_name: str, config_class: str, config: dict[str, Any], module: str, name: str
) -> None:
    torch.manual_seed(0)
    source = getattr(transformers.models, path)
    own = getattr(transformers, config_class)(**config)
    mlp = getattr(getattr(source, f"modeling_{path}"), class_name)(own).double().eval()
    fused = mlp.get_submodule(module).weight
    x = torch.randn(7, WIDTH, dtype=torch.float64)
    word = activated(lambda: mlp(x), fused)
    found = layout(f"model.{name}.{module}.weight", tuple(fused.shape), own.to_dict())
    assert halves_said(found, len(word)) == word


@torch.no_grad()
def test_a_geglu_of_diffusers_has_its_gate_behind_its_value() -> None:
    geglu = diffusers.models.activations.GEGLU(6, 24).double()
    x = torch.randn(7, 6, dtype=torch.float64)
    word = activated(lambda: geglu(x), geglu.proj.weight)
    name = "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj.weight"
    assert halves_said(layout(name, (48, 6), {}), 48) == word == "u" * 24 + "g" * 24
    assert layout(name, (24, 6), {}) == Layout()  # GELU, four times the width
    assert layout(name, (48, 6), {"activation_fn": "gelu"}).parts == ()
    assert layout(name, (30, 6), {"activation_fn": "swiglu"}).parts
    assert "activation_fn" in layout(name, (30, 6), {}).note
