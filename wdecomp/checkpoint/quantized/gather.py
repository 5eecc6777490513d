"""Which stored tensors are one quantised weight together, told from their names."""

from collections.abc import Callable, Mapping
from typing import Any

from wdecomp.checkpoint.elements import PlainTensor
from wdecomp.checkpoint.quantized.bitsandbytes import four_bit, int8
from wdecomp.checkpoint.quantized.mxfp4 import mxfp4
from wdecomp.checkpoint.quantized.packed import awq, compressed, gptq
from wdecomp.checkpoint.quantized.scaled import FP8, scaled, unscaled
from wdecomp.checkpoint.quantized.tensor import QuantizedTensor
from wdecomp.errors import CheckpointError

Tensors = Mapping[str, PlainTensor]
Gathered = dict[str, PlainTensor | QuantizedTensor]

# quant_method of the configs whose weights can be decoded.
READ = frozenset(
    {"bitsandbytes", "fp8", "fbgemm_fp8", "compressed-tensors", "gptq", "awq", "mxfp4"}
)
# Keys of formats that cannot, where no config says so.
FOREIGN = {
    ".W_q": "HQQ",
    ".qweight_type": "GGUF",
    "._data": "quanto",
    ".codebooks": "AQLM",
}
STATE = ".quant_state.bitsandbytes__"
BNB = {
    "absmax": ".absmax",
    "quant_map": ".quant_map",
    "nested_absmax": ".nested_absmax",
    "nested_quant_map": ".nested_quant_map",
}


def gather(tensors: Tensors, config: Mapping[str, Any], where: str) -> Gathered:
    """All tensors, those of one quantised weight as one, under the weight's ordinary name.

    Args:
        tensors: as they are stored.
        config: the model's config.json.
        where: of the checkpoint, for messages.

    Raises:
        CheckpointError: a weight is incomplete or damaged, or of a format that is not read.
    """
    settings = _settings(config, where)
    _refuse_foreign(tensors, where)
    found: dict[str, QuantizedTensor] = {}
    used: set[str] = set()
    for key in tensors:
        for suffix, read in _READERS.items():
            if key not in used and suffix in key:
                weight, parts = read(key, tensors, settings)
                if weight is not None:
                    found[weight.name] = weight
                    used |= parts
    rest = {name: tensor for name, tensor in tensors.items() if name not in used}
    plain: Gathered = {n: unscaled(t) if t.dtype in FP8 and t.shape else t for n, t in rest.items()}
    return plain | found


