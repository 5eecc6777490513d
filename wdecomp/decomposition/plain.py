"""The sums in plain numpy and float64: what the compiled kernel and a GPU are held against."""

from collections.abc import Sequence

import numpy as np

from wdecomp.decomposition.products import LowRankBlock, as_array
from wdecomp.decomposition.sums import SharedSums
from wdecomp.dtypes import Array, widen


class PlainSums(SharedSums):
    """A reference that is slow and easy to check, and a way out where compiled code fails."""

    def add(
        self,
        base: Array,
        seconds: Sequence[Array | LowRankBlock],
        shares: Sequence[float],
        outputs: slice,
        inputs: slice,
    ) -> None:
        """Adds one block to the sums of the columns that it touches, as `SharedSums` does."""
        w0 = widen(base).astype(np.float64)
        for i, (second, share) in enumerate(zip(seconds, shares, strict=True)):
            d = widen(as_array(second)).astype(np.float64) - share * w0
            for k, product in enumerate((w0 * w0, d * w0, d * d)):
                self._output[i, k, outputs] += product.sum(axis=1)
                self._input[i, k, inputs] += product.sum(axis=0)
