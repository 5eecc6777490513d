"""Pickled weights: closed unless asked for, opened as tensors alone, converted by what is told."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from builders import low_rank, moved, tiny_llama, write_adapter, write_full
from safetensors.torch import load_file
from test_folders import _llama
from torch import Tensor

import wdecomp
from wdecomp.checkpoint import Checkpoint, LoadedTensor, open_checkpoint, read_whole
from wdecomp.checkpoint.pickled import load_pickled
from wdecomp.cli import main
from wdecomp.dtypes import RAW
from wdecomp.errors import CheckpointError, MissingExtraError, WdecompError

NESTED = ("state_dict", "model", "module", "model_state_dict")
NAMES = (
    "pytorch_model.bin", "adapter_model.bin", "diffusion_pytorch_model.bin", "x.pt", "x.pth",
    "x.ckpt", "x.bin", "pytorch_model.fp16.bin", "pytorch_lora_weights.bin", "optimizer.pt",
    "rng_state.pth", "rng_state_0.pth", "scheduler.pt", "training_args.bin", "optimizer.bin",
    "random_states_0.pkl", "x.pkl", "model.safetensors", "x.safetensors", "x", "__0_0.distcp",
    "pytorch_model-00001-of-00001.bin", "consolidated.00.pth",
)  # fmt: skip


class Evil:
    """Touches a file when a pickle of it is opened."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.file),)


def _command(message: str) -> str:
    command = message.rpartition("run: ")[2]
    assert command.isprintable()
    return command


def _refusal(path: Path, allow_pickle: bool = False) -> str:
    with pytest.raises(CheckpointError) as refused:
        open_checkpoint(path, allow_pickle)
    return str(refused.value)


def _run(command: str) -> None:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", command], check=True, capture_output=True, env=environment)


def _same(opened: Checkpoint, tensors: Mapping[str, Tensor]) -> None:
    assert {n: t.shape for n, t in opened.tensors.items()} == {
        n: tuple(t.shape) for n, t in tensors.items()
    }
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(read_whole(opened.tensors[name]), tensor.numpy())


FOLDERS = ["a b", "it's", 'say "no"', "$(touch x)`y`", "new\nline", "ü\\n", "-c"]
LAYOUTS = [("plain", level, is_zip) for level in (None, *NESTED) for is_zip in (True, False)]


