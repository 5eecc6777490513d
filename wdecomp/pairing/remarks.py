"""What a reader of an adapter's figures has to know, told from how it pairs with its base."""

from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np

from wdecomp.adapter import Adapted, misordered
from wdecomp.checkpoint import BLOCK_BYTES, Checkpoint, Matrix, MatrixReader, read_whole
from wdecomp.dtypes import PRECISION, Floats, widen
from wdecomp.errors import some
from wdecomp.names import place
from wdecomp.pairing.records import Pair

# Largest |m − ‖W‖|/‖W‖ of an untrained DoRA, whose norms were taken in the base's dtype (measured).
UNTRAINED = {"BF16": 4e-3, "F16": 5e-4}
FULL = PRECISION["F32"]
REORDERED = ("q", "k")  # module kinds whose rows torchtune stores in another order


def remarks(base: Checkpoint, pairs: Iterable[Pair]) -> Iterator[str]:
    """Notes on the magnitudes of a low-precision base, and on layers that have no adapter."""
    adapted = [pair for pair in pairs if isinstance(pair.tuned, Adapted)]
    yield from _rounded_magnitudes(adapted)
    yield from _missing_layers(base, adapted)
    yield from _misordered_magnitudes(adapted)


def in_torchtunes_order(magnitude: Floats, norms: Floats) -> bool:
    """Whether magnitudes of q or k are in torchtune's order of rows, for heads of whatever size.

    Args:
        magnitude: DoRA's m as the adapter has it, (outputs,).
        norms: ‖W0‖ of each output, (outputs,).
    """
    sizes = (size for size in range(4, norms.size + 1, 2) if norms.size % size == 0)
    return any(misordered(magnitude, norms, norms.size // size) for size in sizes)


def _rounded_magnitudes(adapted: list[Pair]) -> Iterator[str]:
    dtypes = {
        pair.base.dtype
        for pair in adapted
        if isinstance(pair.tuned, Adapted) and pair.tuned.magnitude is not None
    }
    for dtype in sorted(dtypes):
        if dtype in UNTRAINED:
            yield (
                f"magnitudes of a {dtype} base begin as norms rounded to {dtype}: relative dM "
                f"below {UNTRAINED[dtype]:g} may be that rounding and no training"
            )
        elif PRECISION.get(dtype, 0) < FULL:
            yield (
                f"the base is {dtype}: magnitudes belong to the dequantised weights that training "
                "saw, which another decoder may round otherwise"
            )


def _missing_layers(base: Checkpoint, adapted: list[Pair]) -> Iterator[str]:
    """Adapters that lost layers on saving look like those that were told to leave them out."""
    there: dict[tuple[str, str], set[int]] = defaultdict(set)
    for name, tensor in base.tensors.items():
        at = place(name)
        if at.layer is not None and len(tensor.shape) > 1:
            there[at.stack, at.module].add(at.layer)
    here: dict[tuple[str, str], set[int]] = defaultdict(set)
    for pair in adapted:
        if pair.place.layer is not None:
            here[pair.place.stack, pair.place.module].add(pair.place.layer)
    for (stack, module), layers in here.items():
        missing = sorted(there[stack, module] - layers)
        if missing:
            yield (
                f"{stack}.{module} is adapted in {len(layers)} of "
                f"{len(layers) + len(missing)} layers (not in {some([str(n) for n in missing])})"
            )


def _misordered_magnitudes(adapted: list[Pair]) -> Iterator[str]:
    """Of torchtune's export, seen in the first q and k: no header tells, only norms do."""
    for module in REORDERED:
        of_kind = (pair for pair in adapted if pair.place.module == module)
        first = next((p for p in of_kind if _has_magnitude(p)), None)
        if first is not None and _is_misordered(first):
            yield (
                f"magnitudes of {module} are in torchtune's order of rows, not in the base's "
                f"({first.tuned_name}): PEFT loads another model than was trained, and it is that "
                "one that is measured here"
            )


def _has_magnitude(pair: Pair) -> bool:
    tuned = pair.tuned
    return isinstance(tuned, Adapted) and tuned.magnitude is not None and tuned.outputs is None


def _is_misordered(pair: Pair) -> bool:
    assert isinstance(pair.tuned, Adapted)
    assert pair.tuned.magnitude is not None
    magnitude = widen(read_whole(pair.tuned.magnitude.values)).reshape(-1).astype(np.float64)
    return in_torchtunes_order(magnitude, _norms(pair.base))


def _norms(matrix: Matrix) -> Floats:
    squares = np.zeros(matrix.shape[0])
    with MatrixReader(matrix) as reader:
        for at in matrix.rectangles(matrix.shape, BLOCK_BYTES):
            block = widen(reader.read(at)).astype(np.float64)
            squares[at.outputs] += np.einsum("ij,ij->i", block, block)
    return np.sqrt(squares)
