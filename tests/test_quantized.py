"""Quantised weights decoded row by row, beside the libraries that wrote them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import numpy as np
import pytest
import torch
from builders import write_full
from compressed_tensors.compressors import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from numpy.testing import assert_allclose, assert_array_equal
from torch import Tensor
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from wdecomp.checkpoint import (
    Matrix,
    MatrixReader,
    QuantizedTensor,
    Rectangle,
    open_checkpoint,
    read_matrix,
)
from wdecomp.dtypes import Floats

NAME = "model.layers.0.self_attn.q_proj.weight"
MODULE = NAME.removesuffix(".weight")
Made = tuple[dict[str, Tensor], Tensor, dict[str, Any]]  # tensors, decoded weight, config


def _weight(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows)) * 0.1


def _dense(codes: Tensor, table: Tensor, scale: Tensor, block: int, shape: Any) -> Tensor:
    """The definition, in torch: code[q]·scale[i // block]."""
    packed = codes.reshape(-1).long()
    nibbles = torch.stack([packed >> 4, packed & 15], 1).reshape(-1)[: int(np.prod(shape))]
    return (table[nibbles] * scale.repeat_interleave(block)[: len(nibbles)]).reshape(shape)


def _bnb4(kind: str, double: bool, shape: tuple[int, int], block: int) -> Made:
    weight = _weight(*shape)
    packed, state = bnb.quantize_4bit(
        weight, blocksize=block, quant_type=kind, compress_statistics=double
    )
    tensors = {f"{NAME}.{key}": value for key, value in state.as_dict(packed=True).items()}
    absmax = state.absmax
    if double:
        absmax = bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset
    return tensors | {NAME: packed}, _dense(packed, state.code, absmax, block, shape), {}


def _int8() -> Made:
    weight = _weight(24, 40)
    codes, scale, _ = bnb.int8_vectorwise_quant(weight.half())
    tensors = {
        NAME: codes,
        f"{MODULE}.SCB": scale.float(),
        f"{MODULE}.weight_format": torch.tensor(0).byte(),
    }
    return tensors, bnb.int8_vectorwise_dequant(codes, scale.float()), {}


def _fp8(shape: tuple[int, int], block: tuple[int, int], key: str = "weight_scale_inv") -> Made:
    weight = _weight(*shape).to(torch.float8_e4m3fn)
    grid = -(-shape[0] // block[0]), -(-shape[1] // block[1])
    scale = torch.rand(grid, generator=torch.Generator().manual_seed(0)) + 0.5
    spread = scale.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    settings = {"quant_method": "fp8", "weight_block_size": list(block)}
    dense = weight.float() * spread[: shape[0], : shape[1]]
    return {NAME: weight, f"{MODULE}.{key}": scale}, dense, {"quantization_config": settings}


def _per_channel(dtype: torch.dtype, scale_shape: tuple[int, ...]) -> Made:
    weight = _weight(24, 40)
    codes = (
        weight.to(dtype) if dtype.is_floating_point else (weight * 300).clamp(-127, 127).to(dtype)
    )
    scale = torch.rand(scale_shape, generator=torch.Generator().manual_seed(0)) + 0.5
    settings = {"quant_method": "compressed-tensors"}
    spread = scale.reshape(-1, 1) if scale.numel() > 1 else scale
    tensors = {NAME: codes, f"{MODULE}.weight_scale": scale}
    return tensors, codes.float() * spread, {"quantization_config": settings}


def _packed(bits: int, symmetric: bool, group: int | None, ordered: bool = False) -> Made:
    rows, columns = 24, 64
    strategy = "group" if group else "channel"
    args = QuantizationArgs(
        num_bits=bits, symmetric=symmetric, strategy=strategy, group_size=group, type="int"
    )
    random = torch.Generator().manual_seed(bits)
    groups = columns // group if group else 1
    scale = torch.rand(rows, groups, generator=random) * 0.05 + 0.01
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    zero = torch.randint(low, high, (rows, groups), generator=random).to(torch.int8)
    codes = torch.randint(low, high + 1, (rows, columns), generator=random)
    group_of = torch.arange(columns) // (group or columns)
    offset = torch.zeros_like(zero) if symmetric else zero
    dense = (codes - offset[:, group_of]) * scale[:, group_of]
    state = {"weight": dense, "weight_scale": scale}
    state |= {} if symmetric else {"weight_zero_point": zero}
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    made = PackedQuantizationCompressor.compress(state, scheme)
    settings = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"weights": {"num_bits": bits}, "targets": ["Linear"]}},
    }
    if ordered:  # as versions before 0.10 could write it
        group_of = group_of[torch.randperm(columns, generator=random)]
        made["weight_g_idx"] = group_of.int()
        dense = codes * scale[:, group_of]
    tensors = {f"{MODULE}.{key}": value.contiguous() for key, value in made.items()}
    return tensors, dense, {"quantization_config": settings}


