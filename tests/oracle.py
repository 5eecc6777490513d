"""What wdecomp makes of an adapter, gathered, to be held beside another library's merge."""

import numpy as np

from wdecomp.adapter import Adapted, ChangeReader
from wdecomp.checkpoint import MatrixReader
from wdecomp.dtypes import Floats, widen
from wdecomp.pairing import Pair


def adapted_weight(each: Pair, block_bytes: int) -> Floats:
    """W0 + ΔW, (output, input), gathered block by block."""
    assert isinstance(each.tuned, Adapted)
    gathered = np.zeros(each.base.shape)
    with MatrixReader(each.base) as reader, ChangeReader(each.tuned, each.base) as change:
        for at in each.base.rectangles(each.base.shape, block_bytes):
            w0 = reader.read(at)
            gathered[at.outputs, at.inputs] = widen(w0) + change.beside(w0, at).astype(np.float64)
    return gathered
