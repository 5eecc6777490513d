"""Bad input through the command line: one clear line, exit code 1, nothing half-written."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from builders import low_rank, moved, tiny_llama, write_adapter, write_full

from wdecomp.cli import main

INDEX = "model.safetensors.index.json"


def _base(folder: Path) -> Path:
    return write_full(folder / "base", tiny_llama(1))


def _missing_folder(folder: Path) -> list[Path]:
    return [_base(folder), folder / "nowhere"]


def _no_weights(folder: Path) -> list[Path]:
    (folder / "empty").mkdir()
    return [_base(folder), folder / "empty"]


def _only_pickles(folder: Path) -> list[Path]:
    (folder / "old").mkdir()
    torch.save(tiny_llama(1), folder / "old" / "pytorch_model.bin")
    return [_base(folder), folder / "old"]


def _other_shape(folder: Path) -> list[Path]:
    tensors = tiny_llama(1)
    tensors["model.layers.0.mlp.down_proj.weight"] = torch.ones(24, 57)
    return [_base(folder), write_full(folder / "bad", tensors)]


def _other_model(folder: Path) -> list[Path]:
    return [_base(folder), write_full(folder / "bad", {"encoder.fc.weight": torch.ones(3, 4)})]


def _truncated_shard(folder: Path) -> list[Path]:
    bad = write_full(folder / "bad", tiny_llama(1), shards=2)
    shard = bad / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    return [_base(folder), bad]


def _index_naming(shard: str) -> Callable[[Path], list[Path]]:
    def build(folder: Path) -> list[Path]:
        bad = write_full(folder / "bad", tiny_llama(1), shards=2)
        index = json.loads((bad / INDEX).read_text())
        index["weight_map"]["model.norm.weight"] = shard
        (bad / INDEX).write_text(json.dumps(index))
        return [_base(folder), bad]

    return build


def _pointer(folder: Path) -> list[Path]:
    (folder / "lfs").mkdir()
    text = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (folder / "lfs" / "model.safetensors").write_bytes(text)
    return [_base(folder), folder / "lfs"]


def _adapter_without_config(folder: Path) -> list[Path]:
    bad = write_adapter(folder / "lora", low_rank(tiny_llama(1)))
    (bad / "adapter_config.json").unlink()
    return [_base(folder), bad]


def _adapter_of_another_base(folder: Path) -> list[Path]:
    module = "model.layers.0.self_attn.q_proj"
    bad = write_adapter(folder / "lora", {module: (torch.ones(2, 24), torch.ones(40, 2))})
    return [_base(folder), bad]


def _dora_without_magnitudes(folder: Path) -> list[Path]:
    return [_base(folder), write_adapter(folder / "l", low_rank(tiny_llama(1)), use_dora=True)]


def _rank_zero(folder: Path) -> list[Path]:
    return [_base(folder), write_adapter(folder / "lora", low_rank(tiny_llama(1)), r=0)]


def _base_is_an_adapter_after_all(folder: Path) -> list[Path]:
    lora = write_adapter(folder / "lora", low_rank(tiny_llama(1)))
    return [lora, _base(folder)]


def _two_runs_of_one_name(folder: Path) -> list[Path]:
    tuned = [write_full(folder / side / "ft", moved(tiny_llama(1))) for side in "ab"]
    return [_base(folder), *tuned]


def _one_step_twice(folder: Path) -> list[Path]:
    for name in ("checkpoint-7", "checkpoint-07"):
        write_full(folder / "run" / name, moved(tiny_llama(1)))
    return [_base(folder), folder / "run"]


def _a_checkpoint_not_yet_written(folder: Path) -> list[Path]:
    write_full(folder / "run" / "checkpoint-10", moved(tiny_llama(1)))
    (folder / "run" / "checkpoint-20").mkdir()
    return [_base(folder), folder / "run"]


def _name_of_no_file(folder: Path) -> list[Path]:
    return [_base(folder), folder / ("x" * 300)]


def _name_of_two_lines(folder: Path) -> list[Path]:
    return [_base(folder), folder / "a\nb"]


def _name_that_is_no_label(folder: Path) -> list[Path]:
    return [_base(folder), write_full(folder / "(copy)", moved(tiny_llama(1)))]


def _unreadable(folder: Path) -> list[Path]:
    bad = write_full(folder / "bad", tiny_llama(1))
    (bad / "model.safetensors").chmod(0)
    return [_base(folder), bad]


def _pipe(folder: Path) -> list[Path]:
    (folder / "bad").mkdir()
    os.mkfifo(folder / "bad" / "model.safetensors")
    return [_base(folder), folder / "bad"]


def _astronomic_shape(folder: Path) -> list[Path]:
    (folder / "bad").mkdir()
    entry = {"dtype": "F32", "shape": [2**62] * 20, "data_offsets": [0, 0]}
    text = json.dumps({"a.weight": entry}).encode()
    blob = len(text).to_bytes(8, "little") + text
    (folder / "bad" / "model.safetensors").write_bytes(blob)
    return [_base(folder), folder / "bad"]


def _astronomic_alpha(folder: Path) -> list[Path]:
    factors = low_rank(tiny_llama(1))
    return [_base(folder), write_adapter(folder / "lora", factors, lora_alpha=10**400)]


def _damaged_config(folder: Path) -> list[Path]:
    bad = write_full(folder / "bad", tiny_llama(1))
    (bad / "config.json").write_text("{")
    return [_base(folder), bad]


def _no_tensors(folder: Path) -> list[Path]:
    return [_base(folder), write_full(folder / "bad", {})]


def _base_that_is_an_adapter_by_another_name(folder: Path) -> list[Path]:
    lora = write_adapter(folder / "lora", low_rank(tiny_llama(1)))
    renamed = lora / "weights.safetensors"
    (lora / "adapter_model.safetensors").rename(renamed)
    return [renamed, write_full(folder / "ft", moved(tiny_llama(1)))]


def _nothing_beside_the_base(folder: Path) -> list[Path]:
    return [_base(folder)]


BAD: dict[Callable[[Path], list[Path]], str] = {
    _missing_folder: "nowhere: there is no such file or folder",
    _no_weights: "empty: no weights found",
    _only_pickles: "pytorch_model.bin may run code when opened",
    _other_shape: "base is (24, 56), tuned is (24, 57)",
    _other_model: "These are different models",
    _truncated_shard: "model-00002-of-00002.safetensors: has",
    _index_naming("gone.safetensors"): "'gone.safetensors', which is not there",
    _index_naming("../base/model.safetensors"): "'../base/model.safetensors', expected a file in",
    _index_naming("/etc/passwd"): "'/etc/passwd', expected a file in",
    _index_naming("a\0b"): "expected a file in",
    _pointer: "a git-lfs pointer: run `git lfs pull`",
    _adapter_without_config: "there is no adapter_config.json beside it",
    _adapter_of_another_base: "It was trained on another base",
    _dora_without_magnitudes: "lora_magnitude_vector is missing for 2 of 2 modules",
    _rank_zero: "r is 0, expected a whole number of at least 1",
    _base_is_an_adapter_after_all: "no base is given",
    _one_step_twice: "checkpoint-07 and checkpoint-7 are both step 7",
    _a_checkpoint_not_yet_written: "checkpoint-20: no weights found",
    _name_of_no_file: "cannot be read (File name too long)",
    _name_of_two_lines: "a b: there is no such file or folder",
    _name_that_is_no_label: "'(copy)' cannot be a run's name",
    _unreadable: "model.safetensors: cannot be read (Permission denied)",
    _pipe: "no weights found",
    _astronomic_shape: "tensor 'a.weight': its sizes multiply to more than 64 bits can count",
    _astronomic_alpha: "expected a number",
    _damaged_config: "config.json: is not JSON",
    _no_tensors: "bad: holds no tensors",
    _base_that_is_an_adapter_by_another_name: "is an adapter, expected the base model",
    _two_runs_of_one_name: "would both be run 'ft'",
    _nothing_beside_the_base: "nothing to compare with it",
}


@pytest.mark.parametrize("build", BAD, ids=list(BAD.values()))
@pytest.mark.parametrize("command", ["compare", "inspect"])
def test_bad_checkpoints_end_in_one_line_and_leave_nothing(
    command: str,
    build: Callable[[Path], list[Path]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if build is _unreadable and os.geteuid() == 0:
        pytest.skip("root may read everything")
    paths = [str(path) for path in build(tmp_path)]
    if command == "inspect" and build is _nothing_beside_the_base:
        pytest.skip("inspecting one checkpoint is no mistake")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as stopped:
        main([command, *paths])
    out, err = capsys.readouterr()
    assert stopped.value.code == 1
    assert out == ""
    assert err.startswith("wdecomp: ")
    assert str(tmp_path) in err or build is _nothing_beside_the_base
    assert err.count("\n") == 1
    assert BAD[build] in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_an_output_that_holds_something_else_is_refused_and_untouched(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, tuned = _base(tmp_path), write_full(tmp_path / "ft", moved(tiny_llama(1)))
    out = tmp_path / "out"
    if kind == "folder":
        (out / "columns").mkdir(parents=True)
        (out / "columns" / "mine.txt").write_text("thesis")
    else:
        out.write_text("thesis")
    for option in ([], ["--restart"]):
        with pytest.raises(SystemExit) as stopped:
            main(["compare", str(base), str(tuned), "-q", "-o", str(out), *option])
        assert stopped.value.code == 1
        assert f"{out}: " in capsys.readouterr().err
    kept = out / "columns" / "mine.txt" if kind == "folder" else out
    assert kept.read_text() == "thesis"
    assert [p for p in tmp_path.rglob("*") if p.is_relative_to(out) and p.is_file()] == [kept]


def test_an_output_of_an_impossible_name_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, tuned = _base(tmp_path), write_full(tmp_path / "ft", moved(tiny_llama(1)))
    with pytest.raises(SystemExit) as stopped:
        main(["compare", str(base), str(tuned), "-q", "-o", str(tmp_path / "a\udcff")])
    assert stopped.value.code == 1
    assert "cannot be a folder's name" in capsys.readouterr().err


def test_unknown_modules_are_answered_with_the_known_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, tuned = _base(tmp_path), write_full(tmp_path / "ft", moved(tiny_llama(1)))
    with pytest.raises(SystemExit) as stopped:
        main(["compare", str(base), str(tuned), "--modules", "query"])
    assert stopped.value.code == 1
    assert "Its modules are down, embedding, q, v." in capsys.readouterr().err


def test_a_name_that_steers_the_terminal_is_shown_and_not_obeyed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "evil\x1b[2J.weight"
    base = write_full(tmp_path / "a", tiny_llama(1) | {name: torch.ones(2, 3)})
    tuned = write_full(tmp_path / "b", moved(tiny_llama(1)))
    main(["inspect", str(base), str(tuned)])
    out, _ = capsys.readouterr()
    assert "\x1b" not in out
    assert r"evil\x1b[2J.weight" in out


def test_wrong_usage_is_exit_code_two() -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["compare", "--no-such-option"])
    assert stopped.value.code == 2


def test_a_real_process_prints_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "wdecomp", "compare", str(tmp_path / "gone"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == f"wdecomp: {tmp_path / 'gone'}: there is no such file or folder.\n"