def _words(codes: Tensor, bits: int, order: list[int] | None = None) -> Tensor:
    """(rows, columns) → (rows, words), by the definition: one code after the other."""
    each = 32 // bits
    words = torch.zeros(codes.shape[0], codes.shape[1] // each, dtype=torch.int64)
    for column in range(codes.shape[1]):
        word, place = divmod(column, each)
        shift = place if order is None else order.index(place)
        words[:, word] |= codes[:, column].long() << (shift * bits)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()


def _gptq(bits: int, version: str, ordered: bool = False) -> Made:
    inputs, outputs, groups = 64, 32, 4
    random = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 1 << bits, (inputs, outputs), generator=random)
    zero = torch.randint(0, 1 << bits, (groups, outputs), generator=random)
    scale = torch.rand(groups, outputs, generator=random).half()
    group_of = torch.arange(inputs) * groups // inputs
    if ordered:
        group_of = group_of[torch.randperm(inputs, generator=random)]
    dense = scale.float()[group_of] * (codes - zero[group_of])
    stored_zero = zero if version == "gptq_v2" else (zero - 1) & ((1 << bits) - 1)
    tensors = {
        f"{MODULE}.qweight": _words(codes.T, bits).T.contiguous(),
        f"{MODULE}.qzeros": _words(stored_zero, bits),
        f"{MODULE}.scales": scale,
        f"{MODULE}.g_idx": group_of.int(),
    }
    settings = {"quant_method": "gptq", "bits": bits, "checkpoint_format": version}
    return tensors, dense.T, {"quantization_config": settings}


