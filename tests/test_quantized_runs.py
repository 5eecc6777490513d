"""Quantised checkpoints from the outside: compared, adapted, damaged, and of formats not read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import numpy as np
import pytest
import torch
from builders import low_rank, moved, tiny_llama, write_adapter, write_full
from numpy.testing import assert_allclose
from torch import Tensor

import wdecomp
from wdecomp.checkpoint import open_checkpoint
from wdecomp.errors import CheckpointError

Tensors = dict[str, Tensor]


def _nf4(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """Linear weights in NF4 as transformers stores them, and what these stand for."""
    stored, dense = dict(tensors), dict(tensors)
    for name, weight in tensors.items():
        if "proj" in name:
            packed, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4")
            stored |= {f"{name}.{k}": v for k, v in state.as_dict(packed=True).items()}
            stored[name] = packed
            nibbles = torch.stack([packed.reshape(-1) >> 4, packed.reshape(-1) & 15], 1)
            scale = state.absmax.repeat_interleave(64)[: weight.numel()]
            values = state.code[nibbles.reshape(-1)[: weight.numel()].long()] * scale
            dense[name] = values.reshape(weight.shape)
    return stored, dense


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    base = tiny_llama(2)
    stored, dense = _nf4(base)
    factors = low_rank(base)
    magnitudes = {
        module: (dense[f"{module}.weight"] + 2 * b @ a).norm(dim=1) * 1.02
        for module, (a, b) in factors.items()
    }
    write_full(tmp_path / "base", base)
    write_full(tmp_path / "nf4", stored)
    write_full(tmp_path / "dense", dense)
    write_adapter(tmp_path / "qlora", factors)
    write_adapter(tmp_path / "qdora", factors, magnitudes)
    return tmp_path


FIGURES = ["delta_magnitude", "delta_direction", "signed_delta_magnitude"]


def _figures(results: wdecomp.Results, run: str) -> Any:
    modules = results.modules
    return modules[modules["run"] == run].set_index(["parameter", "axis"])[FIGURES]


@pytest.mark.parametrize("adapter", ["qlora", "qdora"])
def test_an_adapter_on_a_quantised_base_is_one_on_what_that_stands_for(
    adapter: str, folders: Path
) -> None:
    on_codes = wdecomp.compare(folders / "nf4", folders / adapter, columns="both")
    on_dense = wdecomp.compare(folders / "dense", folders / adapter, columns="both")
    assert_allclose(_figures(on_codes, adapter), _figures(on_dense, adapter), rtol=1e-6)
    assert set(on_codes.modules["dtype_base"]) == {"NF4"}


@pytest.mark.parametrize("adapter", ["qlora", "qdora"])
def test_with_both_bases_quantisation_and_training_are_told_apart(
    adapter: str, folders: Path
) -> None:
    found = wdecomp.compare(folders / "base", folders / adapter, base_dequantized=folders / "nf4")
    runs = list(found.modules["run"].unique())
    assert runs == ["quantization", adapter, f"{adapter}+quantization"]
    training = wdecomp.compare(folders / "dense", folders / adapter)
    assert_allclose(_figures(found, adapter), _figures(training, adapter), rtol=1e-6)
    displaced = wdecomp.compare(folders / "base", folders / "dense")
    assert_allclose(_figures(found, "quantization"), _figures(displaced, "dense"), rtol=1e-5)
    both = _figures(found, f"{adapter}+quantization")
    merged = _merged(folders, adapter)
    total = wdecomp.compare(folders / "base", merged)
    want = _figures(total, "merged").loc[both.index]
    assert_allclose(both, want, rtol=1e-5, atol=1e-8)


def _merged(folders: Path, adapter: str) -> Path:
    """What training left, in float64 arithmetic: the dequantised weights with the update."""
    from safetensors.torch import load_file

    tensors = load_file(folders / "dense/model.safetensors")
    factors = load_file(folders / adapter / "adapter_model.safetensors")
    for key in factors:
        if key.endswith("lora_A.weight"):
            front = key.removesuffix(".lora_A.weight")
            name = front.removeprefix("base_model.model.") + ".weight"
            b = factors[f"{front}.lora_B.weight"].double()
            v = tensors[name].double() + 2 * b @ factors[key].double()
            m = factors.get(f"{front}.lora_magnitude_vector")
            scale = 1 if m is None else m.double()[:, None] / v.norm(dim=1, keepdim=True)
            tensors[name] = (scale * v).float()
    return write_full(folders / "merged", tensors)


def test_what_quantisation_does_dwarfs_a_fine_tuning(folders: Path) -> None:
    """Read against the unquantised base, a tuned NF4 checkpoint shows its quantisation first."""
    found = wdecomp.compare(folders / "base", folders / "nf4").modules
    rows = found[found["module"].isin(["q", "v"]) & (found["axis"] == "output")]
    assert rows["delta_direction"].between(1e-3, 2e-2).all()
    assert rows["floor_delta_direction"].isna().all()
    write_full(folders / "ft", moved(tiny_llama(2), 1e-3))
    tuned = wdecomp.compare(folders / "base", folders / "ft").modules
    assert tuned["delta_direction"].max() < rows["delta_direction"].min()


NAME = "model.layers.0.self_attn.q_proj.weight"
Damage = Callable[[Tensors], None]


def _state(tensors: Tensors, **changed: Any) -> None:
    key = f"{NAME}.quant_state.bitsandbytes__nf4"
    state = json.loads(bytes(tensors[key].tolist())) | changed
    tensors[key] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)


DAMAGE: dict[str, tuple[Damage, str]] = {
    "scales gone": (lambda t: t.pop(f"{NAME}.absmax"), "has no absmax"),
    "code gone": (lambda t: t.pop(f"{NAME}.quant_map"), "has no quant_map"),
    "too few scales": (
        lambda t: t.update({f"{NAME}.absmax": torch.ones(3)}),
        r"has 3 scales, expected 12 for \(32, 24\)",
    ),
    "a state that is no json": (
        lambda t: t.update(
            {f"{NAME}.quant_state.bitsandbytes__nf4": torch.tensor([1, 2], dtype=torch.uint8)}
        ),
        "quant_state",
    ),
    "a block of nothing": (lambda t: _state(t, blocksize=0), "has blocksize 0"),
    "another shape": (lambda t: _state(t, shape=[32, 25]), "bytes, expected 400"),
    "a shape of one size": (lambda t: _state(t, shape=[768]), r"has shape \[768\]"),
    "a huge shape": (lambda t: _state(t, shape=[2**40, 24]), "has a size of"),
    "weights of another type": (
        lambda t: t.update({NAME: t[NAME].to(torch.int16)}),
        r"has weight I16 of shape .*, expected U8",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(damage: str, tmp_path: Path) -> None:
    stored, _ = _nf4(tiny_llama(1))
    change, message = DAMAGE[damage]
    change(stored)
    with pytest.raises(CheckpointError, match=message) as refused:
        open_checkpoint(write_full(tmp_path, stored))
    assert str(tmp_path) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("method", ["hqq", "eetq", "torchao", "aqlm", "quanto", "bitnet"])
def test_formats_that_are_not_read_are_named(method: str, tmp_path: Path) -> None:
    config = {"quantization_config": {"quant_method": method}}
    folder = write_full(tmp_path, tiny_llama(1), config=config)
    with pytest.raises(CheckpointError, match=f"is quantised by '{method}', which is not read"):
        open_checkpoint(folder)


def test_a_block_size_is_never_guessed(tmp_path: Path) -> None:
    """192 rows and two scales: blocks of 128, the last of them partial, not two of 96."""
    tensors = {
        NAME: torch.ones(192, 128).to(torch.float8_e4m3fn),
        NAME.replace("weight", "weight_scale_inv"): torch.tensor([[2.0], [3.0]]),
    }
    with pytest.raises(CheckpointError, match=r"expected a block size in the config"):
        open_checkpoint(write_full(tmp_path / "without", tensors))
    settings = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    write_full(tmp_path / "with", tensors, config=settings)
    dense = write_full(tmp_path / "dense", {NAME: torch.ones(192, 128)})
    norms = wdecomp.compare(dense, tmp_path / "with").columns("with")["delta_magnitude"]
    assert_allclose(np.asarray(norms), np.sqrt(128) * np.repeat([1.0, 2.0], [128, 64]), rtol=1e-6)


def test_gguf_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(CheckpointError, match="is not safetensors but a GGUF file"):
        open_checkpoint(tmp_path)
