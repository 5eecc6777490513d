"""The stored tensors of one quantised weight, checked before they are decoded."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from wdecomp.checkpoint.elements import PlainTensor, read_whole
from wdecomp.dtypes import STORED_AS, Array, widen
from wdecomp.errors import CheckpointError

FLOATS = tuple(STORED_AS)


@dataclass(frozen=True)
class Parts:
    """What belongs to one weight, by role. All methods raise CheckpointError."""

    name: str  # of the weight
    scheme: str  # for messages: "bitsandbytes NF4"
    tensors: Mapping[str, PlainTensor]

    def get(self, role: str, *dtypes: str, dimensions: int | None = None) -> PlainTensor:
        """The tensor of a role, of one of these dtypes."""
        tensor = self.tensors.get(role)
        if tensor is None:
            raise self.wrong(f"has no {role}", "all parts. The file is incomplete")
        if tensor.dtype not in dtypes or dimensions not in (None, len(tensor.shape)):
            rank = "" if dimensions is None else f"{dimensions}-D "
            raise self.wrong(
                f"has {role} {tensor.dtype} of shape {tensor.shape}", f"{rank}{' or '.join(dtypes)}"
            )
        return tensor

    def numbers(self, role: str, count: int | None = None) -> Array:
        """A small floating-point part, flat, in float32, of so many numbers."""
        tensor = self.get(role, *FLOATS)
        if count is not None and prod(tensor.shape) != count:
            raise self.wrong(f"has {role} of shape {tensor.shape}", f"{count} numbers")
        return widen(read_whole(tensor)).astype(np.float32).reshape(-1)

    def shaped(self, role: str, shape: tuple[int, ...], *dtypes: str) -> PlainTensor:
        """A part that must have this shape."""
        tensor = self.get(role, *dtypes)
        if tensor.shape != shape:
            raise self.wrong(f"has {role} of shape {tensor.shape}", str(shape))
        return tensor

    def wrong(self, found: str, expected: str) -> CheckpointError:
        """The error for what is not as the scheme has it."""
        file = next(iter(self.tensors.values())).file
        return CheckpointError(f"{file}: {self.name}, {self.scheme}: {found}, expected {expected}.")
