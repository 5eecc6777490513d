"""Numbers of 8 bits with scales: FP8 of all kinds, and the int8 of compressed-tensors.

    W = (q − zero)·scale    with one scale for the tensor, for each row, for groups of a row's
                            columns, or for blocks of rows and columns

A block's size is what the config says, never the quotient of the shapes: the last block of either
side may be a partial one.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from math import prod

import numpy as np

from wdecomp.checkpoint.elements import Elements, PlainTensor, open_elements, read_whole
from wdecomp.checkpoint.quantized.parts import FLOATS, Parts
from wdecomp.checkpoint.quantized.tensor import QuantizedTensor
from wdecomp.dtypes import Array, widen

FP8 = ("F8_E4M3", "F8_E5M2")


def unscaled(tensor: PlainTensor) -> QuantizedTensor:
    """A weight that is stored in FP8 as it is."""
    rows, columns = (1, *tensor.shape) if len(tensor.shape) == 1 else _flat(tensor.shape)
    opened = partial(_open_unscaled, tensor, rows, columns)
    parts = {"weight": tensor}
    return QuantizedTensor(tensor.name, tensor.dtype, tensor.shape, None, parts, opened)


def scaled(
    name: str, tensors: Mapping[str, PlainTensor], block: tuple[int, int] | None
) -> QuantizedTensor:
    """A weight in FP8 or int8 with its scale.

    Args:
        name: of the weight.
        tensors: weight, scale, and of some int8 weights zero_point.
        block: rows and columns of a block, as the config says; None if it says nothing.

    Raises:
        CheckpointError: a part is missing or does not fit.
    """
    parts = Parts(name, "8-bit with scales", tensors)
    weight = parts.get("weight", *FP8, "I8", dimensions=2)
    scale = parts.get("scale", *FLOATS)
    grid = _grid(parts, weight.shape, scale.shape, block)
    rows, columns = weight.shape
    of_row = np.minimum(np.arange(rows) // grid[0], scale_shape(scale.shape)[0] - 1)
    zero = tensors.get("zero_point")
    if zero is not None:
        zero = parts.shaped("zero_point", scale.shape, "I8", "I32", "I64", *FLOATS)
    dtype = "INT8" if weight.dtype == "I8" else "FP8"
    opened = partial(_open_scaled, parts, weight, scale, zero, of_row, grid[1])
    return QuantizedTensor(name, dtype, (rows, columns), None, tensors, opened)


def scale_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a scale: () and (1,) are one, (rows,) and (rows, 1) one for each row."""
    if len(shape) < 2:
        return (shape[0] if shape else 1), 1
    return shape[0], shape[1]


def _grid(
    parts: Parts, weight: tuple[int, ...], scale: tuple[int, ...], block: tuple[int, int] | None
) -> tuple[int, int]:
    """Rows and columns that have one scale."""
    rows, columns = weight
    high, wide = scale_shape(scale)
    if len(scale) > 2:
        raise parts.wrong(f"has a scale of shape {scale}", "one or two dimensions")
    if block is not None and (high, wide) == (-(-rows // block[0]), -(-columns // block[1])):
        return block
    if (high, wide) == (1, 1):
        return rows, columns
    if (high, wide) == (rows, 1):
        return 1, columns
    if high == rows and block is None and columns % wide == 0:
        return 1, columns // wide
    raise parts.wrong(
        f"is {weight} with scales {scale}",
        f"those of blocks of {block}"
        if block
        else "a block size in the config (quantization_config.weight_block_size)",
    )


def _flat(shape: tuple[int, ...]) -> tuple[int, int]:
    return shape[0], prod(shape[1:])


@contextmanager
def _open_scaled(
    parts: Parts,
    weight: PlainTensor,
    scale: PlainTensor,
    zero: PlainTensor | None,
    of_row: Array,
    width: int,
) -> Iterator["_Scaled"]:
    grid = parts.numbers("scale").reshape(scale_shape(scale.shape))
    offset = None if zero is None else _plain(zero).reshape(grid.shape)
    columns = weight.shape[1]
    with open_elements(weight) as codes:
        yield _Scaled(codes, _table(weight.dtype), columns, grid, offset, of_row, width)


def _plain(tensor: PlainTensor) -> Array:
    stored = read_whole(tensor)
    return widen(stored).astype(np.float32) if tensor.dtype in FLOATS else stored.astype(np.float32)


@contextmanager
def _open_unscaled(tensor: PlainTensor, rows: int, columns: int) -> Iterator["_Scaled"]:
    with open_elements(tensor) as codes:
        one, of_row = np.ones((1, 1), np.float32), np.zeros(rows, np.int64)
        yield _Scaled(codes, _table(tensor.dtype), columns, one, None, of_row, columns)


@dataclass(frozen=True)
class _Scaled:
    codes: Elements
    table: Array  # (256,): the number of every code
    columns: int
    scale: Array
    zero: Array | None
    of_row: Array  # which row of the scales a row has
    width: int  # columns that share one

    def rows(self, plane: int, rows: slice) -> Array:
        stored = np.empty((rows.stop - rows.start, self.columns), np.uint8)
        self.codes.fill(stored.reshape(-1), rows.start * self.columns)
        numbers = self.table[stored]
        here = self.of_row[rows]
        if self.zero is not None:
            numbers -= self._spread(self.zero[here])
        numbers *= self._spread(self.scale[here])
        return np.asarray(numbers)

    def _spread(self, values: Array) -> Array:
        """Over the columns that share them; one column is spread by numpy itself."""
        if values.shape[1] == 1:
            return values
        return np.asarray(np.repeat(values, self.width, axis=1)[:, : self.columns])


@cache
def _table(dtype: str) -> Array:
    """What every 8-bit code stands for, in float32."""
    code = np.arange(256)
    if dtype == "I8":
        return code.astype(np.uint8).view(np.int8).astype(np.float32)
    exponent_bits, bias = (4, 7) if dtype == "F8_E4M3" else (5, 15)
    mantissa_bits = 7 - exponent_bits
    exponent = (code >> mantissa_bits) & ((1 << exponent_bits) - 1)
    mantissa = (code & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    normal = np.ldexp(1 + mantissa, exponent - bias)
    size = np.where(exponent == 0, np.ldexp(mantissa, 1 - bias), normal)
    if dtype == "F8_E4M3":
        size = np.where((code & 0x7F) == 0x7F, np.nan, size)
    else:
        top = exponent == 31
        size = np.where(top, np.where(mantissa == 0, np.inf, np.nan), size)
    return np.where(code & 0x80, -size, size).astype(np.float32)
