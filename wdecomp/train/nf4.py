"""Frozen layers in NF4, the four bits of QLoRA (arXiv 2305.14314), held as plain tensors.

The weight, flattened, is cut into blocks of 64. A block keeps its largest absolute value, and for
each number the nearest of 16 shares of it:

    w[i] ≈ CODE[q[i]]·absmax[i // 64]                            two q in a byte, the first one high

Double quantisation keeps absmax in a byte each, by blocks of 256:

    absmax[j] ≈ SCALES[p[j]]·nested_absmax[j // 256] + nested_offset

Codes, scales and files are those of bitsandbytes, which is not needed. Its layers are not used:
on some CPUs they repack the weight in place, and it then decodes to other numbers.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wdecomp.errors import TrainingError

BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)  # what bitsandbytes opens
NESTED = 256  # scales in a block of scales
TINY = 1e-38  # for a block of zeros
# fmt: off
CODE = torch.tensor([  # quantiles of the normal distribution, with a zero, between −1 and 1
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
])
# fmt: on
# Of each byte the two numbers, looked up as one of 64 bits: four times as fast as two by two.
PAIRS = torch.cartesian_prod(CODE, CODE).view(torch.int64).view(-1)


def _scales() -> Tensor:
    """256 numbers from −1 to 1 (arXiv 2110.02861): 2^i in each ± [0.1, 1]·10^(i−6), 0 and 1."""
    size = []
    for i in range(7):
        edges = torch.linspace(0.1, 1, 2**i + 1)
        size.append(10.0 ** (i - 6) * ((edges[:-1] + edges[1:]) / 2))
    sizes = torch.cat(size)
    return torch.cat([-sizes, torch.zeros(1), sizes, torch.ones(1)]).sort().values


SCALES = _scales()


@dataclass(frozen=True)
class Nf4:
    """A weight of n numbers in NF4.

    Attributes:
        codes: (⌈n/2⌉, 1) uint8, two codes each.
        absmax: (⌈n/block⌉,) float32, or uint8 with double quantisation.
        nested_absmax, nested_offset: (⌈⌈n/block⌉/256⌉,) and (1,) float32, or None and None.
        shape: of the weight.
        block: numbers that share a scale.
    """

    codes: Tensor
    absmax: Tensor
    nested_absmax: Tensor | None
    nested_offset: Tensor | None
    shape: tuple[int, ...]
    block: int


def encode_nf4(weight: Tensor, double_quant: bool = True, blocksize: int = 64) -> Nf4:
    """The weight in NF4, to the bit as bitsandbytes 0.50 stores it on a CPU.

    Args:
        weight: of any shape and floating dtype; it is rounded to float32 first.
        double_quant: whether scales are quantised, too: 4.127 bits a number instead of 4.5.
        blocksize: numbers that share a scale.

    Raises:
        TrainingError: bitsandbytes has no such blocks.
    """
    if blocksize not in BLOCKS:
        raise TrainingError(f"blocksize: is {blocksize}, expected one of {BLOCKS}.")
    flat = weight.detach().float().reshape(-1)
    absmax, shares = _shares(flat, blocksize)
    if rest := flat.numel() % blocksize:  # bitsandbytes divides here, and multiplies elsewhere
        absmax[-1:].clamp_min_(TINY)
        shares[-rest:] = flat[-rest:] / absmax[-1]
    q = _nearest(shares, CODE)
    q = F.pad(q, (0, q.numel() % 2), value=CODE.tolist().index(0))
    codes = (q[::2] << 4 | q[1::2]).unsqueeze(1)
    shape = tuple(weight.shape)
    if not double_quant:
        return Nf4(codes, absmax, None, None, shape, blocksize)
    offset = absmax.mean()
    nested, shares = _shares(absmax - offset, NESTED)
    return Nf4(codes, _nested(shares, nested), nested, offset.view(1), shape, blocksize)


def _nested(shares: Tensor, nested_absmax: Tensor) -> Tensor:
    """The codes of scales, as bitsandbytes finds them on a CPU: of shares in 65535 steps.

    On a GPU it takes the nearest code, which in one of a thousand cases is the next one. Where
    nested_absmax is 0 no code matters.
    """
    steps = ((shares + 1) * 0.5 * 65535 + 0.5).int()
    codes = _nearest(2.0 * steps / 65535 - 1, SCALES)
    return codes.masked_fill(_spread(nested_absmax, codes.numel()) == 0, 0)


def _shares(flat: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The scale of every block, and every number as a share of it, in [−1, 1]."""
    blocks = F.pad(flat, (0, -flat.numel() % size)).view(-1, size)
    absmax = blocks.abs().amax(1)
    shares = blocks * (1 / absmax.clamp_min(TINY)).unsqueeze(1)
    return absmax, shares.clamp(-1, 1).view(-1)[: flat.numel()]


