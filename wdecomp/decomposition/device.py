"""The running sums of one matrix pair on a torch device, fed block by block from the host.

The same sums as the compiled kernel's, over (outputs, inputs) blocks and along both axes,

    a = Σ w0²        b = Σ d·w0        c = Σ d²        with d = t − share·w0

in float64. Blocks cross the bus as narrow as they are stored and are widened on the device. On
CUDA, one stream copies while another computes:

    host     fills a slot's pinned memory          once the slot's last copy is done (`copied`)
    copying  pinned memory → the slot's memory there   once that has been widened (`used`)
    computing  widens it, adds to the sums           once the copy is done (`copied`)

torch is imported inside functions only: whoever measures on the CPU need not have it.
"""

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import cycle
from threading import local
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from wdecomp.decomposition.plain import PlainSums
from wdecomp.decomposition.products import LowRankBlock, as_array
from wdecomp.decomposition.sums import SharedSums, Sums
from wdecomp.dtypes import Array
from wdecomp.errors import DeviceError, MissingExtraError

if TYPE_CHECKING:
    from torch import Tensor

RING = 3  # slots: one is filled while one is copied and one is widened
CUDA = re.compile(r"cuda(?::(0|[1-9][0-9]*))?")
WIDENED = {"uint16": "bfloat16", "int16": "float16", "float32": "float32", "float64": "float64"}


def require_device(name: str) -> None:
    """Says in one line why sums cannot be formed on a device.

    "cpu", the compiled kernel, and "numpy", the same without it, can always be had: no torch.

    Raises:
        DeviceError: the name is no device, or there is no such device, or it has no float64.
        MissingExtraError: torch is not installed.
    """
    if name in ("cpu", "numpy"):
        return
    if re.fullmatch(r"mps(:[0-9]+)?", name):
        raise DeviceError(
            f"--device {name}: has no float64, in which the sums are formed. Use --device cpu."
        )
    found = CUDA.fullmatch(name)
    if not found:
        raise DeviceError(
            f"--device {name}: is no device, expected cpu, numpy, cuda or cuda:N. Use --device cpu."
        )
    there = _cuda_devices(name)
    if there == 0:
        raise DeviceError(f"--device {name}: torch sees no CUDA device. Use --device cpu.")
    if int(found[1] or 0) >= there:
        raise DeviceError(
            f"--device {name}: torch sees no such device, expected one of cuda:0 to "
            f"cuda:{there - 1}. Use one of these or --device cpu."
        )


def _cuda_devices(name: str) -> int:
    try:
        import torch
    except ImportError:
        raise MissingExtraError(
            f"--device {name}: torch is not installed, a device other than cpu needs it. "
            "Install it: pip install 'torch>=2.6', or use --device cpu."
        ) from None
    with warnings.catch_warnings():  # of a driver that is too old: then there is no device
        warnings.simplefilter("ignore")
        return torch.cuda.device_count() if torch.cuda.is_available() else 0


class _Lane(Protocol):
    """The way of blocks to one device."""

    def computing(self) -> AbstractContextManager[Any]:
        """Where all arithmetic is to be queued."""
        ...

    def widened(self, block: Array) -> "Tensor":
        """The numbers of a block, (height, width), in float64 and in memory of their own.

        The block has been read when this returns.
        """
        ...


