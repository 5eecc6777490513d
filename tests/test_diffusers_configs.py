"""What the header of a diffusers LoRA says, component by component, beside PEFT's own merge."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from gathered import check
from peft import LoraConfig, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from wdecomp.adapter import Adapter
from wdecomp.adapter.diffusers import is_diffusers, read_diffusers
from wdecomp.checkpoint import read_header
from wdecomp.errors import AdapterError

FILE = "pytorch_lora_weights.safetensors"


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


def _clip(width: int) -> CLIPTextModel:
    torch.manual_seed(width)
    return CLIPTextModel(
        CLIPTextConfig(
            hidden_size=width, intermediate_size=3 * width, num_hidden_layers=1,
            num_attention_heads=2, vocab_size=50, max_position_embeddings=8,
        )
    )  # fmt: skip


def _trained(model: Any, **config: Any) -> dict[str, Any]:
    """Adds an adapter away from where it starts; its config as PEFT writes it."""
    inject_adapter_in_model(LoraConfig(**config), model)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.2 * torch.randn_like(parameter)
        if "magnitude" in name:
            parameter.data *= 1 + 0.2 * torch.rand_like(parameter)
    raw = model.peft_config["default"].to_dict()
    return {key: list(v) if isinstance(v, set) else v for key, v in raw.items()}


def _merged(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights of the adapted modules before and after PEFT's merge."""
    layers = {n: m for n, m in model.named_modules() if hasattr(m, "get_base_layer")}
    before = {n: m.get_base_layer().weight.detach().clone() for n, m in layers.items()}
    for layer in layers.values():
        layer.merge()  # type: ignore[operator]
    after = {n: m.get_base_layer().weight.detach().clone() for n, m in layers.items()}
    return before, after


def _read(file: Path) -> Adapter:
    header = read_header(file)
    assert is_diffusers(header.tensors, header.metadata)
    return read_diffusers(header.tensors, header.metadata, "lora")


