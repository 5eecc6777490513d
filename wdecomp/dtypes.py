"""How numbers are stored, and the array types under which they are handed on.

numpy has no bfloat16 and no float8, so the bytes travel as integers of the same width and every
array type stands for one stored dtype: uint16 is BF16, int16 is F16 (see the compiled kernel).
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]  # one block, as stored
Floats = npt.NDArray[np.float64]  # results

# Bits per element of every dtype that safetensors 0.8 defines.
BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip

# The floating-point weights that can be read, and the array type of their bytes.
STORED_AS: dict[str, npt.DTypeLike] = {
    "BF16": np.uint16,
    "F16": np.int16,
    "F32": np.float32,
    "F64": np.float64,
}

# The array type of the bytes of every dtype that can be read, those of codes and scales included.
RAW: dict[str, npt.DTypeLike] = STORED_AS | {
    "BOOL": np.uint8, "U8": np.uint8, "I8": np.int8,
    "F8_E4M3": np.uint8, "F8_E5M2": np.uint8, "F8_E8M0": np.uint8,
    "U16": np.uint16, "U32": np.uint32, "U64": np.uint64,
    "I16": np.int16, "I32": np.int32, "I64": np.int64,
}  # fmt: skip

# Bits of the significand, the leading one included: rounding to nearest moves a number by at most
# half a unit in the last of them.
PRECISION = {"BF16": 8, "F16": 11, "F32": 24, "F64": 53}


def widen(stored: Array) -> Array:
    """The numbers of a block in float32 (float64 stays as it is).

    >>> widen(np.array([0x3FC0], dtype=np.uint16)).tolist()
    [1.5]
    """
    if stored.dtype == np.uint16:
        return (stored.astype(np.uint32) << 16).view(np.float32)
    if stored.dtype == np.int16:
        return stored.view(np.float16).astype(np.float32)
    return stored