def _awq() -> Made:
    inputs, outputs, groups = 64, 32, 4
    random = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (inputs, outputs), generator=random)
    zero = torch.randint(0, 16, (groups, outputs), generator=random)
    scale = torch.rand(groups, outputs, generator=random).half()
    group_of = torch.arange(inputs) * groups // inputs
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    tensors = {
        f"{MODULE}.qweight": _words(codes, 4, order),
        f"{MODULE}.qzeros": _words(zero, 4, order),
        f"{MODULE}.scales": scale,
    }
    dense = scale.float()[group_of] * (codes - zero[group_of])
    settings = {"quant_method": "awq", "bits": 4, "group_size": inputs // groups}
    return tensors, dense.T, {"quantization_config": settings}


CASES: dict[str, Callable[[], Made]] = {
    **{
        f"bnb {kind}{' double-quant' if double else ''}, {shape[0]}×{shape[1]} by {block}": (
            lambda kind=kind, double=double, shape=shape, block=block: _bnb4(
                kind, double, shape, block
            )
        )
        for kind in ("nf4", "fp4")
        for double in (False, True)
        for shape, block in (((24, 64), 64), ((64, 96), 64), ((19, 33), 64), ((40, 144), 128))
    },
    "bnb int8": _int8,
    "fp8 blocks": lambda: _fp8((256, 384), (128, 128)),
    "fp8 partial blocks": lambda: _fp8((192, 200), (128, 128)),
    "fp8 blocks, one partial": lambda: _fp8((130, 128), (128, 128)),
    "fp8 per channel": lambda: _per_channel(torch.float8_e4m3fn, (24, 1)),
    "fp8 per channel, flat": lambda: _per_channel(torch.float8_e4m3fn, (24,)),
    "fp8 per tensor": lambda: _per_channel(torch.float8_e4m3fn, (1,)),
    "fp8 e5m2 per channel": lambda: _per_channel(torch.float8_e5m2, (24, 1)),
    "int8 per channel": lambda: _per_channel(torch.int8, (24, 1)),
    **{
        f"compressed-tensors int{bits}{'' if symmetric else ' with zeros'}, {group or 'channel'}": (
            lambda bits=bits, symmetric=symmetric, group=group: _packed(bits, symmetric, group)
        )
        for bits in (4, 8)
        for symmetric in (True, False)
        for group in (16, None)
    },
    "compressed-tensors int4 in another order": lambda: _packed(4, True, 16, ordered=True),
    **{
        f"{version} of {bits} bits": (lambda bits=bits, version=version: _gptq(bits, version))
        for bits in (2, 4, 8)
        for version in ("gptq", "gptq_v2")
    },
    "gptq in another order": lambda: _gptq(4, "gptq", ordered=True),
    "awq": _awq,
}


def _written(folder: Path, case: str) -> tuple[QuantizedTensor, Floats]:
    tensors, dense, config = CASES[case]()
    opened = open_checkpoint(write_full(folder, tensors, config=config))
    assert list(opened.tensors) == [NAME], "one weight, and nothing left of its parts"
    weight = opened.tensors[NAME]
    assert isinstance(weight, QuantizedTensor)
    return weight, dense.double().numpy()


@pytest.mark.parametrize("case", CASES)
def test_a_weight_is_decoded_to_what_its_library_makes_of_it(case: str, tmp_path: Path) -> None:
    weight, want = _written(tmp_path, case)
    matrix = Matrix(weight, bool(weight.input_first))
    assert_allclose(read_matrix(matrix), want, rtol=1e-6, atol=1e-6 * np.abs(want).max())


@pytest.mark.parametrize("case", CASES)
def test_rows_are_the_same_however_many_are_read(case: str, tmp_path: Path) -> None:
    weight, _ = _written(tmp_path, case)
    matrix = Matrix(weight, input_first=False)
    whole = read_matrix(matrix).copy()
    rows, columns = whole.shape
    with MatrixReader(matrix) as reader:
        for height in (1, 3, 7):
            for top in range(0, rows, height):
                at = Rectangle(slice(top, min(top + height, rows)), slice(0, columns))
                assert_array_equal(reader.read(at), whole[at.outputs])
        inner = Rectangle(slice(1, rows), slice(3, columns - 2))
        assert_array_equal(reader.read(inner), whole[1:, 3:-2])


def test_every_code_of_fp8_is_what_torch_says(tmp_path: Path) -> None:
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        codes = torch.arange(256).to(torch.uint8).reshape(16, 16)
        opened = open_checkpoint(write_full(tmp_path / str(dtype), {NAME: codes.view(dtype)}))
        matrix = Matrix(opened.tensors[NAME], input_first=False)
        assert_array_equal(read_matrix(matrix), codes.view(dtype).float().numpy())


def test_mxfp4_is_what_transformers_makes_of_it(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (3, 6, 2, 16), generator=random).byte()
    scales = torch.randint(118, 130, (3, 6, 2), generator=random).byte()
    name = "model.layers.0.mlp.experts.gate_up_proj"
    folder = write_full(tmp_path, {f"{name}_blocks": blocks, f"{name}_scales": scales})
    stack = open_checkpoint(folder).tensors[name]
    assert isinstance(stack, QuantizedTensor)
    want = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)  # (expert, in, out)
    assert (stack.shape, stack.input_first) == ((3, 6, 64), False)
    for expert in range(3):
        got = read_matrix(Matrix(stack, input_first=False, plane=expert))
        assert_array_equal(got, want[expert].T.numpy())
