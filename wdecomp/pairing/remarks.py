"""What a reader of an adapter's figures has to know, told from how it pairs with its base."""

from collections import defaultdict
from collections.abc import Iterable, Iterator

from wdecomp.adapter import Adapted
from wdecomp.checkpoint import Checkpoint
from wdecomp.dtypes import PRECISION
from wdecomp.errors import some
from wdecomp.names import place
from wdecomp.pairing.records import Pair

# Largest |m − ‖W‖|/‖W‖ of an untrained DoRA, whose norms were taken in the base's dtype (measured).
UNTRAINED = {"BF16": 4e-3, "F16": 5e-4}
FULL = PRECISION["F32"]


def remarks(base: Checkpoint, pairs: Iterable[Pair]) -> Iterator[str]:
    """Notes on the magnitudes of a low-precision base, and on layers that have no adapter."""
    adapted = [pair for pair in pairs if isinstance(pair.tuned, Adapted)]
    yield from _rounded_magnitudes(adapted)
    yield from _missing_layers(base, adapted)


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