class _HostLane:
    """The torch device "cpu": nothing to overlap."""

    def computing(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def widened(self, block: Array) -> "Tensor":
        import torch

        staged = torch.empty(block.nbytes, dtype=torch.uint8)
        _fill(staged, block)
        return _numbers(staged, block)


class _CudaLane:
    """Two streams, and a ring of slots between them."""

    def __init__(self, device: str) -> None:
        import torch

        stream: Any = torch.cuda.Stream
        self.device = device
        self.copies, self.computes = stream(device), stream(device)
        self._ring = cycle([_Slot(self) for _ in range(RING)])

    def computing(self) -> AbstractContextManager[Any]:
        from torch import cuda

        return cuda.stream(self.computes)

    def widened(self, block: Array) -> "Tensor":
        return next(self._ring).widened(block)


class _Slot:
    """Pinned memory, as much on the device, and two events that guard them.

    copied: the last copy is done: the host may write the pinned memory, the device may read.
    used: the last widening is done: the memory on the device may be written.
    """

    def __init__(self, lane: _CudaLane) -> None:
        import torch

        event: Any = torch.cuda.Event
        self._lane = lane
        # The host sleeps while it waits: other threads want the core for reading and decoding.
        self._copied, self._used = event(blocking=True), event()
        self._pinned = self._there = torch.empty(0, dtype=torch.uint8)

    def widened(self, block: Array) -> "Tensor":
        from torch import cuda

        copies, computes, size = self._lane.copies, self._lane.computes, block.nbytes
        self._copied.synchronize()
        with cuda.stream(copies):
            copies.wait_event(self._used)
            self._grow(size)
            pinned, there = self._pinned[:size], self._there[:size]
            _fill(pinned, block)
            there.copy_(pinned, non_blocking=True)
            self._copied.record(copies)
        with cuda.stream(computes):
            computes.wait_event(self._copied)
            wide = _numbers(there, block)
            self._used.record(computes)
        return wide

    def _grow(self, size: int) -> None:
        """Makes room, on the stream that copies and after it waited for the last widening.

        torch hands the memory that is let go of here to whoever next asks for some on this
        stream, and so behind that wait.
        """
        import torch

        if len(self._pinned) < size:
            self._pinned = torch.empty(size, dtype=torch.uint8, pin_memory=True)
            self._there = torch.empty(size, dtype=torch.uint8, device=self._lane.device)


def _fill(staged: "Tensor", block: Array) -> None:
    """Copies a block's bytes, row by row; torch itself would warn of read-only arrays."""
    np.copyto(staged.numpy().view(block.dtype).reshape(block.shape), block)


def _numbers(staged: "Tensor", block: Array) -> "Tensor":
    """Staged bytes, (block.nbytes,), as float64 numbers in the block's shape, always a copy."""
    import torch

    stored = staged.view(getattr(torch, WIDENED[block.dtype.name])).view(block.shape)
    return stored.to(torch.float64, copy=True)


class Staging:
    """Takes blocks to one device, for all the sums of one pass; for one thread alone.

    While `holding` a block of the base, the base is there and need not be taken again for every
    run that is measured against it.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self._lane: _Lane = _HostLane() if device == "cpu" else _CudaLane(device)
        self._held: tuple[Array, Tensor] | None = None

    def computing(self) -> AbstractContextManager[Any]:
        """Where all arithmetic on what `base` and `wide` return is to be queued."""
        return self._lane.computing()

    @contextmanager
    def holding(self, block: Array) -> Iterator[None]:
        """Keeps a block of the base on the device, (outputs, inputs), as stored.

        Until the end, what lies in the array must stay as it is if it is given to `add`.
        """
        self._held = block, self.wide(block)
        try:
            yield
        finally:
            self._held = None

    def base(self, block: Array) -> "Tensor":
        """A block in float64, (outputs, inputs), not to be written: it may be the held one's."""
        if self._held is not None and _begins(self._held[0], block):
            return self._held[1][: block.shape[0], : block.shape[1]]
        return self.wide(block)

    def wide(self, block: Array) -> "Tensor":
        """A block in float64, (outputs, inputs), in memory of its own."""
        if abs(block.strides[0]) >= abs(block.strides[1]):
            return self._lane.widened(block)
        return self._lane.widened(block.T).T  # along the memory


def _begins(held: Array, block: Array) -> bool:
    """Whether a block is the upper left part of the very array that is held."""
    return (
        held.ctypes.data == block.ctypes.data
        and (held.dtype, held.strides) == (block.dtype, block.strides)
        and all(part <= all_ for part, all_ in zip(block.shape, held.shape, strict=True))
    )


class DeviceSums:
    """(a, b, c) of every column of one matrix pair, along both axes, kept on a device."""

    def __init__(self, shape: tuple[int, int], device: str | Staging) -> None:
        """Sums of a matrix pair of (outputs, inputs) before its first block.

        Args:
            shape: (outputs, inputs) of the whole matrix.
            device: one that `require_device` passed, or the staging that several sums share.
        """
        import torch

        self._staging = Staging(device) if isinstance(device, str) else device
        with self._staging.computing():
            self._output, self._input = (
                torch.zeros(3, size, dtype=torch.float64, device=self._staging.device)
                for size in shape
            )

    def add(self, base: Array, second: Array, share: float, outputs: slice, inputs: slice) -> None:
        """Adds one block; both arrays have been read when this returns.

        Args:
            base: (outputs, inputs) of the block, as stored.
            second: likewise; the tuned weights (share 1) or their change (share 0).
            share: how much of the base is in `second`.
            outputs: where the block lies in the matrix.
            inputs: likewise.
        """
        w0, t = self._staging.base(base), self._staging.wide(second)
        with self._staging.computing():
            d = t.sub_(w0, alpha=share)
            _add_products(w0, d, self._output[:, outputs], self._input[:, inputs])

    def total(self) -> Sums:
        """What has been added up so far, once the device is done with it."""
        with self._staging.computing():
            return Sums(*(sums.cpu().numpy().copy() for sums in (self._output, self._input)))


class SharedDeviceSums:
    """As `SharedSums`, on a device: the base crosses the bus once for all pairs."""

    def __init__(self, shape: tuple[int, int], count: int, device: str) -> None:
        """Sums of so many matrix pairs of (outputs, inputs) before their first block."""
        self._staging = _staging(device)
        self._sums = [DeviceSums(shape, self._staging) for _ in range(count)]

    def add(
        self,
        base: Array,
        seconds: Sequence[Array | LowRankBlock],
        shares: Sequence[float],
        outputs: slice,
        inputs: slice,
    ) -> None:
        """Adds one block; arguments as those of `SharedSums.add`."""
        with self._staging.holding(base):
            for sums, second, share in zip(self._sums, seconds, shares, strict=True):
                sums.add(base, as_array(second), share, outputs, inputs)

    def total(self) -> list[Sums]:
        """The sums of every pair."""
        return [sums.total() for sums in self._sums]


def sums_on(device: str, shape: tuple[int, int], count: int) -> SharedSums | SharedDeviceSums:
    """Sums of so many pairs: compiled ("cpu"), in plain numpy ("numpy"), or on a torch device."""
    if device in ("cpu", "numpy"):
        return SharedSums(shape, count) if device == "cpu" else PlainSums(shape, count)
    return SharedDeviceSums(shape, count, device)


_of_thread = local()


def _staging(device: str) -> Staging:
    """This thread's: pinned memory and streams are dear to make."""
    known: dict[str, Staging] = _of_thread.__dict__
    if device not in known:
        known[device] = Staging(device)
    return known[device]


def _add_products(w0: "Tensor", d: "Tensor", output: "Tensor", input_: "Tensor") -> None:
    """Adds Σ w0², Σ d·w0 and Σ d² of one block, in place.

    Args:
        w0: (outputs, inputs) in float64.
        d: likewise.
        output: (3, outputs), sums over the inputs.
        input_: (3, inputs), sums over the outputs.
    """
    import torch

    product = torch.empty_like(d)  # one for all three: a block in float64 is four of BF16
    for k, (x, y) in enumerate(((w0, w0), (d, w0), (d, d))):
        torch.mul(x, y, out=product)
        output[k].add_(product.sum(1))
        input_[k].add_(product.sum(0))
