"""torchtune's PEFT export of DoRA: magnitudes of q and k that lie in another order than their rows.

torchtune stores the rows of q_proj and k_proj with the two halves of every head interleaved. Its
export puts the rows of lora_B back as Hugging Face has them, and leaves the magnitudes.
"""

import numpy as np

from wdecomp.dtypes import Floats

CLEARLY = 0.5  # the other order must bring the magnitudes at least twice as close to the norms


def misordered(magnitude: Floats, norms: Floats, heads: int) -> bool:
    """Whether magnitudes are in torchtune's order of rows and the norms in Hugging Face's.

    Conservative: where norms hardly differ, or training has moved the magnitudes about as far as
    the norms differ, the answer is no.

    Args:
        magnitude: DoRA's m as the adapter has it, (outputs,).
        norms: ‖V‖ or ‖W0‖ of each output, (outputs,).
        heads: of q, or the key-value heads of k.

    >>> norms = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    >>> misordered(interleaved(norms, 2), norms, 2), misordered(norms, norms, 2)
    (True, False)
    """
    fits = magnitude.size == norms.size and heads > 0 and norms.size % (2 * heads) == 0
    if not fits or not np.isfinite(magnitude).all() or not np.isfinite(norms).all():
        return False
    theirs = interleaved(norms, heads)
    here = float(np.linalg.norm(magnitude - norms))
    there = float(np.linalg.norm(magnitude - theirs))
    return there < CLEARLY * here


def interleaved(rows: Floats, heads: int) -> Floats:
    """One number per row from Hugging Face's order, (heads, 2, d/2), to torchtune's, (…, d/2, 2).

    >>> interleaved(np.arange(8.0), 2).tolist()
    [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]
    """
    return np.asarray(rows.reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1))


def in_order(rows: Floats, heads: int) -> Floats:
    """The other way round: what a misordered magnitude has to be brought to.

    >>> in_order(interleaved(np.arange(8.0), 2), 2).tolist()
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    """
    return np.asarray(rows.reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1))
