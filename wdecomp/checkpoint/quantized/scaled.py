"""Numbers of 8 bits with scales: FP8 of all kinds, and the int8 of compressed-tensors.

    W = (q − zero)·scale    with one scale for the tensor, for each row, for groups of a row's
                            columns, or for blocks of rows and columns

A block's size is what the config says, never the quotient of the shapes: the last block of either
side may be a partial one. A stack of matrices, (plane, rows, columns), has its scales plane by
plane.
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
from wdecomp.errors import CheckpointError

FP8 = ("F8_E4M3", "F8_E5M2")


def unscaled(tensor: PlainTensor) -> QuantizedTensor:
    """A weight that is stored in FP8 as it is."""
    opened = partial(_open_unscaled, tensor, *_flat(tensor.shape))
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
    weight, scale = parts.get("weight", *FP8, "I8"), parts.get("scale", *FLOATS)
    if len(weight.shape) == 2:
        scales = 1, *scale_shape(scale.shape)
        high, width = _grid(parts, weight.shape, scale.shape, block)
    else:
        scales, (high, width) = _stacked(parts, weight.shape, scale.shape, block)
    zero = tensors.get("zero_point")
    if zero is not None:
        zero = parts.shaped("zero_point", scale.shape, "I8", "I32", "I64", *FLOATS)
    dtype = "INT8" if weight.dtype == "I8" else "FP8"
    opened = partial(_open_scaled, parts, weight, scales, zero, high, width)
    return QuantizedTensor(name, dtype, weight.shape, None, tensors, opened)


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


def _stacked(
    parts: Parts,
    weight: tuple[int, ...],
    scale: tuple[int, ...],
    block: tuple[int, int] | None,
) -> tuple[tuple[int, int, int], tuple[int, int]]:
    """The shape of a stack's scales, (planes, high, wide), and the rows and columns that have one.

    Those of columns are (planes, 1, columns), and (planes, columns, 1) where FBGEMM wrote them.
    """
    if len(weight) != 3 or len(scale) != 3 or scale[0] != weight[0]:
        raise parts.wrong(f"is {weight} with scales {scale}", "matrices, or stacks of one length")
    planes, rows, columns = weight
    if block is None and scale[1:] == (rows, 1) == (columns, 1):
        raise parts.wrong(f"is {weight} with scales {scale}", "a shape that tells whose they are")
    if block is None and scale[1:] in ((1, columns), (columns, 1)):
        return (planes, 1, columns), (rows, 1)
    return (planes, scale[1], scale[2]), _grid(parts, (rows, columns), scale[1:], block)


def _flat(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of one matrix; a table of tokens may have a batch dimension of 1."""
    if len(shape) == 1:
        return 1, shape[0]
    if len(shape) == 3 and shape[0] == 1:
        return shape[1], shape[2]
    return shape[0], prod(shape[1:])


@contextmanager
def _open_scaled(
    parts: Parts,
    weight: PlainTensor,
    scales: tuple[int, int, int],
    zero: PlainTensor | None,
    high: int,
    width: int,
) -> Iterator["_Scaled"]:
    of_row = np.minimum(np.arange(weight.shape[-2]) // high, scales[1] - 1)
    scale = parts.numbers("scale").reshape(scales)
    offset = None if zero is None else _plain(zero).reshape(scales)
    with open_elements(weight) as codes:
        yield _Scaled(weight, codes, _table(weight.dtype), scale, offset, of_row, width)


def _plain(tensor: PlainTensor) -> Array:
    stored = read_whole(tensor)
    return widen(stored).astype(np.float32) if tensor.dtype in FLOATS else stored.astype(np.float32)


@contextmanager
def _open_unscaled(tensor: PlainTensor, rows: int, columns: int) -> Iterator["_Scaled"]:
    with open_elements(tensor) as codes:
        one, of_row = np.ones((1, 1, 1), np.float32), np.zeros(rows, np.int64)
        yield _Scaled(tensor, codes, _table(tensor.dtype), one, None, of_row, columns)


@dataclass(frozen=True)
class _Scaled:
    weight: PlainTensor
    codes: Elements
    table: Array  # (256,): the number of every code
    scale: Array  # (planes, high, wide)
    zero: Array | None
    of_row: Array  # which row of the scales a row of a plane has
    width: int  # columns that share one

    @property
    def columns(self) -> int:
        """Of a plane."""
        return prod(self.weight.shape) // (len(self.scale) * len(self.of_row))

    def rows(self, plane: int, rows: slice) -> Array:
        if plane >= len(self.scale) or rows.stop > len(self.of_row):
            raise CheckpointError(
                f"{self.weight.file}: {self.weight.name}: is a stack of matrices in 8 bits, "
                "expected the scales of each beside it. Dequantise the model and save it."
            )
        stored = np.empty((rows.stop - rows.start, self.columns), np.uint8)
        first = plane * len(self.of_row) + rows.start
        self.codes.fill(stored.reshape(-1), first * self.columns)
        numbers = self.table[stored]
        here = self.of_row[rows]
        if self.zero is not None:
            numbers -= self._spread(self.zero[plane, here])
        numbers *= self._spread(self.scale[plane, here])
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