def _nearest(shares: Tensor, table: Tensor) -> Tensor:
    """The place in the table of what is nearest, the first of two."""
    table = table.to(shares.device)
    middles = (table[:-1] + table[1:]) / 2
    return torch.bucketize(shares, middles, out_int32=True).to(torch.uint8)


def decode_nf4(stored: Nf4, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight that is stored, by products in float32, rounded to a dtype.

    Raises:
        TrainingError: a cast has rounded the scales.
    """
    count = prod(stored.shape)
    pairs = PAIRS.to(stored.codes.device).index_select(0, stored.codes.view(-1).int())
    numbers, scales = pairs.view(torch.float32)[:count], _absmax(stored)
    whole = count - count % stored.block
    numbers[:whole].view(-1, stored.block).mul_(scales[: whole // stored.block].unsqueeze(1))
    numbers[whole:].mul_(scales[-1])
    return numbers.view(stored.shape).to(dtype)


def _absmax(stored: Nf4) -> Tensor:
    absmax, nested, offset = stored.absmax, stored.nested_absmax, stored.nested_offset
    floats = [each for each in (absmax, nested, offset) if each is not None]
    wrong = [each.dtype for each in floats if each.dtype not in (torch.float32, torch.uint8)]
    if wrong:
        raise TrainingError(
            f"NF4: its scales are {wrong[0]}, torch.float32 was expected. "
            "Change the model's dtype before it is quantised."
        )
    if nested is None or offset is None:
        return absmax
    shares = SCALES.to(absmax.device).index_select(0, absmax.int())
    return shares * _spread(nested, absmax.numel()) + offset


def _spread(nested: Tensor, count: int) -> Tensor:
    """Of each scale the scale of its block."""
    return nested.repeat_interleave(NESTED)[:count]


def nf4_rounded(weight: Tensor, double_quant: bool = True, blocksize: int = 64) -> Tensor:
    """The weight after it has been stored in NF4, in its own dtype.

    Raises:
        TrainingError: bitsandbytes has no such blocks.
    """
    return decode_nf4(encode_nf4(weight, double_quant, blocksize), weight.dtype)


class Nf4Linear(nn.Module):
    """`nn.Linear` with a frozen weight in NF4, which is decoded whenever it is used.

    Codes and scales are parameters that are never trained, so that they can be sharded and moved.

    Attributes:
        in_features, out_features, bias: as `nn.Linear` has them.
        dtype: that the weight is decoded to.
        codes, absmax, nested_absmax, nested_offset, block: see `Nf4`.
    """

    codes: Tensor
    absmax: Tensor
    nested_absmax: Tensor | None
    nested_offset: Tensor | None
    bias: Tensor | None

    def __init__(
        self, stored: Nf4, bias: Tensor | None = None, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = stored.shape
        self.block, self.dtype = stored.block, dtype
        bias = None if bias is None else bias.detach().to(dtype)
        for name in (*PARTS, "bias"):
            tensor = bias if name == "bias" else getattr(stored, name)
            frozen = None if tensor is None else nn.Parameter(tensor, requires_grad=False)
            self.register_parameter(name, frozen)

    @property
    def stored(self) -> Nf4:
        """Codes and scales."""
        parts = (self.codes, self.absmax, self.nested_absmax, self.nested_offset)
        return Nf4(*parts, (self.out_features, self.in_features), self.block)

    @property
    def weight(self) -> Tensor:
        """W0 (out, in), decoded now."""
        weight = decode_nf4(self.stored, self.dtype)
        weight.nf4 = self  # type: ignore[attr-defined] # whoever wants to keep it can ask again
        return weight

    def forward(self, x: Tensor) -> Tensor:
        """X W0ᵀ + bias."""
        return through(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        """What print shows."""
        double = self.nested_absmax is not None
        return f"{self.in_features}, {self.out_features}, block={self.block}, double_quant={double}"


PARTS = ("codes", "absmax", "nested_absmax", "nested_offset")


def through(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """X Wᵀ + bias; a weight that was decoded from NF4 is not kept for the backward pass."""
    layer = getattr(weight, "nf4", None)
    if layer is None:
        return F.linear(x, weight, bias)
    y: Tensor = DecodedLinear.apply(x, bias, weight, layer)  # type: ignore[no-untyped-call]
    return y


class DecodedLinear(torch.autograd.Function):
    """y = x Wᵀ + bias, ∂L/∂x = ∂L/∂y W: nothing is saved, W is decoded again."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, weight: Tensor, layer: Nf4Linear
    ) -> Tensor:
        """See the class."""
        ctx.layer = layer
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> Any:
        """See the class."""
        weight: Tensor = ctx.layer.weight
        dx = gy @ weight.to(gy.dtype) if ctx.needs_input_grad[0] else None
        db = gy.reshape(-1, gy.shape[-1]).sum(0) if ctx.needs_input_grad[1] else None
        return dx, db, None, None