@pytest.mark.parametrize(
    ("folder", "level", "is_zip"), [*LAYOUTS, *((folder, None, True) for folder in FOLDERS)]
)
def test_the_command_that_is_told_converts(
    folder: str, level: str | None, is_zip: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here = Path(folder)
    here.mkdir()
    tensors = tiny_llama(1)
    tensors["tied"] = tensors["model.norm.weight"]
    tensors["turned"] = torch.rand(3, 5).T
    value = tensors if level is None else {level: tensors, "epoch": 3}
    torch.save(value, here / "pytorch_model.bin", _use_new_zipfile_serialization=is_zip)
    message = _refusal(here)
    assert "--allow-pickle opens its tensors" in message
    assert "weights_only=False" not in message
    _run(_command(message))
    _same(open_checkpoint(here), tensors)
    assert {file.name for file in here.iterdir()} == {"model.safetensors", "pytorch_model.bin"}
    assert [file.name for file in tmp_path.iterdir()] == [folder]


def test_the_command_is_the_same_through_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write_full(tmp_path / "base", tiny_llama(1))
    old = tmp_path / "a\nü \x1b b"
    old.mkdir()
    torch.save(tiny_llama(1), old / "x.pt")
    with pytest.raises(SystemExit):
        main(["compare", str(base), f"x={old / 'x.pt'}"])
    _run(_command(capsys.readouterr().err.rstrip("\n")))
    _same(open_checkpoint(old / "x.safetensors"), tiny_llama(1))


@pytest.mark.parametrize(
    ("name", "converted"),
    [
        ("adapter_model.bin", "adapter_model.safetensors"),
        ("diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors"),
        ("pytorch_model.fp16.bin", "model.fp16.safetensors"),
        ("pytorch_lora_weights.bin", "pytorch_lora_weights.safetensors"),
        ("my.model.ckpt", "my.model.safetensors"),
    ],
)
def test_a_converted_file_has_the_name_that_is_looked_for(
    name: str, converted: str, tmp_path: Path
) -> None:
    torch.save(tiny_llama(1), tmp_path / name)
    _run(_command(_refusal(tmp_path)))
    assert load_file(tmp_path / converted).keys() == tiny_llama(1).keys()


def test_a_command_writes_over_nothing(tmp_path: Path) -> None:
    write_full(tmp_path, {"mine": torch.ones(2, 3)})
    torch.save(tiny_llama(1), tmp_path / "pytorch_model.bin")
    _run(_command(_refusal(tmp_path / "pytorch_model.bin")))
    assert list(load_file(tmp_path / "model.safetensors")) == ["mine"]
    assert load_file(tmp_path / "model-2.safetensors").keys() == tiny_llama(1).keys()


def _pickled_shards(folder: Path, tensors: Mapping[str, Tensor], variant: str = "") -> Path:
    """As transformers 4 wrote them with safe_serialization=False; 5 writes safetensors only."""
    folder.mkdir(parents=True, exist_ok=True)
    weight_map = {}
    for i in (1, 2):
        name = f"pytorch_model{variant}-0000{i}-of-00002.bin"
        part = dict(list(tensors.items())[i - 1 :: 2])
        torch.save(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    index = folder / f"pytorch_model.bin.index{variant}.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_pickled_shards_are_opened_or_converted_through_their_index(
    variant: str, tmp_path: Path
) -> None:
    tensors = tiny_llama(2)
    folder = _pickled_shards(tmp_path / "it's", tensors, variant)
    message = _refusal(folder)
    assert "index" in message
    opened = open_checkpoint(folder, allow_pickle=True)
    _same(opened, tensors)
    assert len(opened.shards) == 2
    _run(_command(message))
    _same(open_checkpoint(folder), tensors)
    assert len(open_checkpoint(folder).shards) == 2


def test_what_is_left_out_of_a_shard_is_said(tmp_path: Path) -> None:
    folder = _pickled_shards(tmp_path, tiny_llama(1))
    shard = folder / "pytorch_model-00001-of-00002.bin"
    torch.save(torch.load(shard) | {"extra": torch.ones(2), "n": 3}, shard)
    assert open_checkpoint(folder, allow_pickle=True).left_out == (
        ("extra", f"in {shard.name}, but not listed there by pytorch_model.bin.index.json"),
        ("n", f"in {shard.name}: a int, no tensor"),
    )


def test_an_index_of_safetensors_that_names_a_pickle_or_a_state_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2, 3)}, tmp_path / "x.bin")
    torch.save({"a": torch.ones(2, 3)}, tmp_path / "optimizer.pt")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "x.bin"}}))
    assert "x.bin may run code" in _refusal(tmp_path)
    assert list(open_checkpoint(tmp_path, allow_pickle=True).tensors) == ["a"]
    index.write_text(json.dumps({"weight_map": {"a": "optimizer.pt"}}))
    assert "is what a trainer needs" in _refusal(tmp_path, allow_pickle=True)


@pytest.mark.parametrize("way", ["accelerate", "torch"])
@pytest.mark.parametrize("inner", ["", "pytorch_model_fsdp_0", "a 'b"])
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_a_distributed_checkpoint_is_never_opened_and_its_commands_convert(
    inner: str, way: str, tmp_path: Path
) -> None:
    folder = tmp_path / "check point"
    where = folder / inner
    tensors = tiny_llama(1)
    dcp.save({"model": tensors}, checkpoint_id=where)
    for allow_pickle in (True, False):
        message = _refusal(folder, allow_pickle)
        assert "is a distributed checkpoint" in _refusal(where / "__0_0.distcp", allow_pickle)
    assert not (folder / "out.pt").exists()
    first = message.partition("run: ")[2].partition(" – or")[0]
    _run(first if way == "accelerate" else _command(message))
    assert (folder / "out.pt").exists() == (way == "torch")
    _same(open_checkpoint(folder), tensors)


def test_a_folder_of_deepspeed_is_told_to_run_its_script(tmp_path: Path) -> None:
    (tmp_path / "global_step10").mkdir()
    name = "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"
    torch.save({"a": torch.ones(2, 3)}, tmp_path / "global_step10" / name)
    assert "run its zero_to_fp32.py: python" in _refusal(tmp_path)
    assert "run its zero_to_fp32.py: python" in _refusal(tmp_path, allow_pickle=True)


