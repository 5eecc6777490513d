"""Facts for diagnosis that only a scan can know: of an adapter's factors and magnitudes.

Nothing here is per weight: factors are read once more, norms of W0 come from the sums.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from wdecomp.adapter import Adapted, Magnitude
from wdecomp.adapter.change import Update, index, numbers
from wdecomp.adapter.low_rank import LowRank
from wdecomp.adapter.principal import FromPrincipal
from wdecomp.checkpoint import Matrix
from wdecomp.decomposition import ColumnDelta, Sums
from wdecomp.dtypes import PRECISION, Array, Floats
from wdecomp.pairing import Pair
from wdecomp.pairing.remarks import REORDERED, in_torchtunes_order

SAME_NORM = 4e-6  # of ‖W0‖: what two float32 sums of one column can differ by
GRIDS = ("BF16", "F16")  # dtypes to which a magnitude may have been rounded
TIES = 1.05  # half units in the last place: norms of the base come with some rounding of their own
SINGULAR = 1e-6  # of the largest singular value: what counts as one of the rank
LARGEST_RANK = 256  # beyond, the products of r×r matrices would be noticed

Flags = npt.NDArray[np.bool_]


def nonfinite_facts(sums: Sums) -> dict[str, Any]:
    """How many outputs hold NaN or infinity: in the base, and in the tuned weights alone."""
    a, _, c = sums.output
    of_base = ~np.isfinite(a)
    return {
        "nonfinite_base": int(of_base.sum()),
        "nonfinite_tuned": int((~of_base & ~np.isfinite(c)).sum()),
    }


def growth_facts(delta: ColumnDelta) -> dict[str, Any]:
    """Mean and standard deviation of (m − m0)/m0 over the columns of a matrix."""
    growth = delta.delta_magnitude / delta.magnitude_base
    if not growth.size:
        return {}
    return {"growth_mean": float(growth.mean()), "growth_spread": float(growth.std())}


def factor_facts(update: Update, module: Matrix) -> dict[str, Any]:
    """‖A‖, ‖s·B‖ and the numerical rank of s·BA, of LoRA and its relatives; else nothing.

    The singular values of s·BA are the roots of the eigenvalues of R·BᵀB·Rᵀ, AAᵀ = RᵀR: r×r.
    """
    trained = update.trained if isinstance(update, FromPrincipal) else update
    if not isinstance(trained, LowRank):
        return {}
    with np.errstate(all="ignore"):  # of a damaged adapter
        product = trained.load(module)
        norms = {"norm_a": _size(product.right), "norm_b": _size(product.left)}
        if trained.rank > LARGEST_RANK or not all(math.isfinite(norm) for norm in norms.values()):
            return norms
        return norms | {"numerical_rank": _rank(_gram(product.right.T), _gram(product.left))}


def magnitude_facts(pair: Pair, sums: Sums) -> dict[str, Any]:
    """What a DoRA's magnitudes are beside the norms of the base; nothing where there are none.

    Of a part of a fused module only its own outputs count. Magnitudes of inputs are told of whole
    modules alone, whose columns are their channels.
    """
    tuned = pair.tuned
    if not isinstance(tuned, Adapted) or tuned.magnitude is None:
        return {}
    axis, dtype = tuned.magnitude.axis, tuned.magnitude.values.dtype
    about = {"magnitude_dtype": dtype, "magnitude_axis": axis}
    m, norms = _magnitudes(tuned), _norms(tuned.magnitude, sums)
    if m.shape != norms.shape or (axis == "input" and tuned.outputs is not None):
        return about
    reordered = pair.place.module in REORDERED and axis == "output" and tuned.outputs is None
    with np.errstate(all="ignore"):  # of a damaged adapter
        return (
            about
            | _beside(m, norms)
            | {"magnitude_misordered": reordered and in_torchtunes_order(m, norms)}
        )


def _magnitudes(adapted: Adapted) -> Floats:
    assert adapted.magnitude is not None
    values = numbers(adapted.magnitude.values).reshape(-1).astype(np.float64)
    if adapted.outputs is None or adapted.magnitude.axis == "input":
        return values
    part: Floats = values[index(adapted.outputs)]
    return part


def _norms(magnitude: Magnitude, sums: Sums) -> Floats:
    """‖W0‖ of everything that has a magnitude: outputs, or input channels."""
    if magnitude.axis == "output":
        return np.asarray(np.sqrt(sums.output[0]))
    squares, size = sums.input[0], int(np.prod(magnitude.values.shape))
    channels = squares.reshape(size, -1).sum(axis=1) if squares.size % size == 0 else squares
    return np.asarray(np.sqrt(channels))


def _beside(m: Floats, norms: Floats) -> dict[str, Any]:
    """Signs, and how many are ‖W0‖ still, and how many more are ‖W0‖ rounded to 16 bits."""
    initial = np.abs(m - norms) <= SAME_NORM * norms
    rounded = {grid: _is_rounded(m, norms, grid) & ~initial for grid in GRIDS}
    grid = max(GRIDS, key=lambda each: int(rounded[each].sum()))
    count = int(rounded[grid].sum())
    return {
        "magnitudes": m.size,
        "magnitude_negative": int((m < 0).sum()),
        "magnitude_zero": int(((m == 0) & (norms > 0)).sum()),
        "magnitude_correlation": _correlation(m, norms),
        "magnitude_initial": int(initial.sum()),
        "magnitude_rounded": count,
        "magnitude_grid": grid if count else None,
    }


def _is_rounded(m: Floats, norms: Floats, grid: str) -> Flags:
    """Which magnitudes a dtype can hold and lie no further from ‖W0‖ than rounding to it does."""
    ulp = np.exp2(np.frexp(norms)[1] - float(PRECISION[grid]))
    within = np.abs(m - norms) <= TIES * ulp / 2
    return np.asarray(within & (m == _held(m, grid)))


def _held(m: Floats, grid: str) -> Floats:
    """What a dtype makes of m: m itself only if it can hold it."""
    narrow = m.astype(np.float32)
    if grid == "F16":
        return narrow.astype(np.float16).astype(np.float64)
    return (narrow.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)


def _correlation(m: Floats, norms: Floats) -> float | None:
    """Pearson's r; None where one of them does not vary."""
    usable = np.isfinite(m) & np.isfinite(norms)
    if usable.sum() < 3 or not (np.ptp(m[usable]) and np.ptp(norms[usable])):
        return None
    return float(np.corrcoef(m[usable], norms[usable])[0, 1])


def _gram(tall: Array) -> Floats:
    """TᵀT in float64."""
    wide = tall.astype(np.float64)
    return np.asarray(wide.T @ wide)


def _size(factor: Array) -> float:
    return math.sqrt(np.square(factor, dtype=np.float64).sum())


def _rank(of_a: Floats, of_b: Floats) -> int:
    values, vectors = np.linalg.eigh(of_a)
    root = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
    squares = np.linalg.eigvalsh(root @ of_b @ root.T)
    largest = float(squares.max())
    return int((squares > SINGULAR**2 * largest).sum()) if largest > 0 else 0
