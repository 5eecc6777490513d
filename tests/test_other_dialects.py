"""Adapters of mlx-lm, NVlabs' DoRA and fsdp_qlora: laid by hand, for no writer of theirs runs here.

Each is held beside its own library's formula, written out in float64.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import tiny_llama, write_full
from numpy.testing import assert_allclose
from oracle import adapted_weight, check_columns, check_sound
from safetensors.torch import save_file
from torch import Tensor

from wdecomp.checkpoint import open_checkpoint
from wdecomp.errors import AdapterError
from wdecomp.pairing import Pairing, pair

Q = "model.layers.0.self_attn.q_proj"
V = "model.layers.0.self_attn.v_proj"


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def _pair(folder: Path, file: str, tensors: dict[str, Tensor], **config: Any) -> Pairing:
    write_full(folder / "base", tiny_llama(1))
    (folder / "adapter").mkdir()
    save_file(tensors, folder / "adapter" / file)
    if config:
        (folder / "adapter/adapter_config.json").write_text(json.dumps(config))
    return pair(open_checkpoint(folder / "base"), open_checkpoint(folder / "adapter"))


def _base(module: str) -> np.ndarray:
    return tiny_llama(1)[f"{module}.weight"].double().numpy()


def _with_magnitude(v: np.ndarray, m: Tensor) -> np.ndarray:
    return m.double().numpy().reshape(-1, 1) * v / np.linalg.norm(v, axis=1, keepdims=True)


def _check(found: Pairing, want: dict[str, np.ndarray]) -> None:
    assert found.matrices.keys() == {f"{module}.weight" for module in want}
    for module, weight in want.items():
        for block_bytes in (100, 1 << 20):
            got = adapted_weight(found.matrices[f"{module}.weight"], block_bytes)
            assert_allclose(got, weight, rtol=1e-5, atol=1e-6)
        check_columns(found.matrices[f"{module}.weight"], weight)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_mlx_stores_its_factors_the_other_way_round(kind: str, tmp_path: Path) -> None:
    a, b, m = _random(24, 3), _random(3, 32), _random(32).abs()
    tensors = {f"{Q}.lora_a": a, f"{Q}.lora_b": b} | ({f"{Q}.m": m} if kind == "dora" else {})
    parameters = {"rank": 3, "scale": 2.5, "dropout": 0.0}
    found = _pair(tmp_path, "adapters.safetensors", tensors, fine_tune_type=kind, num_layers=1,
                  lora_parameters=parameters)  # fmt: skip
    v = _base(Q) + 2.5 * (a.double() @ b.double()).T.numpy()
    _check(found, {Q: _with_magnitude(v, m) if kind == "dora" else v})
    assert (found.dialect, found.method) == ("mlx-lm", kind)
    check_sound(tmp_path / "base", tmp_path / "adapter")


def test_mlx_without_a_scale_is_refused(tmp_path: Path) -> None:
    tensors = {f"{Q}.lora_a": _random(24, 3), f"{Q}.lora_b": _random(3, 32)}
    with pytest.raises(AdapterError, match="has no lora_parameters"):
        _pair(tmp_path, "adapters.safetensors", tensors, fine_tune_type="lora")


def test_nvlabs_dora_has_modules_with_a_magnitude_alone(tmp_path: Path) -> None:
    a, b, m, alone = _random(3, 24), _random(32, 3), _random(32, 1).abs(), _random(8, 1).abs()
    front = "base_model.model."
    tensors = {
        f"{front}{Q}.lora_A.weight": a,
        f"{front}{Q}.lora_B.weight": b,
        f"{front}{Q}.weight_m_wdecomp.weight": m,
        f"{front}{V}.weight_m_wdecomp.weight": alone,
    }
    found = _pair(tmp_path, "adapter_model.safetensors", tensors, peft_type="DORA", r=3,
                  lora_alpha=6, Wdecompose_target_modules=["v_proj"])  # fmt: skip
    v = _base(Q) + 2 * (b.double() @ a.double()).numpy()
    _check(found, {Q: _with_magnitude(v, m), V: _with_magnitude(_base(V), alone)})
    assert found.method == "dora"
    check_sound(tmp_path / "base", tmp_path / "adapter")


def test_fsdp_qlora_has_no_scale(tmp_path: Path) -> None:
    a, b, m = _random(3, 24), _random(32, 3), _random(32).abs()
    tensors = {
        f"{Q}.dora_layer.lora_A.weight": a,
        f"{Q}.dora_layer.lora_B.weight": b,
        f"{Q}.magnitude_layer.magnitude": m,
    }
    write_full(tmp_path / "base", tiny_llama(1))
    save_file(tensors, tmp_path / "qdora.safetensors")
    found = pair(
        open_checkpoint(tmp_path / "base"), open_checkpoint(tmp_path / "qdora.safetensors")
    )
    _check(found, {Q: _with_magnitude(_base(Q) + (b.double() @ a.double()).numpy(), m)})
    check_sound(tmp_path / "base", tmp_path / "qdora.safetensors")


def test_half_a_pair_and_a_magnitude_of_another_length_are_named(tmp_path: Path) -> None:
    whole = {f"{Q}.lora_a": _random(24, 3), f"{Q}.lora_b": _random(3, 32)}
    parameters = {"rank": 3, "scale": 2.5}
    half = {f"{Q}.lora_a": whole[f"{Q}.lora_a"], f"{V}.lora_b": _random(3, 8)}
    with pytest.raises(AdapterError, match="is missing beside"):
        _pair(tmp_path / "half", "adapters.safetensors", half, lora_parameters=parameters)
    wrong = whole | {f"{Q}.m": _random(31)}
    with pytest.raises(AdapterError, match="each of 32 outputs"):
        _pair(tmp_path / "wrong", "adapters.safetensors", wrong, lora_parameters=parameters)
