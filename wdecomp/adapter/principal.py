"""LoRA that was trained on a base from which its own initial part had been taken.

W' = W − P + s·BA, so ΔW = s·BA − P, with P of rank r:

    PiSSA    P = U_r·S_r·V_rᵀ, the r largest singular values    arXiv:2404.02948, Eqs. (2)–(4)
    OLoRA    P = s·Q_r·Q_rᵀ·W, Q_r of the QR of W               arXiv:2406.01775; s as in PEFT

PEFT takes OLoRA's QR of a weight as it is stored, so of a Conv1D it is (input, output).

P follows from the base alone. Only where an adapter was saved without conversion does it matter.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from wdecomp.adapter.change import fit
from wdecomp.adapter.low_rank import LowRank, Product
from wdecomp.checkpoint import Matrix, PlainTensor, read_matrix
from wdecomp.dtypes import Floats, widen

Kind = Literal["pissa", "olora"]


@dataclass(frozen=True)
class FromPrincipal:
    """A LoRA and what was taken from its base."""

    trained: LowRank
    kind: Kind
    formula: ClassVar[str] = "W0 − P + s·BA, P the part that training began with"

    @property
    def rank(self) -> int:
        """The r of A and B."""
        return self.trained.rank

    @property
    def scaling(self) -> float:
        """The s of s·BA."""
        return self.trained.scaling

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)."""
        return self.trained.shape

    @property
    def tensors(self) -> tuple[PlainTensor, ...]:
        """A and B."""
        return self.trained.tensors

    def fits(self, shape: tuple[int, int]) -> bool:
        """Whether it is of this shape."""
        return fit(self.shape, shape)

    def load(self, weight: Matrix) -> Product:
        """[s·B, −U]·[A; UᵀW]: both parts in one product, of rank 2r."""
        trained = self.trained.load(weight)
        w = widen(read_matrix(weight)).astype(np.float64)
        if self.kind == "pissa":
            left = _singular(w, self.rank)
            right = left.T @ w
        elif weight.input_first:
            right = np.linalg.qr(w.T[:, : self.rank])[0].T
            left = self.scaling * w @ right.T
        else:
            left = np.linalg.qr(w[:, : self.rank])[0]
            right = self.scaling * left.T @ w
        return Product(
            np.hstack([trained.left, -left.astype(np.float32)]),
            np.vstack([trained.right, right.astype(np.float32)]),
        )


def _singular(w: Floats, rank: int) -> Floats:
    """The left singular vectors of the largest singular values, (out, r)."""
    outputs, inputs = w.shape
    if outputs <= inputs:
        return _leading(w @ w.T, rank)
    right = _leading(w.T @ w, rank)
    return np.asarray(np.linalg.qr(w @ right)[0])


def _leading(gram: Floats, rank: int) -> Floats:
    """The eigenvectors of the largest eigenvalues."""
    size = len(gram)
    import scipy.linalg  # a quarter of a second that only PiSSA needs

    found = scipy.linalg.eigh(gram, subset_by_index=(size - rank, size - 1))[1]
    return np.asarray(found)