@pytest.mark.parametrize("allow_pickle", [True, False])
def test_what_a_trainer_keeps_is_never_opened_nor_to_be_converted(
    allow_pickle: bool, tmp_path: Path
) -> None:
    names = [
        "optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state.pth", "rng_state_3.pth",
        "optimizer.bin", "random_states_0.pkl", "scaler.pt",
    ]  # fmt: skip
    for name in names:
        torch.save({"a": torch.ones(2, 3)}, tmp_path / name)
        assert "is what a trainer needs to go on" in _refusal(tmp_path / name, allow_pickle)
    message = _refusal(tmp_path, allow_pickle)
    assert "no weights found. Looked for" in message
    assert not any(name in message for name in names)


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_no_file_ever_runs_what_is_pickled_in_it(
    name: str, nested: bool, is_zip: bool, tmp_path: Path
) -> None:
    touched, folder = tmp_path / "touched", tmp_path / "folder"
    folder.mkdir()
    evil = {"a": torch.ones(2, 3), "b": Evil(touched)}
    value = {"state_dict": evil} if nested else evil
    torch.save(value, folder / name, _use_new_zipfile_serialization=is_zip)
    for allow_pickle in (False, True):
        for path in (folder, folder / name):
            message = _refusal(path, allow_pickle)
            assert "weights_only=False" not in message
            assert "\n" not in message
            options = ["--allow-pickle"] if allow_pickle else []
            for command in ("compare", "inspect"):
                for arguments in ([path, path], [path]):
                    with pytest.raises(SystemExit) as stopped:
                        main([command, *map(str, arguments), *options])
                    assert stopped.value.code == 1
    assert not touched.exists()
    with (folder / "bare").open("wb") as stream:
        pickle.dump(Evil(touched), stream)
    pickle.loads((folder / "bare").read_bytes())
    assert touched.exists()  # the proof can fail


def test_an_evil_pickle_under_an_adapters_name_and_config_stays_closed(tmp_path: Path) -> None:
    lora = write_adapter(tmp_path / "lora", low_rank(tiny_llama(1)))
    (lora / "adapter_model.safetensors").unlink()
    torch.save({"a.lora_A.weight": Evil(tmp_path / "touched")}, lora / "adapter_model.bin")
    base = write_full(tmp_path / "base", tiny_llama(1))
    for allow_pickle in (True, False):
        with pytest.raises(WdecompError):
            wdecomp.compare(base, lora, allow_pickle=allow_pickle)
        with pytest.raises(WdecompError):
            wdecomp.compare(lora, base, allow_pickle=allow_pickle)
    assert not (tmp_path / "touched").exists()


DTYPES = {
    torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float64: "F64",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.bool: "BOOL",
    torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.int32: "I32",
    torch.int64: "I64", torch.uint16: "U16", torch.uint32: "U32", torch.uint64: "U64",
}  # fmt: skip

OLDER = (  # torch itself reads no others back from its older format
    torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.bool, torch.uint8,
    torch.int8, torch.int16, torch.int32, torch.int64,
)  # fmt: skip


@pytest.mark.parametrize(
    ("dtype", "is_zip"),
    [*((dtype, True) for dtype in DTYPES), *((dtype, False) for dtype in OLDER)],
)
def test_loaded_numbers_are_the_bits_of_the_tensor(
    dtype: torch.dtype, is_zip: bool, tmp_path: Path
) -> None:
    raw = torch.arange(2, 50, dtype=torch.uint8)
    raw = raw % 2 if dtype == torch.bool else raw
    tensor = raw.view(dtype).reshape(2, -1)
    file = tmp_path / "x.pt"
    values = {"a": tensor, "empty": tensor[:, :0], "scalar": tensor[0, 0], "part": tensor[1:]}
    values |= {"turned": tensor.T, "strided": tensor.flatten()[::2]}
    torch.save(values, file, _use_new_zipfile_serialization=is_zip)
    found = load_pickled(file).tensors
    for name, value in values.items():
        loaded = found[name]
        assert isinstance(loaded, LoadedTensor)
        assert loaded.dtype == DTYPES[dtype]
        assert loaded.shape == tuple(value.shape)
        assert loaded.numbers.dtype == RAW[DTYPES[dtype]]
        want = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        assert loaded.numbers.tobytes() == want
        assert read_whole(loaded).shape == loaded.shape


