"""Integers of a few bits packed into 32-bit words: compressed-tensors, GPTQ, AWQ.

compressed-tensors   W = (q − zero)·scale, words along the columns, zeros along the rows; both
are stored with 2^(bits−1) added
GPTQ                 W[i, o] = (q − (z + 1))·scale[g[i], o], words along i; gptq_v2 without + 1
AWQ                  W[i, o] = (q − z)·scale[i // group, o], words along o, in an order of its own
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from wdecomp.checkpoint.elements import Elements, PlainTensor, open_elements, read_whole
from wdecomp.checkpoint.quantized.parts import FLOATS, Parts
from wdecomp.checkpoint.quantized.tensor import QuantizedTensor
from wdecomp.dtypes import Array, widen

WORD = 32
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the column of a word's k-th nibble
Indices = npt.NDArray[np.int64]


def compressed(name: str, tensors: Mapping[str, PlainTensor], bits: int | None) -> QuantizedTensor:
    """A pack-quantized weight of compressed-tensors.

    Args:
        name: of the weight.
        tensors: packed (out, words), scale (out, groups), shape (2,), and where there are any
            zero_point (words, groups) and g_idx (in,).
        bits: as the config says.

    Raises:
        CheckpointError: a part is missing or does not fit.
    """
    parts = Parts(name, "compressed-tensors", tensors)
    packed, scale = parts.get("packed", "I32", dimensions=2), parts.get("scale", *FLOATS)
    rows, columns = (int(n) for n in read_whole(parts.shaped("shape", (2,), "I64", "I32")))
    if bits not in (2, 4, 8) or packed.shape != (rows, -(-columns * bits // WORD)):
        raise parts.wrong(
            f"is {(rows, columns)} with words {packed.shape}", f"words of {bits} bits (2, 4 or 8)"
        )
    groups = scale.shape[1] if len(scale.shape) == 2 else 1
    if scale.shape[:1] not in ((rows,), (1,)) or groups < 1 or columns % groups:
        raise parts.wrong(f"is {(rows, columns)} with scales {scale.shape}", "groups of columns")
    if "zero_point" in tensors:
        parts.shaped("zero_point", (-(-rows * bits // WORD), groups), "I32")
    group_of = _groups(parts, columns, columns // groups, groups)
    opened = partial(_open_compressed, parts, rows, columns, bits, group_of)
    return QuantizedTensor(name, f"INT{bits}", (rows, columns), None, tensors, opened)


def gptq(
    name: str, tensors: Mapping[str, PlainTensor], bits: int | None, first_version: bool
) -> QuantizedTensor:
    """A weight of GPTQ: qweight (in·bits/32, out), qzeros, scales (groups, out), g_idx (in,).

    Raises:
        CheckpointError: a part is missing or does not fit.
    """
    parts = Parts(name, "GPTQ", tensors)
    words, scale = parts.get("qweight", "I32", dimensions=2), parts.get("scales", *FLOATS)
    groups, outputs = scale.shape if len(scale.shape) == 2 else (0, 0)
    if bits not in (2, 4, 8) or not groups or words.shape[1] != outputs:
        raise parts.wrong(f"has {bits} bits, qweight {words.shape}, scales {scale.shape}",
                          "2, 4 or 8 bits, (in·bits/32, out) and (groups, out)")  # fmt: skip
    inputs = words.shape[0] * WORD // bits
    parts.shaped("qzeros", (groups, outputs * bits // WORD), "I32")
    group_of = _groups(parts, inputs, -(-inputs // groups), groups)
    opened = partial(_open_gptq, parts, bits, outputs, group_of, first_version)
    return QuantizedTensor(name, f"GPTQ{bits}", (inputs, outputs), True, tensors, opened)


def awq(name: str, tensors: Mapping[str, PlainTensor]) -> QuantizedTensor:
    """A weight of AWQ, gemm: qweight (in, out/8), qzeros (groups, out/8), scales (groups, out).

    Raises:
        CheckpointError: a part is missing or does not fit.
    """
    parts = Parts(name, "AWQ", tensors)
    words, scale = parts.get("qweight", "I32", dimensions=2), parts.get("scales", *FLOATS)
    inputs, outputs = words.shape[0], words.shape[1] * 8
    if len(scale.shape) != 2 or scale.shape[1] != outputs or inputs % scale.shape[0]:
        raise parts.wrong(f"has qweight {words.shape}, scales {scale.shape}", "(groups, out)")
    parts.shaped("qzeros", (scale.shape[0], words.shape[1]), "I32")
    opened = partial(_open_awq, parts, outputs)
    return QuantizedTensor(name, "AWQ4", (inputs, outputs), True, tensors, opened)


def _groups(parts: Parts, inputs: int, size: int, groups: int) -> Indices:
    """The group of every input: as `g_idx` says, or so many together."""
    if "g_idx" not in parts.tensors:
        return np.arange(inputs) // size
    stored = read_whole(parts.shaped("g_idx", (inputs,), "I32", "I64")).astype(np.int64)
    if stored.min(initial=0) < 0:  # compressed-tensors writes −1 for "as they come"
        return np.arange(inputs) // size
    if stored.max(initial=0) >= groups:
        raise parts.wrong(f"has group {stored.max()} in g_idx", f"groups below {groups}")
    return stored


def _unpack(words: Array, bits: int, count: int, axis: int) -> Array:
    """The integers in words, along an axis, lowest bits first."""
    shifts = np.arange(0, WORD, bits, dtype=np.uint32)
    wide = (words.view(np.uint32)[..., None] >> shifts) & np.uint32((1 << bits) - 1)
    if axis == 1:
        return wide.reshape(words.shape[0], -1)[:, :count]
    return wide.swapaxes(1, 2).reshape(-1, words.shape[1])[:count]


@contextmanager
def _open_compressed(
    parts: Parts, rows: int, columns: int, bits: int, group_of: Indices
) -> Iterator["_Compressed"]:
    scale = parts.numbers("scale").reshape(parts.tensors["scale"].shape[0], -1)
    zero = np.zeros((1, 1), np.float32)
    if "zero_point" in parts.tensors:
        stored = _unpack(read_whole(parts.tensors["zero_point"]), bits, rows, axis=0)
        zero = stored.astype(np.float32) - (1 << (bits - 1))
    with open_elements(parts.tensors["packed"]) as words:
        yield _Compressed(words, bits, columns, np.broadcast_to(scale, (rows, scale.shape[1])),
                          np.broadcast_to(zero, (rows, scale.shape[1])), group_of)  # fmt: skip


@dataclass(frozen=True)
class _Compressed:
    words: Elements
    bits: int
    columns: int
    scale: Array
    zero: Array
    group_of: Indices

    def rows(self, plane: int, rows: slice) -> Array:
        width = -(-self.columns * self.bits // WORD)
        stored = np.empty((rows.stop - rows.start, width), np.int32)
        self.words.fill(stored.reshape(-1), rows.start * width)
        numbers = _unpack(stored, self.bits, self.columns, axis=1).astype(np.float32)
        numbers -= 1 << (self.bits - 1)
        numbers -= self.zero[rows][:, self.group_of]
        numbers *= self.scale[rows][:, self.group_of]
        return numbers


@contextmanager
def _open_gptq(
    parts: Parts, bits: int, outputs: int, group_of: Indices, first_version: bool
) -> Iterator["_Gptq"]:
    zero = _unpack(read_whole(parts.tensors["qzeros"]), bits, outputs, axis=1)
    if first_version:
        zero = (zero + 1) & ((1 << bits) - 1)  # a zero of 0 was stored as −1
    with open_elements(parts.tensors["qweight"]) as words:
        yield _Gptq(words, bits, outputs, _scales(parts), zero.astype(np.float32), group_of)


@dataclass(frozen=True)
class _Gptq:
    words: Elements
    bits: int
    outputs: int
    scale: Array
    zero: Array
    group_of: Indices

    def rows(self, plane: int, rows: slice) -> Array:
        each = WORD // self.bits
        first, last = rows.start // each, -(-rows.stop // each)
        stored = np.empty((last - first, self.outputs), np.int32)
        self.words.fill(stored.reshape(-1), first * self.outputs)
        skip = rows.start - first * each
        unpacked = _unpack(stored, self.bits, skip + rows.stop - rows.start, axis=0)
        numbers = unpacked[skip:].astype(np.float32)
        group = self.group_of[rows]
        numbers -= self.zero[group]
        numbers *= self.scale[group]
        return np.asarray(numbers)


@contextmanager
def _open_awq(parts: Parts, outputs: int) -> Iterator["_Awq"]:
    zero = _awq_columns(read_whole(parts.tensors["qzeros"])).astype(np.float32)
    inputs = parts.tensors["qweight"].shape[0]
    with open_elements(parts.tensors["qweight"]) as words:
        yield _Awq(words, outputs, _scales(parts), zero, inputs // len(zero))


@dataclass(frozen=True)
class _Awq:
    words: Elements
    outputs: int
    scale: Array
    zero: Array
    group: int  # inputs that share a scale

    def rows(self, plane: int, rows: slice) -> Array:
        width = self.outputs // 8
        stored = np.empty((rows.stop - rows.start, width), np.int32)
        self.words.fill(stored.reshape(-1), rows.start * width)
        numbers = _awq_columns(stored).astype(np.float32)
        group = np.arange(rows.start, rows.stop) // self.group
        numbers -= self.zero[group]
        numbers *= self.scale[group]
        return numbers


def _awq_columns(words: Array) -> Array:
    nibbles = _unpack(words, 4, words.shape[1] * 8, axis=1).reshape(words.shape[0], -1, 8)
    ordered = np.empty_like(nibbles)
    ordered[:, :, list(AWQ_ORDER)] = nibbles
    return ordered.reshape(words.shape[0], -1)


def _scales(parts: Parts) -> Array:
    stored = parts.tensors["scales"]
    return widen(read_whole(stored)).astype(np.float32).reshape(stored.shape)
