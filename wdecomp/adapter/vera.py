"""VeRA: two vectors a module, and two frozen random matrices that all modules share.

ΔW = diag(b) B diag(d) A        arXiv:2310.11454, Eq. (2)
"""

from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from typing import ClassVar

import numpy as np

from wdecomp.adapter.change import fit, numbers
from wdecomp.adapter.low_rank import Product
from wdecomp.checkpoint import Matrix, PlainTensor
from wdecomp.dtypes import Array


@dataclass(frozen=True)
class Vera:
    """lambda_b: (out,), lambda_d: (r,); the frozen matrices are shared, and saved or not.

    a: (r, widest input), b: (widest output, r), or None: then they are drawn again from the key.
    widest: (outputs, inputs) of the widest modules that share the matrices.
    """

    lambda_b: PlainTensor
    lambda_d: PlainTensor
    a: PlainTensor | None
    b: PlainTensor | None
    key: int
    widest: tuple[int, int] | None = None
    scaling: ClassVar[None] = None
    formula: ClassVar[str] = "W0 + diag(b) B diag(d) A"

    @property
    def rank(self) -> int:
        """Of the shared matrices."""
        return self.lambda_d.shape[0]

    @property
    def shape(self) -> tuple[int, None]:
        """(outputs, any inputs)."""
        return self.lambda_b.shape[0], None

    @property
    def tensors(self) -> tuple[PlainTensor, ...]:
        """The two vectors, and the shared matrices if they are saved."""
        return self.lambda_b, self.lambda_d, *(t for t in (self.a, self.b) if t)

    def fits(self, shape: tuple[int, int]) -> bool:
        """Whether the shared matrices are as wide as a weight of this shape."""
        wide = self.a is None or self.a.shape[1] >= shape[1]
        return wide and fit(self.shape, shape)

    def load(self, weight: Matrix) -> Product:
        """The product diag(b) B · diag(d) A, with as much of A and B as the weight is wide."""
        outputs, inputs = weight.shape
        if self.a is not None and self.b is not None:
            a, b = numbers(self.a), numbers(self.b)
        else:
            a, b = frozen_projections(self.key, self.rank, self.widest or weight.shape)
        left = numbers(self.lambda_b)[:, None] * b[:outputs]
        return Product(left, numbers(self.lambda_d)[:, None] * a[:, :inputs])


@lru_cache(maxsize=2)
def frozen_projections(key: int, rank: int, widest: tuple[int, int]) -> tuple[Array, Array]:
    """VeRA's A (r, inputs) and B (outputs, r), drawn as PEFT draws them from its projection key.

    Kaiming-uniform: U(−√6/√fan, √6/√fan), fan the row length.
    torch's CPU generator is the Mersenne Twister of numpy's RandomState; it takes the lowest 24
    bits of each word.
    """
    outputs, inputs = widest
    random = np.random.RandomState(key & 0xFFFFFFFF)

    def kaiming(rows: int, columns: int) -> Array:
        words = random.randint(0, 1 << 32, rows * columns, np.uint32)
        unit = (words & 0xFFFFFF).astype(np.float32) * np.float32(2.0**-24)
        bound = np.float32(sqrt(6.0) / sqrt(columns))
        return (unit * (2 * bound) - bound).reshape(rows, columns)

    return kaiming(rank, inputs), kaiming(outputs, rank)
