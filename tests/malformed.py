"""Checkpoints and adapters of strangers that are not what they must be, and what is to be named.

Every case changes one whole checkpoint or adapter in a folder of its own. Others import `CASES`.
"""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from builders import low_rank, moved, tiny_llama, write_adapter, write_full
from safetensors.torch import load_file, save_file

Q = "model.layers.0.self_attn.q_proj"
V = "model.layers.0.self_attn.v_proj"
A_Q, B_Q = (f"base_model.model.{Q}.lora_{half}.weight" for half in "AB")
INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
ADAPTER = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
EVIL = "import pathlib; pathlib.Path(__file__).with_name('ran').touch()"

Case = tuple[Callable[[Path], Path], tuple[str, ...]]  # makes it; what the line names
CASES: dict[str, Case] = {}


def base(folder: Path) -> Path:
    """The base that all of them are compared with."""
    return write_full(folder / "base", tiny_llama(1))


def _case(name: str, *named: str) -> Callable[[Callable[[Path], Path]], None]:
    def add(make: Callable[[Path], Path]) -> None:
        assert name not in CASES
        CASES[name] = (make, named)

    return add


def _full(folder: Path, shards: int = 1) -> Path:
    return write_full(folder / "bad", moved(tiny_llama(1)), shards)


def _lora(folder: Path, **config: Any) -> Path:
    return write_adapter(folder / "bad", low_rank(tiny_llama(1)), **config)


# Headers.


