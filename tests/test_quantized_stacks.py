"""Stacks of matrices in 8 bits: every plane has codes and scales of its own."""

from pathlib import Path

import bitsandbytes.functional as bnb
import numpy as np
import pytest
import torch
from builders import write_full
from numpy.testing import assert_allclose, assert_array_equal
from safetensors.torch import save_file
from torch import Tensor
from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight

from wdecomp.checkpoint import Matrix, QuantizedTensor, open_checkpoint, read_matrix
from wdecomp.checkpoint.header import read_header
from wdecomp.checkpoint.quantized.scaled import scaled, unscaled
from wdecomp.errors import CheckpointError

NAME = "model.layers.0.mlp.experts.gate_up_proj"
EXPERTS, ROWS, COLUMNS = 3, 48, 40


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def codes(*shape: int) -> Tensor:
    return (torch.randn(*shape, generator=random(1)) * 50).to(torch.float8_e4m3fn)


def scales(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=random(2)) + 0.5


def stack(
    folder: Path, weight: Tensor, scale: Tensor, block: tuple[int, int] | None
) -> QuantizedTensor:
    file = folder / "stack.safetensors"
    save_file({NAME: weight, f"{NAME}_scale_inv": scale}, file)
    stored = read_header(file).tensors
    return scaled(NAME, {"weight": stored[NAME], "scale": stored[f"{NAME}_scale_inv"]}, block)


def planes(weight: QuantizedTensor) -> np.ndarray:
    """Every plane, as it is stored."""
    matrices = [Matrix(weight, input_first=False, plane=i) for i in range(weight.shape[0])]
    return np.stack([read_matrix(matrix) for matrix in matrices])


@pytest.mark.parametrize("block", [(16, 8), (20, 16)])  # whole blocks, and partial ones
def test_blocks_of_a_stack_are_decoded_as_transformers_does(
    tmp_path: Path, block: tuple[int, int]
) -> None:
    weight = codes(EXPERTS, ROWS, COLUMNS)
    scale = scales(EXPERTS, -(-ROWS // block[0]), -(-COLUMNS // block[1]))
    want = _dequantize_fp8_weight(weight, scale, list(block), torch.float32)
    found = stack(tmp_path, weight, scale, block)
    assert found.shape == (EXPERTS, ROWS, COLUMNS)
    assert_allclose(planes(found), want.numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "spread"),
    [
        ((EXPERTS, 1, 1), (EXPERTS, 1, 1)),
        ((EXPERTS, ROWS, 1), (EXPERTS, ROWS, 1)),
        ((EXPERTS, 1, COLUMNS), (EXPERTS, 1, COLUMNS)),  # FBGEMM's gate_up_proj
        ((EXPERTS, COLUMNS, 1), (EXPERTS, 1, COLUMNS)),  # and its down_proj
    ],
)
def test_other_scales_of_a_stack(
    tmp_path: Path, shape: tuple[int, ...], spread: tuple[int, ...]
) -> None:
    weight, scale = codes(EXPERTS, ROWS, COLUMNS), scales(*shape)
    want = weight.float() * scale.reshape(spread)
    assert_allclose(planes(stack(tmp_path, weight, scale, None)), want.numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((EXPERTS + 1, 3, 5), "matrices, or stacks of one length"),
        ((EXPERTS, ROWS), "matrices, or stacks of one length"),
        ((EXPERTS, 3, 5), "a block size in the config"),
    ],
)
def test_scales_of_another_stack_are_refused(
    tmp_path: Path, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(CheckpointError, match=f"{NAME}, 8-bit with scales: .*{message}"):
        stack(tmp_path, codes(EXPERTS, ROWS, COLUMNS), scales(*shape), None)


def test_scales_that_may_be_of_either_side_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected a shape that tells whose they are"):
        stack(tmp_path, codes(EXPERTS, 40, 40), scales(EXPERTS, 40, 1), None)


def test_a_stack_without_scales_of_its_matrices_is_refused(tmp_path: Path) -> None:
    opened = open_checkpoint(write_full(tmp_path, {NAME: codes(EXPERTS, ROWS, COLUMNS)}))
    for plane in range(EXPERTS):
        matrix = Matrix(opened.tensors[NAME], input_first=False, plane=plane)
        with pytest.raises(CheckpointError, match=f"{NAME}: is a stack of matrices in 8 bits"):
            read_matrix(matrix)


@pytest.mark.parametrize("suffix", ["_scale_inv", "_scale"])
def test_a_checkpoints_stack_is_found_with_its_scales(tmp_path: Path, suffix: str) -> None:
    weight, scale = codes(EXPERTS, ROWS, COLUMNS), scales(EXPERTS, 3, 5)
    settings = {"quant_method": "fp8", "weight_block_size": [16, 8]}
    tensors = {NAME: weight, f"{NAME}{suffix}": scale}
    tensors |= {"other": scale.clone(), "other_scale": scale.clone()}
    folder = write_full(tmp_path, tensors, config={"quantization_config": settings})
    opened = open_checkpoint(folder).tensors
    assert opened.keys() == {NAME, "other", "other_scale"}
    found = opened[NAME]
    assert isinstance(found, QuantizedTensor)
    want = _dequantize_fp8_weight(weight, scale, [16, 8], torch.float32)
    assert_allclose(planes(found), want.numpy(), rtol=1e-6)


@pytest.mark.parametrize("kind", ["fp8", "nf4"])
def test_experts_that_are_stored_below_one_another(tmp_path: Path, kind: str) -> None:
    """DBRX: (expert · ffn, hidden), seen as (expert, ffn, hidden)."""
    name, view = "blocks.0.ffn.experts.mlp.w2", (EXPERTS, 16, 64)
    weight = torch.randn(EXPERTS * 16, 64, generator=random(3))
    if kind == "nf4":
        packed, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4")
        tensors = {f"{name}.{k}": t for k, t in state.as_dict(packed=True).items()}
        tensors[name], want = packed, bnb.dequantize_4bit(packed, state)
    else:
        stored, scale = weight.to(torch.float8_e4m3fn), scales(EXPERTS * 16, 1)
        tensors, want = {name: stored, f"{name}_scale": scale}, stored.float() * scale
    opened = open_checkpoint(write_full(tmp_path, tensors)).tensors[name]
    for plane in range(EXPERTS):
        found = read_matrix(Matrix(opened, input_first=False, plane=plane, view=view))
        assert_allclose(found, want.reshape(view)[plane].numpy(), rtol=1e-6)


def test_what_is_no_stack_is_one_matrix(tmp_path: Path) -> None:
    positions, kernel = codes(1, 7, 5), codes(6, 4, 3)
    save_file({"positions": positions, "kernel": kernel}, tmp_path / "model.safetensors")
    stored = read_header(tmp_path / "model.safetensors").tensors
    found = read_matrix(Matrix(unscaled(stored["positions"]), input_first=True))
    assert_array_equal(found.T, positions[0].float().numpy())
    found = read_matrix(Matrix(unscaled(stored["kernel"]), input_first=False))
    assert_array_equal(found, kernel.float().flatten(1).numpy())