def test_the_numbers_of_a_zip_are_mapped_and_those_of_an_older_file_are_not(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1 << 20)}, tmp_path / "x.pt")
    found = load_pickled(tmp_path / "x.pt")
    mapped = Path("/proc/self/maps")
    if not mapped.exists():
        pytest.skip("only Linux lists what is mapped")
    assert str(tmp_path / "x.pt") in mapped.read_text()
    assert found.tensors["a"].nbytes == 4 << 20


def test_what_is_no_tensor_that_can_be_read_is_left_out_with_the_reason(tmp_path: Path) -> None:
    inner = {
        "a": torch.ones(2, 3), "n": 3, "c": torch.ones(2, dtype=torch.complex64),
        "s": torch.ones(2, 2).to_sparse(), "huge": torch.ones(1).expand(2**40), 7: torch.ones(2),
        "deeper": {"b": torch.ones(2)}, "\udcff": torch.ones(2),
    }  # fmt: skip
    torch.save({"model": inner, "epoch": 3, "other": torch.ones(2)}, tmp_path / "x.pt")
    opened = open_checkpoint(tmp_path / "x.pt", allow_pickle=True)
    assert list(opened.tensors) == ["a"]
    reasons = dict(opened.left_out)
    assert set(reasons) == {
        "n", "c", "s", "huge", "7", "deeper", "\\udcff", "epoch", "other",
    }  # fmt: skip
    assert reasons["n"] == "in x.pt: a int, no tensor"
    assert reasons["other"] == "in x.pt, beside its model"
    assert "more numbers than the file" in reasons["huge"]
    assert "complex64, which cannot be read" in reasons["c"]
    json.dumps(reasons, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ([torch.ones(2)], "holds a list, expected tensors by name"),
        (torch.ones(2), "holds a Tensor, expected tensors by name"),
        ({}, "holds no tensors by name"),
        ({"model": {"model": {"a": torch.ones(2)}}}, "holds no tensors by name"),
        ({"a": torch.ones(2), "b": np.float64}, "beside its tensors, which may run code"),
    ],
)
def test_a_pickle_of_something_else_is_one_clear_line(
    value: Any, what: str, tmp_path: Path
) -> None:
    torch.save(value, tmp_path / "x.pt")
    message = _refusal(tmp_path / "x.pt", allow_pickle=True)
    assert message.startswith(f"{tmp_path / 'x.pt'}: ")
    assert what in message
    assert "weights_only" not in message