def _entry(dtype: Any = "F32", shape: Any = (2, 2), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def _header(name: str, header: Any, data: bytes, *named: str) -> None:
    @_case(f"header: {name}", WEIGHTS, *named)
    def make(folder: Path) -> Path:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        (folder / "bad").mkdir()
        content = struct.pack("<Q", len(text)) + text + data
        (folder / "bad" / WEIGHTS).write_bytes(content)
        return folder / "bad"


D = bytes(16)
GOOD = json.dumps({"a.weight": _entry()}).encode()
for number, (field, value) in enumerate(
    [
        *(("dtype", d) for d in ("F33", "f32", "", None, 32, ["F32"], {"F32": None}, True)),
        *(
            ("shape", s)
            for s in (
                None, 4, "2,2", {}, [2, "2"], [2.0, 2], [2, None], [-2, -2], [True, 4], [[2], 2],
                [1e3], [2**63, 0], [2, 2, 2], [3], [0], [],
            )
        ),
        *(
            ("data_offsets", o)
            for o in (
                None, 16, [], [0], [0, 16, 16], [16, 0], [-16, 0], ["0", "16"], [0.0, 16.0],
                [0, 15], [0, 2**64], [True, 16], {"begin": 0, "end": 16}, [None, 16],
            )
        ),
    ]
):  # fmt: skip
    named = "a.weight"
    _header(f"{number} {field} {value!r}"[:50], {"a.weight": _entry() | {field: value}}, D, named)
for name, header, data, *named in [
    ("hole before the first", {"a.weight": _entry(offsets=(4, 20))}, bytes(20), "a.weight"),
    ("overlap", {"a.weight": _entry(), "b": _entry(offsets=(8, 24))}, bytes(24), "'b'"),
    ("same bytes twice", {"a.weight": _entry(), "b": _entry()}, D, "'b'"),
    ("hole between", {"a.weight": _entry(), "b": _entry(offsets=(20, 36))}, bytes(36), "'b'"),
    ("hole at the end", {"a.weight": _entry()}, bytes(17), "its header describes"),
    ("data cut", {"a.weight": _entry()}, bytes(15), "truncated"),
    ("no data", {"a.weight": _entry()}, b"", "truncated"),
    ("entry null", {"a.weight": None}, D, "a.weight"),
    ("entry a list", {"a.weight": ["F32", [2, 2], [0, 16]]}, D, "a.weight"),
    ("entry a number", {"a.weight": 1}, D, "a.weight"),
    ("no dtype", {"a.weight": {"shape": [2, 2], "data_offsets": [0, 16]}}, D, "a.weight"),
    ("no shape", {"a.weight": {"dtype": "F32", "data_offsets": [0, 16]}}, D, "a.weight"),
    ("no offsets", {"a.weight": {"dtype": "F32", "shape": [2, 2]}}, D, "a.weight"),
    ("another key", {"a.weight": _entry() | {"strides": [2, 1]}}, D, "a.weight"),
    ("sizes overflow", {"a.weight": _entry(shape=[2**40] * 2)}, D, "a.weight"),
    ("sizes overflow to 0", {"a.weight": _entry(shape=[2**62, 4, 0], offsets=(0, 0))}, b"", "a.w"),
    ("many sizes", {"a.weight": _entry(shape=[2**60] * 10_000)}, D, "a.weight"),
    ("metadata a list", {"__metadata__": [], "a.weight": _entry()}, D, "__metadata__"),
    ("metadata of numbers", {"__metadata__": {"a": 1}, "a.weight": _entry()}, D, "__metadata__"),
    ("metadata null", {"__metadata__": None, "a.weight": _entry()}, D, "__metadata__"),
    ("a list", [1], b"", "expected '{'"),
    ("a text", b'"{}"', b"", "expected '{'"),
    ("null", b"null", b"", "expected '{'"),
    ("blank before", b" " + GOOD, D, "expected '{'"),
    ("byte order mark", b"\xef\xbb\xbf" + GOOD, D, "expected '{'"),
    ("UTF-16", '{"a":1}'.encode("utf-16-le"), b"", "is not JSON"),
    ("Latin-1", b'{"\xe4":1}', b"", "is not JSON in UTF-8"),
    ("cut JSON", GOOD[:-3], D, "is not JSON"),
    ("two objects", GOOD + b"{}", D, "is not JSON"),
    ("a comment", b"{/* */}", b"", "is not JSON"),
    ("a comma too many", GOOD[:-1] + b",}", D, "is not JSON"),
    ("NUL inside", b'{"a\0":1}', b"", "is not JSON"),
    ("one name twice", b'{"a.weight":1,"a.weight":2}', b"", "a.weight"),
    ("one name twice, escaped", b'{"a.weight":1,"\\u0061.weight":2}', b"", "a.weight"),
    ("one key twice", GOOD.replace(b'"dtype"', b'"shape":[4],"dtype"'), D, "'shape'"),
    ("lone surrogate", b'{"\\ud800":1}', b"", "is not JSON in UTF-8"),
    ("NaN", GOOD.replace(b"16", b"NaN"), D, "NaN"),
    ("minus zero", GOOD.replace(b"[0,", b"[-0,"), D, "-0"),
    ("a number of 5000 digits", GOOD.replace(b"16", b"1" * 5000), D, "JSON"),
    ("deep", b'{"a":' * 30_000 + b"1" + b"}" * 30_000, b"", "nested too deeply"),
    ("deep lists", b'{"a":' + b"[" * 90_000 + b"]" * 90_000 + b"}", b"", "nested too deeply"),
]:
    _header(name, header, data, *named)


# Files that are something else.


def _content(name: str, content: bytes, *named: str) -> None:
    @_case(f"file: {name}", WEIGHTS, *named)
    def make(folder: Path) -> Path:
        (folder / "bad").mkdir()
        (folder / "bad" / WEIGHTS).write_bytes(content)
        return folder / "bad"


for name, content, *named in [
    ("empty", b"", "0 bytes"),
    ("seven bytes", bytes(7), "7 bytes"),
    ("length alone", struct.pack("<Q", 2), "8 bytes"),
    ("length zero", bytes(64), "header length of 0"),
    ("length of 2^64 - 1", b"\xff" * 64, "header length of 18,446,744,073,709,551,615"),
    ("length beyond the limit", struct.pack("<Q", 100_000_001) + bytes(64), "100,000,001"),
    ("length beyond the file", struct.pack("<Q", 65) + b"{" + bytes(63), "header length of 65"),
    ("git-lfs pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs"),
    ("zip", b"PK\x03\x04" + bytes(100), "zip"),
    ("pickle", b"\x80\x04cposix\nsystem\n(X\x04\0\0\0touch ran\x85R.", "pickle"),
    ("GGUF", b"GGUF\x03\0\0\0" + bytes(100), "GGUF"),
    ("web page", b"<!DOCTYPE html><html>404</html>", "web page"),
    ("gzip", b"\x1f\x8b\x08" + bytes(100), "not safetensors"),
]:
    _content(name, content, *named)


@_case("file: a folder", "is a folder, expected a file")
def _(folder: Path) -> Path:
    (folder / "bad" / WEIGHTS).mkdir(parents=True)
    return folder / "bad"


@_case("file: a pipe", WEIGHTS, "pipe")
def _(folder: Path) -> Path:
    (folder / "bad").mkdir()
    os.mkfifo(folder / "bad" / WEIGHTS)
    return folder / "bad"


@_case("file: a pipe by its name", "x.safetensors", "pipe")
def _(folder: Path) -> Path:
    os.mkfifo(folder / "x.safetensors")
    return folder / "x.safetensors"


@_case("file: a link to nothing", WEIGHTS, "link to nothing")
def _(folder: Path) -> Path:
    (folder / "bad").mkdir()
    (folder / "bad" / WEIGHTS).symlink_to("gone")
    return folder / "bad"


@_case("file: a link to itself", "bad")
def _(folder: Path) -> Path:
    (folder / "bad").symlink_to("bad")
    return folder / "bad"


@_case("file: a device", "/dev/zero", "pipe or device")
def _(_: Path) -> Path:
    return Path("/dev/zero")


@_case("file: a text", "notes.txt")
def _(folder: Path) -> Path:
    (folder / "notes.txt").write_text("weights")
    return folder / "notes.txt"


# Indexes.


def _index(name: str, change: Callable[[dict[str, Any]], Any] | bytes, *named: str) -> None:
    @_case(f"index: {name}", INDEX, *named)
    def make(folder: Path) -> Path:
        bad = _full(folder, shards=2)
        if isinstance(change, bytes):
            (bad / INDEX).write_bytes(change)
            return bad
        index = json.loads((bad / INDEX).read_text())
        changed = change(index)
        (bad / INDEX).write_text(json.dumps(index if changed is None else changed))
        return bad


def _naming(shard: Any) -> Callable[[dict[str, Any]], None]:
    return lambda index: index["weight_map"].update({f"{Q}.weight": shard})


for name, shard in {
    "a sibling": "../secret.safetensors", "a secret": "/etc/passwd", "the folder above": "..",
    "the folder": ".", "nothing": "", "NUL": "a\0b", "a detour": "a/../../base/model.safetensors",
    "null": None, "a number": 3, "a list": ["model-00001-of-00002.safetensors"], "true": True,
    "a map": {}, "a shard that is not there": "model-00003-of-00002.safetensors",
    "a URL": "https://host.invalid/x.safetensors", "a file URL": "file:///etc/passwd",
    "a home": "~/x.safetensors", "a variable": "$HOME/x.safetensors", "a long name": "x" * 5000,
    "the index": INDEX, "itself by a detour": f"./{INDEX}", "a lone surrogate": "\ud800",
}.items():  # fmt: skip
    _index(f"names {name}", _naming(shard))
for name, change, *named in [
    ("no weight_map", lambda i: {"metadata": {}}, "weight_map"),
    ("empty weight_map", lambda i: {"weight_map": {}}, "weight_map"),
    ("weight_map a list", lambda i: {"weight_map": [1]}, "weight_map"),
    ("weight_map null", lambda i: {"weight_map": None}, "weight_map"),
    ("weight_map a text", lambda i: {"weight_map": "model.safetensors"}, "weight_map"),
    ("a list", lambda i: [i], "list"),
    ("a number", lambda i: 3, "int"),
    ("null", b"null", "NoneType"),
    ("empty", b"", "is not JSON"),
    ("cut", b'{"weight_map": {"a": ', "is not JSON"),
    ("binary", bytes(range(256)), "is not JSON"),
    ("twice", b'{"weight_map": {"a": "b", "a": "c"}}', "'a'"),
    ("deep", b'{"weight_map":' * 30_000, "JSON|nested"),
    ("NaN", b'{"metadata": {"total_size": NaN}, "weight_map": {}}', "NaN"),
    (
        "a tensor that its shard does not hold",
        lambda i: i["weight_map"].update({"x.weight": "model-00001-of-00002.safetensors"}),
        "x.weight",
    ),
]:
    _index(name, change, *named)


@_case("index: a shard is cut", "model-00002-of-00002.safetensors", "truncated")
def _(folder: Path) -> Path:
    bad = _full(folder, shards=2)
    os.truncate(bad / "model-00002-of-00002.safetensors", 700)
    return bad


@_case("index: a shard is a folder", INDEX, "model-00002-of-00002.safetensors")
def _(folder: Path) -> Path:
    bad = _full(folder, shards=2)
    (bad / "model-00002-of-00002.safetensors").unlink()
    (bad / "model-00002-of-00002.safetensors").mkdir()
    return bad


@_case("index: shards without one", "model-00001-of-00002.safetensors", "index")
def _(folder: Path) -> Path:
    bad = _full(folder, shards=2)
    (bad / INDEX).unlink()
    return bad


# Configs of models.


def _config(name: str, text: str | bytes, *named: str) -> None:
    @_case(f"config: {name}", "config.json", *named)
    def make(folder: Path) -> Path:
        bad = _full(folder)
        content = text if isinstance(text, bytes) else text.encode()
        (bad / "config.json").write_bytes(content)
        return bad


for name, text, *named in [
    ("empty", "", "is not JSON"),
    ("a list", "[]", "list"),
    ("a text", '"llama"', "str"),
    ("null", "null", "NoneType"),
    ("cut", '{"model_type": "lla', "is not JSON"),
    ("twice", '{"model_type": "a", "model_type": "b"}', "model_type"),
    ("deep", '{"a":' * 50_000, "nested|JSON"),
    ("binary", b"\xff\xfe\0", "is not JSON"),
    ("a digit too many", '{"a": ' + "9" * 5000 + "}", "JSON"),
    ("lone surrogate", '{"model_type": "\\udfff"}', "is not JSON"),
    ("a script", EVIL, "is not JSON"),
]:
    _config(name, text, *named)


for value in ([], ["gptq"], {"x": 1}, 4, True, "newest"):

    @_case(f"config: quant_method {value!r}", "bad", "quant_method|newest")
    def _(folder: Path, value: Any = value) -> Path:
        return write_full(
            folder / "bad",
            moved(tiny_llama(1)),
            config={"quantization_config": {"quant_method": value}},
        )


for value in ("four", 4.0, None, [4], 3, True):

    @_case(f"config: bits {value!r}", f"{Q}.weight|{Q}.qweight", "bits")
    def _(folder: Path, value: Any = value) -> Path:
        packed = {
            f"{Q}.qweight": torch.zeros(3, 32, dtype=torch.int32),
            f"{Q}.qzeros": torch.zeros(3, 4, dtype=torch.int32),
            f"{Q}.scales": torch.ones(3, 32, dtype=torch.float16),
            f"{Q}.g_idx": torch.zeros(24, dtype=torch.int32),
        }
        settings = {"quant_method": "gptq", "bits": value}
        return write_full(folder / "bad", packed, config={"quantization_config": settings})


@_case("config: a folder", "config.json")
def _(folder: Path) -> Path:
    bad = _full(folder)
    (bad / "config.json").mkdir()
    return bad


@_case("config: a pipe", "config.json")
def _(folder: Path) -> Path:
    bad = _full(folder)
    os.mkfifo(bad / "config.json")
    return bad


# Configs of adapters.


def _field(field: str, *values: Any, **more: Any) -> None:
    for value in values:

        @_case(f"adapter config: {field} {value!r} {more or ''}"[:70], field, "bad")
        def make(folder: Path, value: Any = value) -> Path:
            return _lora(folder, **{field: value}, **more)


_field("peft_type", None, "", "LORAX", 1, ["LORA"], {"LORA": 1}, "lora\n")
_field("r", 0, -4, "4", 4.5, True, None, [2], 2**31, 2**70, 10**400, 3)
_field("lora_alpha", "16", None, True, [], 10**400, {})
_field("use_rslora", "false", 1, None, [])
_field("use_dora", "false", 1, True)
_field("alpha_pattern", "q_proj", 3, [1], {"q_proj": "x"}, {"q_proj": None}, {"(": 1})
_field("rank_pattern", "q_proj", 3, [1], {"q_proj": 0}, {"q_proj": "2"}, {"q_proj": 2.5})
_field("lora_bias", "yes", 1, True)
_field("target_parameters", 7, [7], {"q_proj": 1})
for name, text, *named in [
    ("empty", "", "is not JSON"),
    ("a list", "[]", "list"),
    ("null", "null", "NoneType"),
    ("twice", '{"r": 4, "r": 16}', "'r'"),
    ("NaN", '{"r": 2, "lora_alpha": NaN}', "NaN"),
    ("Infinity", '{"r": 2, "lora_alpha": -Infinity}', "Infinity"),
    ("deep", '{"r":' * 50_000, "nested|JSON"),
    ("cut", '{"r": ', "is not JSON"),
    ("empty object", "{}", "peft_type"),
    ("a script", EVIL, "is not JSON"),
]:

    @_case(f"adapter config: {name}", *(named or ()), "bad")
    def _(folder: Path, text: str = text) -> Path:
        bad = _lora(folder)
        (bad / CONFIG).write_text(text)
        return bad


@_case("adapter config: none", CONFIG)
def _(folder: Path) -> Path:
    bad = _lora(folder)
    (bad / CONFIG).unlink()
    return bad


# Tensors of adapters.


def _tensors(name: str, change: Callable[[dict[str, torch.Tensor]], Any], *named: str) -> None:
    @_case(f"adapter: {name}", "bad", *named)
    def make(folder: Path) -> Path:
        bad = _lora(folder)
        tensors = load_file(bad / ADAPTER)
        change(tensors)
        save_file(tensors, bad / ADAPTER)
        return bad


def _set(key: str, *shape: int, dtype: torch.dtype = torch.float32) -> Callable[[Any], None]:
    return lambda tensors: tensors.update({key: torch.ones(shape, dtype=dtype)})


for name, change, *named in [
    ("no tensors", lambda t: t.clear(), "empty"),
    ("no B", lambda t: t.pop(B_Q), f"{Q}.lora_B"),
    ("no A", lambda t: t.pop(A_Q), f"{Q}.lora_A"),
    ("A of another rank", _set(A_Q, 3, 24), Q),
    ("A in three dimensions", _set(A_Q, 2, 24, 2), Q),
    ("A in one dimension", _set(A_Q, 48), Q),
    ("A a scalar", _set(A_Q), Q),
    ("A without elements", _set(A_Q, 2, 0), Q),
    ("A of whole numbers", _set(A_Q, 2, 24, dtype=torch.int32), Q),
    ("A of booleans", _set(A_Q, 2, 24, dtype=torch.bool), Q),
    ("A of another width", _set(A_Q, 2, 25), Q),
    ("B of another height", _set(B_Q, 33, 2), Q),
    ("an unknown part", _set(f"base_model.model.{Q}.lora_C.weight", 2, 2), "lora_C"),
    ("a part of another tuner", _set(f"base_model.model.{Q}.vera_lambda_b", 2), "vera_lambda_b"),
    ("a second adapter", _set(f"base_model.model.{Q}.lora_A.other.weight", 2, 24), "other"),
    ("a bias that is denied", _set(f"base_model.model.{Q}.lora_B.bias", 32), "lora_bias"),
    ("a magnitude that is denied", _set(f"base_model.model.{Q}.lora_magnitude_vector", 32), "use_"),
    ("one tensor twice", _set(f"{Q}.lora_A.weight", 2, 24), Q),
]:
    _tensors(name, change, *named)


@_case("adapter: of modules that the base has not", "bad")
def _(folder: Path) -> Path:
    factors = {"decoder.block.q": (torch.ones(2, 24), torch.ones(32, 2))}
    return write_adapter(folder / "bad", factors)


@_case("adapter: a magnitude too short", Q)
def _(folder: Path) -> Path:
    magnitudes = {Q: torch.ones(31), V: torch.ones(8)}
    return write_adapter(folder / "bad", low_rank(tiny_llama(1)), magnitudes)


# Folders and models.


@_case("folder: none", "gone")
def _(folder: Path) -> Path:
    return folder / "gone"


@_case("folder: empty", "no weights found")
def _(folder: Path) -> Path:
    (folder / "bad").mkdir()
    return folder / "bad"


@_case("folder: only pickles", "pytorch_model.bin")
def _(folder: Path) -> Path:
    (folder / "bad").mkdir()
    (folder / "bad" / "pytorch_model.bin").write_bytes(b"\x80\x02cos\nsystem\n(X\x01\0\0\0xtR.")
    return folder / "bad"


@_case("folder: a model and an adapter", WEIGHTS, ADAPTER)
def _(folder: Path) -> Path:
    _full(folder)
    return _lora(folder)


@_case("folder: a model_index.json that leads out", "model_index.json", "../base")
def _(folder: Path) -> Path:
    (folder / "bad").mkdir()
    index = {"../base": ["diffusers", "UNet"]}
    (folder / "bad" / "model_index.json").write_text(json.dumps(index))
    return folder / "bad"


@_case("model: no tensors", "holds no tensors")
def _(folder: Path) -> Path:
    return write_full(folder / "bad", {})


@_case("model: of another shape", f"{Q}.weight", "(32, 24)", "(32, 25)")
def _(folder: Path) -> Path:
    return write_full(folder / "bad", tiny_llama(1) | {f"{Q}.weight": torch.ones(32, 25)})


@_case("model: of other names", "bad")
def _(folder: Path) -> Path:
    return write_full(folder / "bad", {"x.y": torch.ones(3, 4)})
