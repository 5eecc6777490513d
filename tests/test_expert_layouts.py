"""Stacks of experts: their parts, put into the formula, give what the model gives."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from wdecomp.layouts import Layout, layout

pytestmark = pytest.mark.skipif(
    int(transformers.__version__.split(".")[0]) < 5, reason="names and stacks of transformers 5"
)

WIDTH = 24
SIZES: dict[str, Any] = {"hidden_size": WIDTH, "intermediate_size": 20, "num_hidden_layers": 1}
SIZES |= {"num_attention_heads": 4, "vocab_size": 11, "pad_token_id": 0}
DBRX: dict[str, Any] = {"d_model": WIDTH, "n_heads": 4, "n_layers": 1, "vocab_size": 11}
DBRX |= {"attn_config": {"kv_n_heads": 2, "clip_qkv": 1e9, "rope_theta": 1e4}}
DBRX |= {"ffn_config": {"ffn_hidden_size": 5, "moe_num_experts": 3, "moe_top_k": 2}}


def built(class_name: str, config: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    model_class = getattr(transformers, class_name)
    model = model_class(model_class.config_class(**config)).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def stored(config: Any) -> dict[str, Any]:
    """What config.json would hold."""
    found: dict[str, Any] = json.loads(config.to_json_string())
    return found


MOE = SIZES | {"num_key_value_heads": 2, "num_local_experts": 3, "num_experts": 3}
MOE |= {"moe_intermediate_size": 20, "num_experts_per_tok": 2, "text_config": SIZES}


def matrices(tensor: Tensor, found: Layout) -> dict[str, Tensor]:
    """Every part as a matrix, (output, input), by its label."""
    seen = tensor.reshape(found.view) if found.view else tensor
    parts = {}
    for part in found.parts:
        plane = seen if part.plane is None else seen[part.plane]
        matrix = plane.T if found.input_first else plane
        kept = [i for piece in part.outputs or (range(len(matrix)),) for i in piece]
        parts[part.label] = matrix[kept]
    return parts


def glu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return (nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T


def gpt_oss_glu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    gated = (x @ gate.T) * torch.sigmoid(1.702 * (x @ gate.T))
    return ((x @ up.T + 1) * gated) @ down.T


EXPERTS = [
    ("mixtral", "MixtralExperts", "MixtralConfig", glu),
    ("qwen2_moe", "Qwen2MoeExperts", "Qwen2MoeConfig", glu),
    ("deepseek_v3", "DeepseekV3Experts", "DeepseekV3Config", glu),
    ("gpt_oss", "GptOssExperts", "GptOssConfig", gpt_oss_glu),
    ("granitemoe", "GraniteMoeExperts", "GraniteMoeConfig", glu),
    ("aria", "AriaExperts", "AriaTextConfig", glu),
]


# The width is told by its size, not told as 2 · 12 = 24, not told as the matrix is square. Qwen3-VL
# runs as it does not store, and is taken as stored where the width does not tell.
EXPERTS_AND_SIZES = [(*row, i) for row in EXPERTS for i in (20, 12, WIDTH)]
EXPERTS_AND_SIZES += [("qwen3_vl_moe", "Qwen3VLMoeTextExperts", "Qwen3VLMoeTextConfig", glu, 20)]


@torch.no_grad()
@pytest.mark.parametrize(
    ("path", "class_name", "config_class", "formula", "intermediate"), EXPERTS_AND_SIZES
)
def test_experts_are_their_formula(
    path: str, class_name: str, config_class: str, formula: Callable[..., Tensor], intermediate: int
) -> None:
    torch.manual_seed(0)
    sizes = MOE | {"intermediate_size": intermediate, "moe_intermediate_size": intermediate}
    sizes |= {"moe_num_experts": 3, "n_routed_experts": 3}
    sizes.pop("text_config")
    own = getattr(transformers, config_class)(**sizes)
    module = getattr(getattr(transformers.models, path), f"modeling_{path}")
    experts = getattr(module, class_name)(own).double()
    for parameter in experts.parameters():
        nn.init.normal_(parameter, std=0.2 if parameter.ndim == 3 else 0.0)
    front = "model.layers.0.mlp.experts"
    up = layout(f"{front}.gate_up_proj", tuple(experts.gate_up_proj.shape), stored(own))
    down = layout(f"{front}.down_proj", tuple(experts.down_proj.shape), stored(own))
    halves = matrices(experts.gate_up_proj, up)
    downs = matrices(experts.down_proj, down)
    x = torch.randn(5, WIDTH, dtype=torch.float64)
    for e in range(3):
        chosen = torch.full((5, 1), e)
        weights = torch.ones(5, 1, dtype=torch.float64)
        expected = formula(x, halves[f"{e}.gate"], halves[f"{e}.up"], downs[str(e)])
        torch.testing.assert_close(expected, experts(x, chosen, weights))
    assert {p.label: p.module for p in up.parts if p.plane == 2} == {
        "2.gate": "gate",
        "2.up": "up",
    }


@torch.no_grad()
def test_experts_of_llama_4() -> None:
    own = transformers.Llama4TextConfig(**MOE | {"intermediate_size": WIDTH})
    own_class = transformers.models.llama4.modeling_llama4.Llama4TextExperts
    experts = own_class(own).double()
    for parameter in experts.parameters():
        nn.init.normal_(parameter, std=0.2)
    config = {"model_type": "llama4", "text_config": stored(own)}
    front = "language_model.model.layers.0.feed_forward.experts"
    up = layout(f"{front}.gate_up_proj", tuple(experts.gate_up_proj.shape), config)
    down = layout(f"{front}.down_proj", tuple(experts.down_proj.shape), config)
    halves, downs = matrices(experts.gate_up_proj, up), matrices(experts.down_proj, down)
    x = torch.randn(3, 5, WIDTH, dtype=torch.float64)
    expected = [glu(x[e], halves[f"{e}.gate"], halves[f"{e}.up"], downs[str(e)]) for e in range(3)]
    torch.testing.assert_close(torch.cat(expected), experts(x.reshape(15, WIDTH)))


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
def test_experts_of_dbrx_stand_below_one_another() -> None:
    model = built("DbrxModel", DBRX)
    experts = model.blocks[0].ffn.experts
    front = "transformer.blocks.0.ffn.experts.mlp"
    w = {}
    for name in ("w1", "v1", "w2"):
        tensor = getattr(experts.mlp, name)
        found = layout(f"{front}.{name}", tuple(tensor.shape), stored(model.config))
        w[name] = matrices(tensor, found)
        assert found.parts[1].split_names[0] == (
            "transformer.blocks.0.ffn.experts.1."
            + {"w1": "gate_proj", "v1": "up_proj", "w2": "down_proj"}[name]
            + ".weight"
        )
    x = torch.randn(1, 5, WIDTH, dtype=torch.float64)
    for e in map(str, range(3)):
        chosen = torch.full((5, 1), int(e))
        expected = glu(x, w["w1"][e], w["v1"][e], w["w2"][e])
        weights = torch.ones(5, 1, dtype=torch.float64)
        torch.testing.assert_close(expected, experts(x, chosen, weights))


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
def test_experts_of_jetmoe_in_its_attention_and_its_mlp() -> None:
    config = MOE | {"kv_channels": 6, "num_key_value_heads": 2}
    model = built("JetMoeModel", {k: v for k, v in config.items() if k != "text_config"})
    x = torch.randn(4, WIDTH, dtype=torch.float64)
    for name, labels in {
        "layers.0.mlp.input_linear": ("1.gate", "1.up"),
        "layers.0.mlp.output_linear": ("1",),
        "layers.0.self_attention.experts.input_linear": ("1",),
        "layers.0.self_attention.experts.output_linear": ("1",),
    }.items():
        module = model.get_submodule(name)
        shape = tuple(module.weight.shape)
        found = layout(f"model.{name}.weight", shape, stored(model.config))
        parts = matrices(module.weight, found)
        of_one = torch.cat([parts[label] for label in labels])
        x = torch.randn(4, shape[2], dtype=torch.float64)
        torch.testing.assert_close(x @ of_one.T, module(x, [0, 4, 0]))