def _check(
    adapter: Adapter, model: nn.Module, prefix: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = _merged(model)
    save_file(before, folder / f"{prefix}base.safetensors")
    base = read_header(folder / f"{prefix}base.safetensors").tensors
    assert before
    for module, want in after.items():
        update = adapter.updates[f"{prefix}{module}.weight"]
        check(update, base[module], want.flatten(1).numpy(), monkeypatch)


@pytest.mark.parametrize("dora", [False, True])
def test_the_file_of_a_single_component_has_no_prefix(
    dora: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet = _unet()
    _trained(unet, r=3, lora_alpha=7, use_dora=dora, target_modules=["to_q", "to_out.0", "conv1"],
             alpha_pattern={"attn2.to_q": 2}, rank_pattern={"conv1": 2})  # fmt: skip
    unet.save_lora_adapter(tmp_path / "lora")
    adapter = _read(tmp_path / "lora" / FILE)
    assert (adapter.notes, adapter.left_out) == ((), ())
    assert adapter.method == ("dora" if dora else "lora")
    _check(adapter, unet, "", tmp_path, monkeypatch)


def test_two_text_encoders_have_a_config_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = ["q_proj", "out_proj", "fc2"]
    models = {"text_encoder": _clip(16), "text_encoder_2": _clip(24), "unet": _unet()}
    configs = {
        "text_encoder": _trained(models["text_encoder"], r=2, lora_alpha=5, target_modules=targets),
        "text_encoder_2": _trained(
            models["text_encoder_2"],
            r=4,
            lora_alpha=6,
            use_rslora=True,
            use_dora=True,
            target_modules=targets,
        ),
        "unet": _trained(models["unet"], r=3, lora_alpha=7, target_modules=["to_q", "to_v"]),
    }
    StableDiffusionXLPipeline.save_lora_weights(
        str(tmp_path),
        **{f"{name}_lora_layers": get_peft_model_state_dict(m) for name, m in models.items()},
        **{f"{name}_lora_adapter_metadata": config for name, config in configs.items()},
    )
    adapter = _read(tmp_path / FILE)
    assert adapter.notes == ()
    for name, model in models.items():
        _check(adapter, model, f"{name}.", tmp_path, monkeypatch)


A, B, M = torch.randn(3, 5), torch.randn(4, 3), torch.rand(4)
NEW = {"unet.to_q.lora_A.weight": A, "unet.to_q.lora_B.weight": B}


def _saved(folder: Path, tensors: dict[str, Tensor], config: Any = None) -> Path:
    metadata = None if config is None else {"lora_adapter_metadata": json.dumps(config)}
    save_file(tensors, folder / FILE, metadata)
    return folder / FILE


def test_a_component_of_which_the_header_says_nothing_is_noted(tmp_path: Path) -> None:
    other = {key.replace("unet", "text_encoder"): tensor for key, tensor in NEW.items()}
    config = {"unet.r": 3, "unet.lora_alpha": 6, "unet.use_dora": False}
    adapter = _read(_saved(tmp_path, NEW | {k: t.clone() for k, t in other.items()}, config))
    assert "alpha = r is taken" in adapter.notes[0]
    scalings = {name: each.update.scaling for name, each in adapter.updates.items()}
    assert scalings == {"unet.to_q.weight": 2.0, "text_encoder.to_q.weight": 1.0}


@pytest.mark.parametrize(
    "spelling",
    [
        ("unet.mid.attn1.processor.to_q_lora.{}.weight", "unet.mid.attn1.to_q"),
        ("unet.mid.attn1.processor.to_out_lora.{}.weight", "unet.mid.attn1.to_out.0"),
        ("mid.attn1.processor.to_v_lora.{}.weight", "mid.attn1.to_v"),
        ("unet.mid.attn1.processor.add_k_proj_lora.{}.weight", "unet.mid.attn1.add_k_proj"),
        ("unet.mid.attn1.to_k.lora.{}.weight", "unet.mid.attn1.to_k"),
        ("transformer.blocks.0.attn.to_k.lora.{}.weight", "transformer.blocks.0.attn.to_k"),
        ("text_encoder.l.0.self_attn.to_q_lora.{}.weight", "text_encoder.l.0.self_attn.q_proj"),
        ("text_encoder.l.0.self_attn.to_out_lora.{}.weight", "text_encoder.l.0.self_attn.out_proj"),
        ("text_encoder_2.l.0.self_attn.k_proj.lora_linear_layer.{}.weight",
         "text_encoder_2.l.0.self_attn.k_proj"),
        ("text_encoder_2.text_projection.lora.{}.weight", "text_encoder_2.text_projection"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("alpha", [None, 6.0])
def test_every_older_spelling_is_of_one_module(
    spelling: tuple[str, str], alpha: float | None, tmp_path: Path
) -> None:
    key, module = spelling
    tensors = {key.format("down"): A, key.format("up"): B}
    if alpha:
        ends = ".lora.{}.weight", ".lora_linear_layer.{}.weight", ".{}.weight"
        stem = next(key.removesuffix(end) for end in ends if key.endswith(end))
        tensors[f"{stem}.alpha"] = torch.tensor(alpha)
    adapter = _read(_saved(tmp_path, tensors))
    assert set(adapter.updates) == {f"{module}.weight"}
    assert adapter.updates[f"{module}.weight"].update.scaling == (2.0 if alpha else 1.0)
    assert len(adapter.notes) == (0 if alpha else 1)
    assert adapter.left_out == ()


def test_the_magnitude_of_an_older_spelling_is_of_the_same_module(tmp_path: Path) -> None:
    front = "unet.mid.attn1.processor.to_out"
    tensors = {f"{front}_lora.down.weight": A, f"{front}_lora.up.weight": B}
    adapter = _read(_saved(tmp_path, tensors | {f"{front}.lora_magnitude_vector": M}))
    update = adapter.updates["unet.mid.attn1.to_out.0.weight"]
    assert update.magnitude is not None
    np.testing.assert_equal(update.magnitude.values.shape, (4,))


BAD: dict[str, tuple[dict[str, Tensor], Any, str]] = {
    "no map": (NEW, ["unet"], "holds a list, expected a map"),
    "no magnitude": (NEW, {"unet.use_dora": True, "unet.r": 3}, "use_dora is True, unet.to_q has"),
    "magnitude": (
        NEW | {"unet.to_q.lora_magnitude_vector": M},
        {"unet.use_dora": False, "unet.r": 3},
        "use_dora is False, unet.to_q has a",
    ),
    "short magnitude": (
        NEW | {"unet.to_q.lora_magnitude_vector": M[:3].clone()}, None, "each of 4 outputs",
    ),
    "changed base": (NEW, {"unet.r": 3, "unet.init_lora_weights": "pissa"}, "on a changed base"),
    "rank": (NEW, {"unet.r": 2}, "gives other ranks than the tensors have"),
    "no number": (NEW, {"unet.r": 3, "unet.lora_alpha": "x"}, "lora_alpha is 'x'"),
    "half": ({"unet.to_q.lora_A.weight": A}, None, "unet.to_q.B is missing"),
    "huge alpha": (NEW | {"unet.to_q.alpha": torch.tensor(1e30)}, None, "alpha is damaged"),
    "no shards": (NEW | {"unet.to_q.lora_B.weight": torch.ones(0, 3)}, None, "gathering"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_header_that_contradicts_the_tensors_is_named(case: str, tmp_path: Path) -> None:
    tensors, config, message = BAD[case]
    with pytest.raises(AdapterError, match=message):
        _read(_saved(tmp_path, tensors, config))
