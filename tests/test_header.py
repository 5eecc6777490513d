"""Our header parser beside safetensors itself: never more lenient, and equal where both accept."""

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from fuzz_headers import CORPUS, as_safetensors_sees, as_we_see
from safetensors.torch import save_file

from wdecomp.checkpoint import read_header, read_whole
from wdecomp.dtypes import widen
from wdecomp.errors import CheckpointError

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
READ_BY_OTHERS = [torch.float8_e4m3fn, torch.float8_e5m2, torch.bool, torch.uint8, torch.int64]
TENSORS = CORPUS[0]


def _file(folder: Path, header: bytes, data: bytes) -> Path:
    path = folder / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def test_every_tensor_is_where_safetensors_put_it(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    numbers = torch.arange(6).reshape(2, 3)
    typed = {str(dtype): numbers.to(dtype) for dtype in (*FLOATS, *READ_BY_OTHERS)}
    save_file(TENSORS | typed, path, {"format": "pt"})
    assert as_we_see(path) == as_safetensors_sees(path.read_bytes())
    assert as_we_see(path).keys() == (TENSORS | typed).keys()
    assert read_header(path).shard.size == path.stat().st_size


def test_an_empty_tensor_may_stand_behind_one_that_begins_there(tmp_path: Path) -> None:
    header = {"a": _entry(), "none": _entry(shape=(0, 3), offsets=(0, 0))}
    path = _file(tmp_path, json.dumps(header).encode(), DATA)
    assert as_we_see(path) == as_safetensors_sees(path.read_bytes())


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_numbers_are_read_as_they_were_saved(dtype: torch.dtype, tmp_path: Path) -> None:
    saved = torch.tensor([[1.5, -0.0, 3e-5], [float("inf"), -65504.0, 6e-8]]).to(dtype)
    save_file({"a": saved}, tmp_path / "x.safetensors")
    read = widen(read_whole(read_header(tmp_path / "x.safetensors").tensors["a"]))
    assert read.tolist() == saved.tolist()


def _entry(dtype: object = "F32", shape: object = (2, 2), offsets: object = (0, 16)) -> object:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


GOOD = json.dumps({"a": _entry()}).encode()
DATA = bytes(16)
MALFORMED: dict[str, tuple[bytes, bytes, str]] = {
    "truncated": (GOOD, DATA[:-1], "has 82 bytes|is truncated"),
    "trailing bytes": (GOOD, DATA + b"x", "its header describes"),
    "hole": (json.dumps({"a": _entry(offsets=(4, 20))}).encode(), DATA + b"1234", "begins at byte"),
    "overlap": (
        json.dumps({"a": _entry(), "b": _entry(offsets=(8, 24))}).encode(),
        bytes(24),
        "neither overlap nor leave holes",
    ),
    "one name twice": (b'{"a":1,"\\u0061":2}', b"", "the key 'a' stands there twice"),
    "dtype as a map": (json.dumps({"a": _entry({"F32": None})}).encode(), DATA, "dtype is"),
    "entry as a list": (json.dumps({"a": ["F32", [2, 2], [0, 16]]}).encode(), DATA, "the keys"),
    "unknown dtype": (json.dumps({"a": _entry("F33")}).encode(), DATA, "dtype is 'F33'"),
    "extra key": (json.dumps({"a": {**_entry(), "x": 1}}).encode(), DATA, "exactly the keys"),  # type: ignore[dict-item]
    "negative size": (json.dumps({"a": _entry(shape=(-2, -2))}).encode(), DATA, "shape is"),
    "size true": (json.dumps({"a": _entry(shape=(True, 4))}).encode(), DATA, "shape is"),
    "fractional size": (json.dumps({"a": _entry(shape=(2.0, 2))}).encode(), DATA, "shape is"),
    "minus zero": (GOOD.replace(b"[0,", b"[-0,").replace(b"[0, ", b"[-0, "), DATA, "-0 is not"),
    "shape too large": (json.dumps({"a": _entry(shape=(2, 3))}).encode(), DATA, "has 24 bytes"),
    "shape overflows before a zero": (
        json.dumps({"a": _entry(shape=(2**40, 2**40, 0), offsets=(0, 0))}).encode(),
        b"",
        "more than 64 bits",
    ),
    "shape is astronomic": (
        json.dumps({"a": _entry(shape=(2**62,) * 100_000)}).encode(),
        DATA,
        "more than 64 bits",
    ),
    "shape overflows": (json.dumps({"a": _entry(shape=(2**40, 2**40))}).encode(), DATA, "64 bits"),
    "offsets reversed": (json.dumps({"a": _entry(offsets=(16, 0))}).encode(), DATA, "begin, end"),
    "NaN": (GOOD.replace(b"16", b"NaN"), DATA, "NaN is not a number"),
    "lone surrogate": (b'{"\\ud800": 1}', b"", "is not JSON in UTF-8"),
    "deep": (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, b"", "nested too deeply"),
    "leading blank": (b" " + GOOD, DATA, "the header starts with b' '"),
    "not JSON": (b"{nonsense}", b"", "is not JSON"),
    "metadata of numbers": (b'{"__metadata__":{"a":1}}', b"", "__metadata__ is not a map"),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_headers_are_refused_with_the_file_named(kind: str, tmp_path: Path) -> None:
    header, data, message = MALFORMED[kind]
    path = _file(tmp_path, header, data)
    with pytest.raises(CheckpointError, match=message) as refused:
        read_header(path)
    assert str(refused.value).startswith(str(path))


TWICE = b'{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},%b}'
ACCEPTED_BY_SAFETENSORS = {
    "twice the same": TWICE % b'"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}',
    "twice, another shape": TWICE % b'"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}',
    "twice, another dtype": TWICE % b'"a":{"dtype":"I32","shape":[2,2],"data_offsets":[0,16]}',
    "twice, escaped": TWICE % b'"\\u0061":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}',
    "dtype as a map": b'{"a":{"dtype":{"F32":null},"shape":[2,2],"data_offsets":[0,16]}}',
    "entry as a list": b'{"a":["F32",[2,2],[0,16]]}',
}


@pytest.mark.parametrize("kind", ACCEPTED_BY_SAFETENSORS)
def test_what_safetensors_lets_through_is_refused_here(kind: str, tmp_path: Path) -> None:
    path = _file(tmp_path, ACCEPTED_BY_SAFETENSORS[kind], DATA)
    assert list(as_safetensors_sees(path.read_bytes())) == ["a"]
    with pytest.raises(CheckpointError):
        read_header(path)


IMPOSTORS = {
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
    "zip": (b"PK\x03\x04" + bytes(40), "as torch.save writes it"),
    "pickle": (b"\x80\x02}q\x00.", "a pickle"),
    "html": (b"<!DOCTYPE html><html></html>", "a web page"),
    "gguf": (b"GGUF\x03\x00\x00\x00" + bytes(40), "a GGUF file"),
    "empty": (b"", "has 0 bytes"),
    "huge length": (b"\xff" * 8 + b"{}", "truncated or not safetensors"),
}


@pytest.mark.parametrize("kind", IMPOSTORS)
def test_what_is_no_safetensors_is_called_by_its_name(kind: str, tmp_path: Path) -> None:
    content, message = IMPOSTORS[kind]
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_header(path)


def test_a_pipe_is_refused_and_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="is not a regular file"):
        read_header(tmp_path / "x.safetensors")
