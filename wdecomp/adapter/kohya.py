"""Single files of kohya's sd-scripts and of LyCORIS: `<flat module>.<part>`.

The module's path has `_` for `.` (a few tools keep the dots), and all that is needed is in the
file: alpha is a tensor, and the shape of `dora_scale` says along which axis it lies.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from math import isfinite, prod

from wdecomp.adapter.adapter import Adapter, ModuleUpdate
from wdecomp.adapter.change import Update
from wdecomp.adapter.factors import Factors
from wdecomp.adapter.low_rank import LowRank
from wdecomp.adapter.output_rotations import OutputRotation
from wdecomp.adapter.products import Factored, Hadamard, Kronecker
from wdecomp.adapter.scalings import Added, Scaling
from wdecomp.adapter.updates import Magnitude
from wdecomp.checkpoint import PlainTensor, read_whole
from wdecomp.dtypes import RAW, widen
from wdecomp.errors import AdapterError

DIALECT = "kohya/LyCORIS"
PARTS = (
    *("lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha", "dora_scale"),
    *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    *("lokr_w1_a", "lokr_w1_b", "lokr_w1", "lokr_w2_a", "lokr_w2_b", "lokr_w2", "lokr_t2"),
    *("oft_blocks", "rescale", "on_input", "weight", "diff", "diff_b", "w_norm", "b_norm"),
)
# Parts of which one is enough to know the dialect; `weight` alone is anybody's.
TELLING = frozenset(PARTS) - {"weight", "alpha", "rescale", "dora_scale"}
# What LyCORIS also writes, by the part that only it has.
REFUSED: Mapping[str, str] = {
    "a1.weight": "GLoRA, whose change is not of the weight alone",
    "lambda_layer": "T-LoRA, whose rank depends on the diffusion step",
    "lokr_t1": "a LoKr whose first matrix has a core, which LyCORIS does not write",
}


def is_kohya(tensors: Mapping[str, PlainTensor]) -> bool:
    """Whether any key has a part that only these files have."""
    return any(_split(key)[1] in TELLING or _split(key)[1] in REFUSED for key in tensors)


def read_kohya(tensors: Mapping[str, PlainTensor], where: str) -> Adapter:
    """The updates of a kohya or LyCORIS file; the factors stay on disk.

    Raises:
        AdapterError: a part is missing or has the wrong shape, or it is of a kind that cannot be
            read.
    """
    modules, left_out = _modules(tensors, where)
    updates: dict[str, ModuleUpdate] = {}
    kinds = set()
    for module, factors in modules.items():
        kind, found = _updates(factors)
        kinds.add(kind)
        updates |= {f"{module}.{leaf}": each for leaf, each in found.items()}
    if not updates:
        raise AdapterError(f"{where}: holds no update of any module. It was saved empty.")
    flat = not any("." in module for module in modules)
    return Adapter(DIALECT, _method(kinds), updates, left_out=tuple(left_out), flat_names=flat)


def _modules(
    tensors: Mapping[str, PlainTensor], where: str
) -> tuple[dict[str, Factors], list[tuple[str, str]]]:
    """The parts of every module, and the keys that are none."""
    parts: dict[str, dict[str, PlainTensor]] = defaultdict(dict)
    left_out = []
    for key, tensor in tensors.items():
        module, part = _split(key)
        if part in REFUSED:
            raise AdapterError(f"{where}: {key} belongs to {REFUSED[part]}.")
        if part == "":
            left_out.append((key, "no part of an update that kohya or LyCORIS writes"))
        else:
            parts[module][part] = tensor
    return {m: Factors(m, found, where) for m, found in parts.items()}, left_out


def _split(key: str) -> tuple[str, str]:
    """Module and part; no part where there is none that is known."""
    for part in (*PARTS, *REFUSED):
        if key.endswith("." + part):
            return key.removesuffix("." + part), part
    return key, ""


def _method(kinds: set[str]) -> str:
    """One name for the tables: the kind of most interest, with norms and biases beside it."""
    main = sorted(kinds - {"norm"}) or ["norm"]
    return main[0] if len(main) == 1 else "mixed"


def _updates(factors: Factors) -> tuple[str, dict[str, ModuleUpdate]]:
    """Kind, and the update of the module's weight and bias."""
    found: dict[str, ModuleUpdate] = {}
    kind = "norm"
    for part, (name, build) in _KINDS.items():
        if part in factors:
            kind, update = name, build(factors)
            magnitude = _magnitude(factors, update)
            kind = "dora" if magnitude and kind == "lora" else kind
            found["weight"] = ModuleUpdate(update, magnitude)
            break
    else:
        if factors.tensors.keys() <= {"alpha", "dora_scale", "rescale", "weight"}:
            raise factors.refuse(f"has only {', '.join(factors.tensors)}", "factors of an update")
    for part, leaf in (("diff_b", "bias"), ("w_norm", "weight"), ("b_norm", "bias")):
        if part in factors:
            found[leaf] = ModuleUpdate(Added(factors.get(part)))
    return kind, found


