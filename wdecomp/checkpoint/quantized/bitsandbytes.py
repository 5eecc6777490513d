"""bitsandbytes: 4-bit codes with a scale for each block of the flattened weight, and int8 rows.

4 bits   W[i] = code[q[i]]·absmax[i // blocksize], the high nibble of a byte first
absmax may be quantised again: map[absmax]·nested_absmax[j // nested_blocksize] + offset
int8     W[o] = q[o]·SCB[o]/127
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np

from wdecomp.checkpoint import strict_json
from wdecomp.checkpoint.elements import Elements, PlainTensor, open_elements, read_whole
from wdecomp.checkpoint.quantized.parts import Parts
from wdecomp.checkpoint.quantized.tensor import QuantizedTensor
from wdecomp.dtypes import Array

CODES = 16


def four_bit(name: str, kind: str, tensors: Mapping[str, PlainTensor]) -> QuantizedTensor:
    """A weight in NF4 or FP4.

    Args:
        name: of the weight.
        kind: "nf4" or "fp4".
        tensors: weight, absmax, quant_map, state, and with double quantisation nested_absmax and
            nested_quant_map.

    Raises:
        CheckpointError: a part is missing or does not fit.
    """
    parts = Parts(name, f"bitsandbytes {kind.upper()}", tensors)
    state = _state(parts)
    shape, block = _shape(parts, state), _positive(parts, state, "blocksize")
    size = prod(shape)
    packed = parts.get("weight", "U8")
    if prod(packed.shape) != (size + 1) // 2:
        raise parts.wrong(f"has {prod(packed.shape)} bytes", f"{(size + 1) // 2} for {shape}")
    parts.numbers("quant_map", CODES)
    blocks = -(-size // block)
    if prod(parts.get("absmax", "U8", "F32", "BF16", "F16").shape) != blocks:
        raise parts.wrong(f"has {prod(tensors['absmax'].shape)} scales", f"{blocks} for {shape}")
    opened = partial(_open_four_bit, parts, state, shape, block)
    return QuantizedTensor(name, kind.upper(), shape, None, tensors, opened)


def int8(name: str, tensors: Mapping[str, PlainTensor]) -> QuantizedTensor:
    """A weight of LLM.int8(): weight (out, in), SCB (out,), weight_format a scalar 0 (row).

    Raises:
        CheckpointError: a part is missing or does not fit.
    """
    parts = Parts(name, "bitsandbytes int8", tensors)
    weight = parts.get("weight", "I8", dimensions=2)
    parts.numbers("SCB", weight.shape[0])
    if "weight_format" in tensors:
        layout = int(
            read_whole(parts.get("weight_format", "U8", "I8", "I32", "I64")).reshape(-1)[0]
        )
        if layout != 0:
            raise parts.wrong(f"has weight_format {layout}", "0, rows as they are")
    return QuantizedTensor(name, "INT8", weight.shape, None, tensors, partial(_open_int8, parts))


def _state(parts: Parts) -> dict[str, Any]:
    stored = parts.get("state", "U8")
    where = f"{stored.file}: {stored.name}"
    state: dict[str, Any] = strict_json.parse(read_whole(stored).tobytes(), where)
    return state


def _shape(parts: Parts, state: Mapping[str, Any]) -> tuple[int, int]:
    shape = state.get("shape")
    if not isinstance(shape, list) or len(shape) != 2 or any(type(n) is not int for n in shape):
        raise parts.wrong(f"has shape {shape!r} in its state", "rows and columns")
    return _size(parts, shape[0]), _size(parts, shape[1])


def _size(parts: Parts, value: int) -> int:
    if not 0 < value < 2**31:
        raise parts.wrong(f"has a size of {value} in its state", "a positive one")
    return value


def _positive(parts: Parts, state: Mapping[str, Any], field: str) -> int:
    value = state.get(field)
    if type(value) is not int or not 0 < value < 2**20:
        raise parts.wrong(f"has {field} {value!r} in its state", "a positive number")
    return value


@contextmanager
def _open_four_bit(
    parts: Parts, state: Mapping[str, Any], shape: tuple[int, int], block: int
) -> Iterator["_FourBit"]:
    code = parts.numbers("quant_map")
    byte = np.arange(256)
    pairs = np.stack([code[byte >> 4], code[byte & 15]], axis=1)
    with open_elements(parts.tensors["weight"]) as packed:
        yield _FourBit(packed, pairs, _absmax(parts, state), shape[1], block)


def _absmax(parts: Parts, state: Mapping[str, Any]) -> Array:
    stored = parts.tensors["absmax"]
    if stored.dtype != "U8":
        return parts.numbers("absmax")
    codes = read_whole(stored).reshape(-1)
    nested = _positive(parts, state, "nested_blocksize")
    offset = state.get("nested_offset")
    if type(offset) not in (int, float):
        raise parts.wrong(f"has nested_offset {offset!r} in its state", "a number")
    scale = parts.numbers("nested_absmax", -(-codes.size // nested))
    table = parts.numbers("nested_quant_map", 256)
    return np.asarray(
        table[codes] * np.repeat(scale, nested)[: codes.size] + np.float32(offset), np.float32
    )


@dataclass(frozen=True)
class _FourBit:
    packed: Elements
    pairs: Array  # (256, 2): the two numbers of a byte
    absmax: Array
    columns: int
    block: int

    def rows(self, plane: int, rows: slice) -> Array:
        first, last = rows.start * self.columns, rows.stop * self.columns
        stored = np.empty((last + 1) // 2 - first // 2, np.uint8)
        self.packed.fill(stored, first // 2)
        odd = first % 2
        numbers = self.pairs[stored].reshape(-1)[odd : odd + last - first]
        of_block = np.arange(first // self.block, -(-last // self.block))
        scale = np.repeat(self.absmax[of_block], self.block)
        skip = first % self.block
        numbers *= scale[skip : skip + last - first]
        return np.asarray(numbers.reshape(-1, self.columns))


@contextmanager
def _open_int8(parts: Parts) -> Iterator["_Int8"]:
    weight = parts.tensors["weight"]
    with open_elements(weight) as codes:
        yield _Int8(codes, parts.numbers("SCB") / np.float32(127), weight.shape[1])


@dataclass(frozen=True)
class _Int8:
    codes: Elements
    scale: Array
    columns: int

    def rows(self, plane: int, rows: slice) -> Array:
        stored = np.empty((rows.stop - rows.start, self.columns), np.int8)
        self.codes.fill(stored.reshape(-1), rows.start * self.columns)
        return stored.astype(np.float32) * self.scale[rows, None]
