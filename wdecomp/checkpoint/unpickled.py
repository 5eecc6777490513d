"""From what torch loaded to tensors of our own, and the reasons for what is none of them.

torch itself is handed in: only `pickled` imports it, and only when it is asked to.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wdecomp.checkpoint.elements import LoadedTensor
from wdecomp.dtypes import RAW, Array

NESTED = ("state_dict", "model", "module", "model_state_dict")

# Of torch's dtypes, what safetensors calls them; others cannot be read.
DTYPES = {
    "bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16",
    "uint32": "U32", "int32": "I32", "uint64": "U64", "int64": "I64",
}  # fmt: skip


def tensors_in(
    torch: Any, file: Path, value: Mapping[Any, Any]
) -> tuple[dict[str, LoadedTensor], list[tuple[str, str]]]:
    """The tensors of a loaded value, flat or one level down, and what else is in it and why not."""
    level = next((key for key in NESTED if isinstance(value.get(key), Mapping)), None)
    here = value if level is None else value[level]
    beside = [] if level is None else [key for key in value if key != level]
    left_out = [(_text(key), f"in {file.name}, beside its {level}") for key in beside]
    tensors = {}
    for key, tensor in here.items():
        reason = _why_not(torch, key, tensor)
        if reason is None:
            numbers = _numbers(torch, tensor)
            dtype, shape = _dtype(tensor), tuple(tensor.shape)
            tensors[key] = LoadedTensor(key, dtype, shape, file, numbers)
        else:
            left_out.append((_text(key), f"in {file.name}: {reason}"))
    return tensors, left_out


def _why_not(torch: Any, key: Any, tensor: Any) -> str | None:
    if not isinstance(tensor, torch.Tensor):
        return f"a {type(tensor).__name__}, no tensor"
    if not isinstance(key, str) or _text(key) != key:
        return "its name is no text"
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        return f"a tensor of layout {tensor.layout} on {tensor.device}, which cannot be read"
    if _dtype(tensor) not in RAW:
        return f"stored as {tensor.dtype}, which cannot be read"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return "its shape has more numbers than the file"
    return None


def _text(key: Any) -> str:
    """A name as it can be written; lone surrogates cannot."""
    return str(key).encode("utf-8", "backslashreplace").decode("utf-8")


def _dtype(tensor: Any) -> str:
    return DTYPES.get(str(tensor.dtype).removeprefix("torch."), "")


def _numbers(torch: Any, tensor: Any) -> Array:
    """The bits of a tensor as `RAW` types them; a view unless its rows are not in order."""
    flat = tensor.detach().resolve_neg().contiguous().reshape(-1)
    as_bytes: Array = flat.view(torch.uint8).numpy()
    return as_bytes.view(np.dtype(RAW[_dtype(tensor)]))