def _locon(factors: Factors) -> Update:
    core = factors.maybe("lora_mid.weight")
    down, up = factors.get("lora_down.weight"), factors.get("lora_up.weight")
    rank = down.shape[0]
    fits = up.shape[1:2] == (rank,) and (core is None or core.shape[:2] == (rank, rank))
    if len(down.shape) < 2 or not fits:
        raise factors.refuse(
            f"lora_down is {down.shape}, lora_up is {up.shape}"
            + (f", lora_mid is {core.shape}" if core else ""),
            "(r, in…) and (out, r…) of one r",
        )
    return LowRank(down, up, _alpha(factors, rank) / rank, core)


def _loha(factors: Factors) -> Update:
    first = _factored(factors, "hada_w1_a", "hada_w1_b", "hada_t1")
    second = _factored(factors, "hada_w2_a", "hada_w2_b", "hada_t2")
    if first.shape != second.shape:
        raise factors.refuse(f"its products are {first.shape} and {second.shape}", "one shape")
    rank = factors.get("hada_w1_b").shape[0]
    return Hadamard(first, second, _alpha(factors, rank) / rank)


def _lokr(factors: Factors) -> Update:
    """Where both matrices are whole there is no rank, and the scale is 1 whatever alpha says."""
    first = _factored(factors, "lokr_w1_a", "lokr_w1_b", None, "lokr_w1")
    second = _factored(factors, "lokr_w2_a", "lokr_w2_b", "lokr_t2", "lokr_w2")
    rank = first.rank or second.rank
    return Kronecker(first, second, 1.0 if rank is None else _alpha(factors, rank) / rank)


def _oft(factors: Factors) -> Update:
    blocks = factors.get("oft_blocks")
    if len(blocks.shape) not in (3, 4) or blocks.shape[-1] != blocks.shape[-2]:
        raise factors.refuse(f"oft_blocks is {blocks.shape}", "(k, b, b) or (stages, k, b, b)")
    rescale = factors.maybe("rescale")
    outputs = prod(blocks.shape[-3:-1])
    if rescale is not None and prod(rescale.shape) != outputs:
        raise factors.refuse(f"rescale is {rescale.shape}", f"{outputs} factors")
    return OutputRotation(blocks, rescale, _alpha(factors, 0))


def _ia3(factors: Factors) -> Update:
    on_input = scalar(factors, "on_input")
    return Scaling(factors.get("weight"), "input" if on_input else "output", neutral=0.0)


def _full(factors: Factors) -> Update:
    return Added(factors.get("diff"))


_KINDS: Mapping[str, tuple[str, Callable[[Factors], Update]]] = {
    "lora_down.weight": ("lora", _locon),
    "lora_up.weight": ("lora", _locon),
    "hada_w1_a": ("loha", _loha),
    "lokr_w1": ("lokr", _lokr),
    "lokr_w1_a": ("lokr", _lokr),
    "oft_blocks": ("oft", _oft),
    "on_input": ("ia3", _ia3),
    "diff": ("full", _full),
}


def _factored(
    factors: Factors, left: str, right: str, core: str | None = None, whole: str | None = None
) -> Factored:
    if whole is not None and whole in factors:
        return Factored(whole=factors.get(whole))
    a, b = factors.get(left), factors.get(right)
    middle = factors.maybe(core) if core else None
    inner = a.shape[0] if middle is not None else a.shape[1]
    if len(a.shape) < 2 or len(b.shape) < 2 or inner != b.shape[0]:
        raise factors.refuse(f"{left} is {a.shape}, {right} is {b.shape}", "factors of one rank")
    return Factored(left=a, right=b, core=middle)


def _alpha(factors: Factors, rank: int) -> float:
    """Alpha, where there is none or a 0 the rank."""
    return (scalar(factors, "alpha") if "alpha" in factors else 0.0) or float(rank)


def scalar(factors: Factors, part: str) -> float:
    """The number in a tensor of one element, of any type."""
    tensor = factors.tensors[part]
    if prod(tensor.shape) != 1 or tensor.dtype not in RAW:
        raise factors.refuse(f"{part} is {tensor.dtype} of shape {tensor.shape}", "one number")
    value = float(widen(read_whole(tensor)).reshape(()))
    if not isfinite(value):
        raise factors.refuse(f"{part} is {value}", "a number")
    return value


def _magnitude(factors: Factors, update: Update) -> Magnitude | None:
    """`dora_scale` is (out, 1…) for a magnitude per output, (1, in, 1…) for one per input."""
    scale = factors.maybe("dora_scale")
    if scale is None:
        return None
    outputs = update.shape[0]
    rows, *columns = scale.shape
    if rows == outputs and prod(columns) == 1:
        return Magnitude(scale, "output")
    if rows == 1 and columns and prod(columns[1:]) == 1:
        return Magnitude(scale, "input")
    raise factors.refuse(
        f"dora_scale is {scale.shape}", f"({outputs}, 1…) per output or (1, inputs, 1…) per input"
    )
