"""MXFP4 stacks of experts, as gpt-oss has them.

    W[e, o, 32·g + k] = E2M1[q]·2^(scale[e, o, g] − 127), the low nibble of a byte first

Rows are outputs here, while the unquantised parameter of the same name is (expert, input, output).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np

from wdecomp.checkpoint.elements import Elements, PlainTensor, open_elements
from wdecomp.checkpoint.quantized.parts import Parts
from wdecomp.checkpoint.quantized.tensor import QuantizedTensor
from wdecomp.dtypes import Array

GROUP_BYTES = 16  # 32 numbers
POSITIVE = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
CODE = np.array([*POSITIVE, *(-n for n in POSITIVE)], np.float32)


def mxfp4(name: str, tensors: Mapping[str, PlainTensor]) -> QuantizedTensor:
    """A stack: blocks (experts, out, in/32, 16), scales (experts, out, in/32).

    Raises:
        CheckpointError: a part is missing or does not fit.
    """
    parts = Parts(name, "MXFP4", tensors)
    blocks = parts.get("blocks", "U8", dimensions=4)
    if blocks.shape[3] != GROUP_BYTES:
        raise parts.wrong(f"has blocks of shape {blocks.shape}", "16 bytes for each group of 32")
    parts.shaped("scales", blocks.shape[:3], "U8")
    experts, outputs, groups, _ = blocks.shape
    shape = experts, outputs, groups * 2 * GROUP_BYTES
    return QuantizedTensor(
        name, "MXFP4", shape, False, tensors, partial(_open, parts, outputs, groups)
    )


@contextmanager
def _open(parts: Parts, outputs: int, groups: int) -> Iterator["_Mxfp4"]:
    byte = np.arange(256)
    pairs = np.stack([CODE[byte & 15], CODE[byte >> 4]], axis=1)
    with (
        open_elements(parts.tensors["blocks"]) as blocks,
        open_elements(parts.tensors["scales"]) as scales,
    ):
        yield _Mxfp4(blocks, scales, pairs, outputs, groups)


@dataclass(frozen=True)
class _Mxfp4:
    blocks: Elements
    scales: Elements
    pairs: Array  # (256, 2): the two numbers of a byte
    outputs: int
    groups: int

    def rows(self, plane: int, rows: slice) -> Array:
        first, height = plane * self.outputs + rows.start, rows.stop - rows.start
        stored = np.empty((height, self.groups, GROUP_BYTES), np.uint8)
        self.blocks.fill(stored.reshape(-1), first * self.groups * GROUP_BYTES)
        exponent = np.empty((height, self.groups), np.uint8)
        self.scales.fill(exponent.reshape(-1), first * self.groups)
        numbers = self.pairs[stored].reshape(height, self.groups, -1)
        numbers = np.ldexp(numbers, exponent[:, :, None].astype(np.int32) - 127)
        return np.asarray(numbers.reshape(height, -1))
