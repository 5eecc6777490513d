"""Other ways in which one adapter is saved, and the formulas that no library merges."""

import json
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from builders import write_full
from numpy.testing import assert_allclose
from peft import LoraConfig
from peft.tuners.boft.layer import BOFTLayer
from peft_cases import again, llama, merge, move, save_model, write
from peft_oracle import base_of, check_merge, pairings, tuned_weight
from safetensors.torch import load_file, save_file

from wdecomp.adapter.peft import read_peft
from wdecomp.checkpoint import open_checkpoint, read_whole
from wdecomp.checkpoint.header import read_header
from wdecomp.pairing import pair

Q = "model.layers.0.self_attn.q_proj"
UP = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize("rslora", [False, True], ids=["plain", "rslora"])
def test_a_converted_adapter_is_one_of_its_base(init: str, rslora: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_model(llama(), tmp_path / "base")
    config = LoraConfig(
        r=4, lora_alpha=9, target_modules=["q_proj", "up_proj"], init_lora_weights=init
    )
    model = peft.get_peft_model(again(tmp_path, llama), config)
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "initial")
    model.peft_config["default"].init_lora_weights = init
    move(model)
    model.save_pretrained(
        tmp_path / "adapter", path_initial_model_for_weight_conversion=str(tmp_path / "initial")
    )
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (saved["r"], saved["init_lora_weights"]) == (8, True)
    merge(tmp_path, llama)
    check_merge(tmp_path)


def test_a_named_adapter_in_its_own_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_model(llama(), tmp_path / "base")
    config = LoraConfig(r=4, lora_alpha=9, target_modules=["q_proj", "up_proj"], use_dora=True)
    model = peft.get_peft_model(again(tmp_path, llama), config, adapter_name="v_proj")
    move(model)
    model.save_pretrained(tmp_path / "adapter")
    merge(tmp_path, llama, "adapter/v_proj")
    check_merge(tmp_path, "adapter/v_proj")


def test_the_state_dict_of_a_whole_model_is_the_same_adapter(tmp_path: Path) -> None:
    config = LoraConfig(
        r=4,
        lora_alpha=9,
        target_modules=["q_proj", "up_proj", "embed_tokens"],
        use_dora=True,
        bias="all",
        modules_to_save=["lm_head"],
    )
    model = write(tmp_path, llama, config)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(state, tmp_path / "state.safetensors")
    fields = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    alone = open_checkpoint(tmp_path / "adapter")
    small = read_peft(alone.tensors, fields, "small")
    whole = read_peft(read_header(tmp_path / "state.safetensors").tensors, fields, "whole")
    assert set(whole.updates) == set(small.updates)
    for name, update in small.updates.items():
        mine = [read_whole(tensor) for tensor in whole.updates[name].tensors]
        for one, other in zip(mine, update.tensors, strict=True):
            assert_allclose(one, read_whole(other), rtol=0)
    assert set(whole.replaced) >= set(small.replaced)
    trained = {name: read_whole(tensor) for name, tensor in small.replaced.items()}
    for name, tensor in whole.replaced.items():  # a whole model holds the untouched ones, too
        want = trained.get(name, base_of(tmp_path, name).squeeze())
        got = read_whole(tensor)
        assert_allclose(got, want if want.shape == got.shape else want.T, rtol=1e-7)


def _vera(folder: Path, magnitude: torch.Tensor, save_projection: bool) -> None:
    """VeRA as PEFT saves it, and a magnitude beside it as wdecomp's own trainer writes it."""
    torch.manual_seed(0)
    save_model(llama(), folder / "base")
    config = peft.VeraConfig(target_modules=["q_proj", "up_proj"], r=5,
                             save_projection=save_projection)  # fmt: skip
    model = peft.get_peft_model(again(folder, llama), config)
    move(model)
    model.save_pretrained(folder / "adapter")
    merge(folder, llama)
    file = folder / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    for key in [key for key in tensors if key.endswith("vera_lambda_b")]:
        outputs = tensors[key].shape[0]
        named = key.replace("vera_lambda_b", "vera_magnitude_vector")
        tensors[named] = magnitude[:outputs].clone()
    save_file(tensors, file)


@pytest.mark.parametrize("save_projection", [True, False], ids=["saved", "drawn again"])
def test_dvora_is_the_direction_of_vera_with_a_magnitude(
    save_projection: bool, tmp_path: Path
) -> None:
    magnitude = torch.rand(56) + 0.1
    _vera(tmp_path, magnitude, save_projection)
    found, vera = pairings(tmp_path)
    assert found.method == "dvora"
    for module in (Q, UP):
        v = tuned_weight(vera.matrices[f"{module}.weight"])  # V = W0 + diag(b) B diag(d) A
        m = magnitude[: len(v)].double().numpy()[:, None]
        want = m * v / np.linalg.norm(v, axis=1, keepdims=True)
        for block_bytes in (100, 300, 1 << 20):
            got = tuned_weight(found.matrices[f"{module}.weight"], block_bytes)
            assert_allclose(got, want, rtol=1e-6, atol=1e-7)
        assert np.abs(want - v).max() > 0.01


@pytest.mark.parametrize(("factors", "size"), [(2, 4), (3, 4), (2, 2), (4, 2), (3, 8)])
def test_boft_of_several_factors_is_the_product_of_butterflies(
    factors: int, size: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    inputs, outputs = 64, 12
    base = torch.randn(outputs, inputs)
    blocks = 0.3 * torch.randn(factors, inputs // size, size, size)
    scale = 1 + 0.2 * torch.randn(outputs, 1)
    write_full(tmp_path / "base", {"fc.weight": base})
    (tmp_path / "adapter").mkdir()
    keys = {"base_model.model.fc.boft_R": blocks, "base_model.model.fc.boft_s": scale}
    save_file(keys, tmp_path / "adapter" / "adapter_model.safetensors")
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"peft_type": "BOFT"}')
    # As in `BOFTLayer.get_delta_weight`, whose CPU half stops at one factor.
    layer = BOFTLayer.__new__(BOFTLayer)
    rotation = torch.eye(inputs, dtype=torch.float64)
    for i in range(factors):
        order = BOFTLayer_order(inputs, inputs // size // 2**i, size // 2, factors - 1)
        shuffle = torch.eye(inputs, dtype=torch.float64)[order]
        turns = BOFTLayer.cayley_batch(layer, blocks[i].double())
        rotation = shuffle @ torch.block_diag(*turns) @ shuffle.T @ rotation
    want = (rotation @ base.double().T).T * scale.double()
    each = pair(open_checkpoint(tmp_path / "base"), open_checkpoint(tmp_path / "adapter"))
    for block_bytes in (100, 300, 1 << 20):
        got = tuned_weight(each.matrices["fc.weight"], block_bytes)
        assert_allclose(got, want.numpy(), rtol=1e-6, atol=1e-6)


def BOFTLayer_order(n: int, blocks: int, half: int, factors: int) -> torch.Tensor:
    """The library's own permutation, a method that looks at nothing of its layer."""
    from peft.tuners.boft.layer import Linear

    return Linear.block_butterfly_perm(None, n, blocks, half, factors)
