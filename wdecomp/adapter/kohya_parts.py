"""What the parts that kohya's sd-scripts and LyCORIS store of one module do to it.

    LoRA, LoCon   lora_down, lora_up, lora_mid       s·up·mid·down
    LoHa          hada_w1_a, …, hada_t2              s·(w1a·w1b) ∘ (w2a·w2b)
    LoKr          lokr_w1 or its factors, lokr_w2    s·w1 ⊗ w2; s = 1 where both are whole
    GLoRA         a1, a2, b1, b2                     s·(W·a1·a2 + b1·b2)
    OFT, BOFT     oft_blocks, rescale                outputs rotated; alpha bounds the rotation
    IA³           weight, on_input                   W·(1 + weight)
    full, norms   diff, diff_b, w_norm, b_norm       added

s = alpha/r times a `scalar` if one is stored (LyCORIS before 2.0), alpha = r where it is 0 or
absent; a rank-stabilised √r is folded into alpha by the writer, but for GLoRA.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isfinite, prod, sqrt

from wdecomp.adapter.adapter import ModuleUpdate
from wdecomp.adapter.change import Update
from wdecomp.adapter.factored import factored
from wdecomp.adapter.factors import Factors
from wdecomp.adapter.generalized import Generalized
from wdecomp.adapter.low_rank import LowRank
from wdecomp.adapter.output_rotations import OutputRotation
from wdecomp.adapter.products import Hadamard, Kronecker
from wdecomp.adapter.scalings import Added, Scaling
from wdecomp.adapter.updates import Magnitude
from wdecomp.checkpoint import PlainTensor, read_whole
from wdecomp.dtypes import RAW, STORED_AS, widen

LARGEST = 1e9  # scaling: far beyond any training, and far below what float32 holds
SHARED = ("alpha", "dora_scale", "scalar")
BIASES = ("diff_b", "b_norm")
# What LyCORIS also writes, by the parts that only it has.
REFUSED: Mapping[str, str] = {
    "lambda_layer": "T-LoRA: its rank depends on the diffusion step",
    "q_layer.weight": "T-LoRA: its rank depends on the diffusion step",
    "p_layer.weight": "T-LoRA: its rank depends on the diffusion step",
    "lokr_t1": "a LoKr whose first matrix has a core, which LyCORIS does not write",
}


@dataclass(frozen=True)
class ModuleUpdates:
    """What is done to one module.

    updates: by leaf, `weight` and `bias`.
    """

    kind: str
    updates: dict[str, ModuleUpdate] = field(default_factory=dict)


def updates_of(factors: Factors, rooted: bool = False) -> ModuleUpdates:
    """The updates of a module's weight and bias; every part has a place in them.

    Args:
        factors: all that is stored of the module.
        rooted: whether it was trained with a rank-stabilised scale.

    Raises:
        AdapterError: a part is missing, has the wrong shape or contradicts another.
    """
    refused = next((REFUSED[part] for part in factors.tensors if part in REFUSED), None)
    if refused:
        raise factors.refuse(f"has parts of {refused}", "a change of the weight that stays")
    kinds = [kind for kind, (_, parts) in KINDS.items() if any(p in factors for p in parts)]
    if len(kinds) > 1:
        raise factors.refuse(f"has parts of {' and of '.join(kinds)}", "one kind of update")
    found: dict[str, ModuleUpdate] = {}
    kind = kinds[0] if kinds else "bias"
    if kinds:
        update = KINDS[kind][0](factors)
        if rooted and isinstance(update, Generalized):
            update = Generalized(*update.factors, update.scaling * sqrt(update.rank), update.core)
        magnitude = _magnitude(factors, update, kind)
        kind = "dora" if magnitude and kind == "lora" else kind
        found["weight"] = ModuleUpdate(update, magnitude)
    for part in BIASES:
        if part in factors:
            found["bias"] = ModuleUpdate(Added(factors.get(part)))
    _check_all_used(factors, found)
    return ModuleUpdates(kind, found)


def scalar(factors: Factors, part: str) -> float:
    """The number in a tensor of one element, of any type.

    Raises:
        AdapterError: it is not one finite number.
    """
    tensor = factors.tensors[part]
    if prod(tensor.shape) != 1 or tensor.dtype not in RAW or tensor.dtype.startswith("F8"):
        raise factors.refuse(f"{part} is {tensor.dtype} of shape {tensor.shape}", "one number")
    stored = read_whole(tensor).reshape(1)
    value = float((widen(stored) if tensor.dtype in STORED_AS else stored)[0])
    if not isfinite(value):
        raise factors.refuse(f"{part} is {value}", "a finite number")
    return value


def scaling_of(factors: Factors, rank: int) -> float:
    """The s of a product of rank r.

    Raises:
        AdapterError: alpha or scalar is damaged.
    """
    alpha = (scalar(factors, "alpha") if "alpha" in factors else 0.0) or float(rank)
    found = alpha / rank * _extra(factors)
    if not abs(found) <= LARGEST:
        raise factors.refuse(f"its scaling is {found:g}", f"at most {LARGEST:g}: alpha is damaged")
    return found


def _extra(factors: Factors) -> float:
    return scalar(factors, "scalar") if "scalar" in factors else 1.0


def _locon(factors: Factors) -> Update:
    core = factors.maybe("lora_mid.weight")
    down, up = factors.get("lora_down.weight"), factors.get("lora_up.weight")
    rank = down.shape[0]
    fits = len(down.shape) >= 2 and up.shape[1:2] == (rank,) and prod(up.shape[2:]) == 1
    if core is not None:
        fits = fits and core.shape[:2] == (rank, rank) and prod(down.shape[2:]) == 1
    if not fits:
        raise factors.refuse(
            f"lora_down is {down.shape}, lora_up is {up.shape}"
            + (f", lora_mid is {core.shape}" if core else ""),
            "(r, in…), (out, r) and a core (r, r, kernel…) of one r",
        )
    return LowRank(down, up, scaling_of(factors, rank), core)


def _loha(factors: Factors) -> Update:
    first = factored(factors, "hada_w1_a", "hada_w1_b", "hada_t1")
    second = factored(factors, "hada_w2_a", "hada_w2_b", "hada_t2")
    if first.shape != second.shape:
        raise factors.refuse(f"its products are {first.shape} and {second.shape}", "one shape")
    return Hadamard(first, second, scaling_of(factors, factors.get("hada_w1_b").shape[0]))


def _lokr(factors: Factors) -> Update:
    """Where both matrices are whole there is no rank, and the scale is 1 whatever alpha says."""
    first = factored(factors, "lokr_w1_a", "lokr_w1_b", None, "lokr_w1")
    second = factored(factors, "lokr_w2_a", "lokr_w2_b", "lokr_t2", "lokr_w2")
    rank = first.rank or second.rank
    return Kronecker(first, second, _extra(factors) if rank is None else scaling_of(factors, rank))


def _glora(factors: Factors) -> Update:
    a1, a2, b1, b2 = (factors.get(f"{part}.weight") for part in ("a1", "a2", "b1", "b2"))
    core = factors.maybe("bm.weight")
    shapes = [tensor.shape for tensor in (a1, a2, b1, b2)]
    r = b2.shape[0]
    matrices = all(len(shape) >= 2 for shape in shapes)
    if not matrices or not (shapes[0][1] == shapes[1][0] == shapes[2][1] == r) or (
        shapes[0][0] != shapes[1][1] or prod(b2.shape[1:]) % shapes[0][0]
    ):  # fmt: skip
        raise factors.refuse(
            f"a1, a2, b1, b2 are {', '.join(map(str, shapes))}",
            "(in, r), (r, in), (out, r), (r, in…) of one r",
        )
    return Generalized(a1, a2, b1, b2, scaling_of(factors, r), core)


def _oft(factors: Factors) -> Update:
    blocks = factors.get("oft_blocks")
    if len(blocks.shape) not in (3, 4) or blocks.shape[-1] != blocks.shape[-2]:
        raise factors.refuse(f"oft_blocks is {blocks.shape}", "(k, b, b) or (stages, k, b, b)")
    rescale = factors.maybe("rescale")
    outputs = prod(blocks.shape[-3:-1])
    if rescale is not None and prod(rescale.shape) != outputs:
        raise factors.refuse(f"rescale is {rescale.shape}", f"{outputs} factors")
    half, odd = divmod(blocks.shape[-1], 2)
    if len(blocks.shape) == 4 and (odd or outputs % (half << blocks.shape[0])):
        raise factors.refuse(
            f"oft_blocks is {blocks.shape}", "blocks of even size, 2 to the power of stages − 1"
        )
    return OutputRotation(blocks, rescale, scalar(factors, "alpha") if "alpha" in factors else 0.0)


def _ia3(factors: Factors) -> Update:
    if "on_input" not in factors:
        raise factors.refuse("has weight alone", "on_input beside it")
    on_input = scalar(factors, "on_input")
    return Scaling(factors.get("weight"), "input" if on_input else "output", neutral=0.0)


def _added(part: str) -> Callable[[Factors], Update]:
    return lambda factors: Added(factors.get(part))


# Kind → how it is built, and its own parts. An IA³'s `weight` has a name that anything may have.
KINDS: Mapping[str, tuple[Callable[[Factors], Update], tuple[str, ...]]] = {
    "lora": (_locon, ("lora_down.weight", "lora_up.weight", "lora_mid.weight")),
    "loha": (_loha, tuple(f"hada_{p}" for p in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2"))),
    "lokr": (
        _lokr,
        tuple(f"lokr_{p}" for p in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")),
    ),
    "glora": (_glora, tuple(f"{p}.weight" for p in ("a1", "a2", "b1", "b2", "bm"))),
    "oft": (_oft, ("oft_blocks", "rescale")),
    "ia3": (_ia3, ("on_input",)),
    "full": (_added("diff"), ("diff",)),
    "norm": (_added("w_norm"), ("w_norm",)),
}
WITH_MAGNITUDE = ("lora", "loha", "lokr")
PARTS = (*(part for _, parts in KINDS.values() for part in parts), *SHARED, *BIASES, "weight")


def _magnitude(factors: Factors, update: Update, kind: str) -> Magnitude | None:
    """`dora_scale` is (out, 1…) for a magnitude per output, (1, in, 1…) for one per input.

    (1, 1…) is of the side that has one feature, and the same for both if both have.
    """
    scale = factors.maybe("dora_scale")
    if scale is None or kind not in WITH_MAGNITUDE:
        return None
    outputs, inputs = update.shape
    rows, *columns = scale.shape
    if rows == outputs and prod(columns) == 1:
        return Magnitude(scale, "output")
    if rows == 1 and columns and prod(columns[1:]) == 1 and inputs is not None:
        of_kernel = len(columns) > 1  # of a convolution, in its own number of dimensions
        if columns[0] == inputs or (of_kernel and inputs % columns[0] == 0):
            return Magnitude(scale, "input")
    raise factors.refuse(
        f"dora_scale is {scale.shape}",
        f"({outputs}, 1…) per output or (1, inputs, 1…) per input of a weight of {update.shape}",
    )


def _check_all_used(factors: Factors, found: Mapping[str, ModuleUpdate]) -> None:
    """That no part is there which the update leaves no use for: it would be lost unseen."""
    used = {id(tensor) for each in found.values() for tensor in each.tensors}
    settings = {"alpha", "scalar", "on_input"}
    unused = [part for part, t in factors.tensors.items() if _lost(part, t, used, settings)]
    if unused:
        others = [part for part in factors.tensors if part not in unused]
        raise factors.refuse(
            f"has {', '.join(unused)} beside {', '.join(others)}", "parts that belong together"
        )


def _lost(part: str, tensor: PlainTensor, used: set[int], settings: set[str]) -> bool:
    return part not in settings and id(tensor) not in used
