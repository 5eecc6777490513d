"""The tensors of one module of an adapter, checked before they are put into records."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from wdecomp.checkpoint import PlainTensor
from wdecomp.dtypes import STORED_AS
from wdecomp.errors import AdapterError


@dataclass(frozen=True)
class Factors:
    """What an adapter holds for one module, by the last part of the key.

    All methods raise AdapterError: something is missing, or is not what it must be.
    """

    module: str
    tensors: Mapping[str, PlainTensor]
    where: str

    def __contains__(self, part: str) -> bool:
        return part in self.tensors

    def get(self, part: str, dimensions: int | None = None) -> PlainTensor:
        """A floating-point tensor that has elements, with so many dimensions."""
        tensor = self.tensors.get(part)
        if tensor is None:
            raise AdapterError(
                f"{self.where}: {self.module}.{part} is missing beside "
                f"{next(iter(self.tensors.values())).name}. It was saved incompletely."
            )
        if 0 in tensor.shape:
            raise AdapterError(
                f"{self.where}: {tensor.name} has shape {tensor.shape}: no elements. It was saved "
                "without gathering its shards (ZeRO-3, FSDP)."
            )
        if tensor.dtype not in STORED_AS or dimensions not in (None, len(tensor.shape)):
            kind = "tensor" if dimensions is None else f"{dimensions}-D tensor"
            raise AdapterError(
                f"{self.where}: {tensor.name} is {tensor.dtype} of shape {tensor.shape}, expected "
                f"a floating-point {kind}."
            )
        return tensor

    def maybe(self, part: str) -> PlainTensor | None:
        """The same where there is one."""
        return self.get(part) if part in self.tensors else None

    def vector(self, part: str, size: int, of: str) -> PlainTensor:
        """A tensor with one number for each of something."""
        tensor = self.get(part)
        if prod(tensor.shape) != size:
            raise AdapterError(
                f"{self.where}: {tensor.name} has shape {tensor.shape}, expected one number for "
                f"each of {size} {of}."
            )
        return tensor

    def pair(self, inner: str, outer: str) -> tuple[PlainTensor, PlainTensor]:
        """Factors (r, in…) and (out, r…) of one r."""
        a, b = self.get(inner), self.get(outer)
        if len(a.shape) < 2 or len(b.shape) < 2 or a.shape[0] != b.shape[1]:
            raise AdapterError(
                f"{self.where}: {self.module}: {inner} is {a.shape}, {outer} is {b.shape}, "
                "expected (r, in) and (out, r) of one r."
            )
        return a, b

    def refuse(self, found: str, expected: str) -> AdapterError:
        """The error for something else that is wrong with this module."""
        return AdapterError(f"{self.where}: {self.module}: {found}, expected {expected}.")
