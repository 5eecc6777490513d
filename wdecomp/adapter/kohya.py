"""Single files of kohya's sd-scripts and of LyCORIS: `<flat module>.<part>`.

The module's path has `_` for `.` (a few tools keep the dots), and all that is needed is in the
file: alpha is a tensor, and the shape of `dora_scale` says along which axis it lies. What each part
becomes stands in `kohya_parts.py`.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping

from wdecomp.adapter.adapter import Adapter, ModuleUpdate
from wdecomp.adapter.factors import Factors
from wdecomp.adapter.kohya_parts import PARTS, REFUSED, updates_of
from wdecomp.checkpoint import PlainTensor, strict_json
from wdecomp.errors import AdapterError

DIALECT = "kohya/LyCORIS"
# Parts of which one is not enough to know the dialect.
COMMON = {"weight", "alpha", "rescale", "dora_scale", "scalar"}
_BY_LENGTH = sorted((*PARTS, *REFUSED), key=len, reverse=True)  # `a1.weight` before `weight`
NETWORK_ARGUMENTS = "ss_network_args"
DYLORA = (
    "trained as DyLoRA, at ranks drawn anew in every step: the change at the full rank is compared"
)


def is_kohya(tensors: Mapping[str, PlainTensor]) -> bool:
    """Whether any key has a part that only these files have."""
    return any(part and part not in COMMON for _, part in map(_split, tensors))


def read_kohya(
    tensors: Mapping[str, PlainTensor], where: str, metadata: Mapping[str, str] | None = None
) -> Adapter:
    """The updates of a kohya or LyCORIS file; the factors stay on disk.

    Args:
        tensors: by key.
        where: for messages.
        metadata: of the file; only the arguments of the training's network matter.

    Raises:
        AdapterError: a part is missing or has the wrong shape, or it is of a kind that cannot be
            read.
    """
    parts, left_out = _modules(tensors)
    arguments = _arguments(metadata or {}, where)
    updates: dict[str, ModuleUpdate] = {}
    kinds: Counter[str] = Counter()
    for module, found in parts.items():
        each = updates_of(Factors(module, found, where), _is_true(arguments.get("rs_lora")))
        kinds[each.kind] += 1
        updates |= {f"{module}.{leaf}": update for leaf, update in each.updates.items()}
    if not updates:
        raise AdapterError(f"{where}: holds no update of any module. It was saved empty.")
    flat = not any("." in module for module in parts)
    notes = (DYLORA,) if arguments.get("algo") == "dylora" else ()
    return Adapter(
        DIALECT, _method(kinds), updates, left_out=tuple(left_out), notes=notes, flat_names=flat
    )


def _modules(
    tensors: Mapping[str, PlainTensor],
) -> tuple[dict[str, dict[str, PlainTensor]], list[tuple[str, str]]]:
    """The parts of every module that has a change, and the keys that are none."""
    modules: dict[str, dict[str, PlainTensor]] = defaultdict(dict)
    left_out = []
    for key, tensor in tensors.items():
        module, part = _split(key)
        if part:
            modules[module][part] = tensor
        else:
            left_out.append((key, "no part of an update that kohya or LyCORIS writes"))
    for module in [m for m, parts in modules.items() if parts.keys() <= COMMON - {"rescale"}]:
        left_out += [
            (tensor.name, "its module has no factors of an update")
            for tensor in modules.pop(module).values()
        ]
    return modules, left_out


def _split(key: str) -> tuple[str, str]:
    """Module and part; no part where there is none that is known."""
    for part in _BY_LENGTH:
        if key.endswith("." + part):
            return key.removesuffix("." + part), part
    return key, ""


def _method(kinds: Mapping[str, int]) -> str:
    """One name for the tables: the kind of the weights, with norms and biases beside it."""
    main = [kind for kind in kinds if kind not in {"norm", "bias"}] or ["norm"]
    return main[0] if len(main) == 1 else "mixed"


def _arguments(metadata: Mapping[str, str], where: str) -> dict[str, object]:
    """What the trainer was told of the network, as far as the file has it."""
    text = metadata.get(NETWORK_ARGUMENTS, "None")
    if text in {"None", "null", ""}:
        return {}
    found = strict_json.parse(text.encode(), f"{where}: {NETWORK_ARGUMENTS}")
    return found if isinstance(found, dict) else {}


def _is_true(value: object) -> bool:
    return str(value).lower() in {"true", "1", "yes", "y", "t", "on"}