def _settings(config: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The config's quantization_config, of a method that can be decoded."""
    settings = config.get("quantization_config") or config.get("compression_config") or {}
    if not isinstance(settings, dict):
        raise CheckpointError(
            f"{where}: config.json: quantization_config is {settings!r}, expected a map."
        )
    method = settings.get("quant_method")
    if not isinstance(method, str | None):
        raise CheckpointError(
            f"{where}: config.json: quant_method is {method!r}, expected the name of a method."
        )
    if method is not None and method not in READ:
        raise CheckpointError(
            f"{where}: is quantised by {method!r}, which is not read. Dequantise it (transformers: "
            "model.dequantize()) and save it, or compare the model it was made of."
        )
    return settings


def _refuse_foreign(tensors: Tensors, where: str) -> None:
    for key in tensors:
        for suffix, what in FOREIGN.items():
            if key.endswith(suffix):
                raise CheckpointError(
                    f"{where}: {key} is of {what}, which is not read. Dequantise the model and "
                    "save it, or compare the model it was made of."
                )


Found = tuple[QuantizedTensor | None, set[str]]


def _four_bit(key: str, tensors: Tensors, _: Mapping[str, Any]) -> Found:
    name, kind = key.split(STATE, 1)
    if kind not in ("nf4", "fp4"):
        raise CheckpointError(f"{tensors[key].file}: {key} is of {kind!r}, expected nf4 or fp4.")
    keys = {"weight": name, "state": key} | {r: name + end for r, end in BNB.items()}
    return _made(lambda parts: four_bit(name, kind, parts), keys, tensors)


def _int8(key: str, tensors: Tensors, _: Mapping[str, Any]) -> Found:
    module = key.removesuffix(".SCB")
    if module == key:
        return None, set()
    name = f"{module}.weight"
    keys = {"weight": name, "SCB": key, "weight_format": f"{module}.weight_format"}
    return _made(lambda parts: int8(name, parts), keys, tensors)


def _scaled(key: str, tensors: Tensors, settings: Mapping[str, Any]) -> Found:
    module = key.removesuffix("_inv").removesuffix("_scale")
    if module == key or module not in tensors:
        return None, set()
    # Of a stack of experts the parameter itself is the weight: experts.gate_up_proj_scale_inv.
    if not module.endswith("weight") and tensors[module].dtype not in (*FP8, "I8"):
        return None, set()
    block = _block(settings)
    keys = {"weight": module, "scale": key, "zero_point": f"{module}_zero_point"}
    return _made(lambda parts: scaled(module, parts, block), keys, tensors)


def _compressed(key: str, tensors: Tensors, settings: Mapping[str, Any]) -> Found:
    name = key.removesuffix("_packed")
    if name == key:
        return None, set()
    keys = {
        "packed": key,
        "scale": f"{name}_scale",
        "shape": f"{name}_shape",
        "zero_point": f"{name}_zero_point",
        "g_idx": f"{name}_g_idx",
    }
    bits = _bits(settings)
    return _made(lambda parts: compressed(name, parts, bits), keys, tensors)


def _words(key: str, tensors: Tensors, settings: Mapping[str, Any]) -> Found:
    module = key.removesuffix(".qweight")
    if module == key:
        return None, set()
    keys = {part: f"{module}.{part}" for part in ("qweight", "qzeros", "scales", "g_idx")}
    name, bits = f"{module}.weight", _whole(settings.get("bits", 4))
    method = settings.get("quant_method")
    if method == "awq" or (method != "gptq" and keys["g_idx"] not in tensors):
        if settings.get("version", "gemm") != "gemm":
            raise CheckpointError(
                f"{tensors[key].file}: is AWQ of version {settings['version']!r}, expected 'gemm'."
            )
        return _made(lambda parts: awq(name, parts), keys, tensors)
    first = settings.get("checkpoint_format") != "gptq_v2"
    return _made(lambda parts: gptq(name, parts, bits, first), keys, tensors)


def _mxfp4(key: str, tensors: Tensors, _: Mapping[str, Any]) -> Found:
    name = key.removesuffix("_blocks")
    if name == key or f"{name}_scales" not in tensors:
        return None, set()
    keys = {"blocks": key, "scales": f"{name}_scales"}
    return _made(lambda parts: mxfp4(name, parts), keys, tensors)


def _made(
    make: Callable[[Tensors], QuantizedTensor], keys: Mapping[str, str], tensors: Tensors
) -> Found:
    here = {role: tensors[key] for role, key in keys.items() if key in tensors}
    return make(here), {key for key in keys.values() if key in tensors}


def _block(settings: Mapping[str, Any]) -> tuple[int, int] | None:
    """Rows and columns of a block of scales, as the config says."""
    block = settings.get("weight_block_size") or _weights(settings).get("block_structure")
    if isinstance(block, list) and len(block) == 2 and all(type(n) is int and n > 0 for n in block):
        return block[0], block[1]
    return None


def _bits(settings: Mapping[str, Any]) -> int | None:
    return _whole(_weights(settings).get("num_bits"))


def _whole(value: Any) -> int | None:
    return value if type(value) is int else None


def _weights(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """How compressed-tensors' config says that weights are stored: its first group's."""
    groups = settings.get("config_groups")
    first = next(iter(groups.values()), None) if isinstance(groups, dict) else None
    weights = first.get("weights") if isinstance(first, dict) else None
    return weights if isinstance(weights, dict) else {}


_READERS: Mapping[str, Callable[[str, Tensors, Mapping[str, Any]], Found]] = {
    STATE: _four_bit,
    ".SCB": _int8,
    "_packed": _compressed,
    "_scale": _scaled,
    ".qweight": _words,
    "_blocks": _mxfp4,
}