def test_a_damaged_pickle_is_one_clear_line(tmp_path: Path) -> None:
    for is_zip in (True, False):
        file = tmp_path / "x.pt"
        torch.save(tiny_llama(1), file, _use_new_zipfile_serialization=is_zip)
        whole = file.read_bytes()
        pieces = [whole[: len(whole) * i // 9] for i in range(9)]
        pieces += [b"\x80\x02garbage.", b"<html>", b"PK\x03\x04", whole[:40] + b"\xff" * 90]
        for piece in pieces:
            file.write_bytes(piece)
            message = _refusal(file, allow_pickle=True)
            assert message.startswith(f"{file}: ")
            assert "\n" not in message
            assert "weights_only" not in message


def test_a_torchscript_archive_is_told_apart(tmp_path: Path) -> None:
    class Doubling(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + x

    torch.jit.trace(Doubling(), torch.ones(2)).save(str(tmp_path / "x.pt"))
    assert "is a TorchScript archive" in _refusal(tmp_path / "x.pt", allow_pickle=True)


def test_pickled_and_safetensors_have_the_same_tables(tmp_path: Path) -> None:
    base, tuned = tiny_llama(2), moved(tiny_llama(2))
    sides = {}
    for name, tensors in (("base", base), ("ft", tuned)):
        halves = {key: value.bfloat16() for key, value in tensors.items()}
        sides[name] = write_full(tmp_path / "safe" / name, halves)
        (tmp_path / "old" / name).mkdir(parents=True)
        torch.save({"state_dict": halves}, tmp_path / "old" / name / "pytorch_model.bin")
    want = wdecomp.compare(sides["base"], sides["ft"])
    old = [tmp_path / "old" / name for name in ("base", "ft")]
    got = wdecomp.compare(*old, allow_pickle=True)
    assert want.modules.equals(got.modules)
    assert len(want.modules) > 4
    assert want.columns("ft").equals(got.columns("ft"))
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin may run code"):
        wdecomp.compare(*old)


def test_a_pickled_adapter_is_read_like_its_safetensors(tmp_path: Path) -> None:
    base = write_full(tmp_path / "base", tiny_llama(1))
    lora = write_adapter(tmp_path / "lora", low_rank(tiny_llama(1)))
    want = wdecomp.compare(base, lora).modules
    file = lora / "adapter_model.safetensors"
    torch.save(load_file(file), lora / "adapter_model.bin")
    file.unlink()
    with pytest.raises(CheckpointError, match=r"adapter_model\.bin may run code"):
        wdecomp.compare(base, lora)
    assert wdecomp.compare(base, lora, allow_pickle=True).modules.equals(want)
    assert open_checkpoint(lora, allow_pickle=True).is_adapter


def test_safetensors_go_before_a_pickle_with_the_flag_too(tmp_path: Path) -> None:
    write_full(tmp_path, tiny_llama(1))
    torch.save({"b": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    _same(open_checkpoint(tmp_path, allow_pickle=True), tiny_llama(1))


def test_a_pickle_of_an_unknown_name_is_opened_when_it_is_named(tmp_path: Path) -> None:
    torch.save(tiny_llama(1), tmp_path / "consolidated.00.pth")
    assert "To read consolidated.00.pth, name the file" in _refusal(tmp_path, allow_pickle=True)
    _same(open_checkpoint(tmp_path / "consolidated.00.pth", allow_pickle=True), tiny_llama(1))


def test_the_commands_have_the_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = []
    for name, tensors in (("base", tiny_llama(2)), ("ft", moved(tiny_llama(2)))):
        paths.append(str(tmp_path / f"{name}.pt"))
        torch.save(tensors, paths[-1])
    main(["inspect", *paths, "--allow-pickle"])
    assert "ft.pt" in capsys.readouterr().out
    main(["inspect", paths[0], "--allow-pickle"])
    assert "full" in capsys.readouterr().out
    main(["compare", *paths, "--allow-pickle", "-q", "-o", str(tmp_path / "out")])
    assert "down" in capsys.readouterr().out


def test_a_state_that_transformers_saved_is_read(tmp_path: Path) -> None:
    model = _llama()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    model.config.save_pretrained(tmp_path)
    opened = open_checkpoint(tmp_path, allow_pickle=True)
    _same(opened, model.state_dict())
    assert opened.model_type == "llama"


def test_torch_is_imported_only_for_a_pickle_with_the_flag(tmp_path: Path) -> None:
    write_full(tmp_path, tiny_llama(1))
    torch.save(tiny_llama(1), tmp_path / "x.pt")
    code = (
        "import sys; from pathlib import Path; import wdecomp.checkpoint as c\n"
        "import wdecomp.checkpoint.pickled; d = Path(sys.argv[1])\n"
        "c.open_checkpoint(d, allow_pickle=True); assert 'torch' not in sys.modules\n"
        "try: c.open_checkpoint(d / 'x.pt')\n"
        "except c.contents.CheckpointError: assert 'torch' not in sys.modules\n"
        "else: raise SystemExit('opened')\n"
        "c.open_checkpoint(d / 'x.pt', allow_pickle=True); assert 'torch' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_without_torch_or_with_an_old_one_a_pickle_stays_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(tiny_llama(1), tmp_path / "x.pt")
    for version in ("2.5.1+cu121", "1.13.0"):
        monkeypatch.setattr(torch, "__version__", version)
        with pytest.raises(MissingExtraError, match=r"Install torch>=2\.6"):
            open_checkpoint(tmp_path / "x.pt", allow_pickle=True)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match="torch is not installed"):
        open_checkpoint(tmp_path / "x.pt", allow_pickle=True)
