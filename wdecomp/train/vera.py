"""VeRA's frozen random matrices, which all its layers share (arXiv 2310.11454)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Projections:
    """A (rank, widest input) and B (widest output, rank); a layer takes as much as it is wide.

    They are drawn again from the key wherever they are needed, as PEFT draws them.
    """

    a: Tensor
    b: Tensor
    key: int

    @classmethod
    def drawn(cls, rank: int, shapes: list[tuple[int, int]], key: int) -> "Projections":
        """For layers of these shapes (out, in): U(−β, β) with β = √6/√columns, A first, then B."""
        generator = torch.Generator("cpu").manual_seed(key)
        outputs, inputs = (max(shape[i] for shape in shapes) for i in (0, 1))

        def uniform(rows: int, columns: int) -> Tensor:
            bound = math.sqrt(3.0) * math.sqrt(2.0) / math.sqrt(columns)
            return torch.empty(rows, columns).uniform_(-bound, bound, generator=generator)

        return cls(uniform(rank, inputs), uniform(outputs, rank), key)

    def of(self, outputs: int, inputs: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """A (rank, inputs) and B (outputs, rank) of one layer, where and as `like` is."""
        a, b = self.a[:, :inputs], self.b[:outputs]
        return a.to(like), b.to(like)
