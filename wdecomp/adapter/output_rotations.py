"""Updates that rotate the outputs, as LyCORIS writes them: W' = s·T·W with T near I.

ΔW = s·(T − I)·W + (s − 1)·W, with T − I formed as on the right, not by subtraction:

    Cayley     R = (I + Q)(I − Q)⁻¹, Q = X − Xᵀ      R − I = 2Q(I − Q)⁻¹
    diag-OFT   W'_k = R_kᵀ·W_k for every block k of the outputs          LyCORIS, arXiv:2309.14859
    BOFT       m stages, each mixing blocks of outputs further apart      arXiv:2311.06243
"""

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np

from wdecomp.adapter.change import Index, fit, numbers
from wdecomp.checkpoint import Matrix, PlainTensor
from wdecomp.dtypes import Array, Floats, widen


@dataclass(frozen=True)
class OutputRotation:
    """LyCORIS' diag-OFT and BOFT.

    blocks: (k, b, b), or (stages, k, b, b) for BOFT.
    rescale: (out, 1…) or None.
    constraint: ‖Q‖ is brought down to constraint·outputs; 0 for any.
    """

    blocks: PlainTensor
    rescale: PlainTensor | None
    constraint: float
    rank: ClassVar[None] = None
    scaling: ClassVar[None] = None
    formula: ClassVar[str] = "s·R·W0, R of blocks of outputs"

    @property
    def shape(self) -> tuple[int, None]:
        """(outputs, any inputs)."""
        return prod(self.blocks.shape[-3:-1]), None

    @property
    def tensors(self) -> tuple[PlainTensor, ...]:
        """The blocks, and the factors of the outputs."""
        return (self.blocks, *([self.rescale] if self.rescale is not None else []))

    def fits(self, shape: tuple[int, int]) -> bool:
        """Whether its blocks cover the outputs."""
        return fit(self.shape, shape)

    def load(self, weight: Matrix) -> "OutputTurn":
        """R − I of every block, of every stage."""
        x = numbers(self.blocks).astype(np.float64)
        q = x - x.swapaxes(-1, -2)
        size, most = float(np.linalg.norm(q)), self.constraint * self.shape[0]
        if 0 < most < size:
            q = q * (most / size)
        identity = np.eye(q.shape[-1])
        moved = np.asarray(2 * q @ np.linalg.inv(identity - q), np.float64)
        stages = moved if moved.ndim == 4 else moved.swapaxes(1, 2)[None]
        scale = np.ones(1) if self.rescale is None else numbers(self.rescale).astype(np.float64)
        return OutputTurn(stages, scale.reshape(-1, 1), butterfly=moved.ndim == 4)


@dataclass(frozen=True)
class OutputTurn:
    """W' = scale·T·W."""

    moved: Floats  # (stages, k, b, b): R − I, transposed as it is applied
    scale: Floats  # (outputs or 1, 1)
    butterfly: bool
    needs_inputs: ClassVar[bool] = False
    needs_outputs: ClassVar[bool] = True

    def delta(self, w0: Array, outputs: Index, inputs: slice) -> Array:
        """A few times as large as `w0`, in float64."""
        start = widen(w0).astype(np.float64)
        change = np.zeros_like(start)
        for stage, moved in enumerate(self.moved):
            order = self._order(len(start), stage)
            turned = _by_blocks((start + change)[order], moved)
            change[order] += turned
        return np.asarray(self.scale * change + (self.scale - 1) * start)

    def _order(self, outputs: int, stage: int) -> Array:
        """Which outputs stand beside one another in a stage's blocks."""
        if not self.butterfly:
            return np.arange(outputs)
        apart = (1 << stage) * (self.moved.shape[-1] // 2)
        return np.arange(outputs).reshape(-1, 2, apart).swapaxes(1, 2).reshape(-1)


def _by_blocks(w: Array, moved: Floats) -> Array:
    blocks = w.reshape(-1, moved.shape[-1], w.shape[1])
    return np.asarray(moved @ blocks).reshape(w.shape)
