"""What has rotted is named: in results by their digests, in inputs by what was kept of them."""

import json
import os
import random
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import power_cuts
import pytest
import torch
from builders import low_rank, moved, tiny_llama, write_adapter, write_full

import wdecomp
from wdecomp.checkpoint import open_checkpoint
from wdecomp.checkpoint.fingerprint import SAMPLE_BYTES, SAMPLES, sample_sha256
from wdecomp.cli import main
from wdecomp.comparison import asked
from wdecomp.errors import CheckpointError, ResultsError
from wdecomp.scan import plan
from wdecomp.scan import unit as scan_unit_module
from wdecomp.scan.rereading import check_inputs
from wdecomp.table import Part, ResultsFolder, open_folder
from wdecomp.table.checking import check_results, checksums

CHECKSUMS = {"options": {"axes": ["output"], "columns": [], "checksums": "crc32"}}
FLIPS = 400


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tensors = tiny_llama(1)
    write_full(tmp_path / "base", tensors)
    write_full(tmp_path / "ft", moved(tensors))
    write_adapter(tmp_path / "lora", low_rank(tensors))
    return tmp_path


def _compare(folder: Path, **options: bool) -> Path:
    paths = [folder / name for name in ("base", "ft", "lora")]
    return wdecomp.compare(*paths, out=folder / "out", columns="both", **options).path


def _check(*arguments: str) -> int:
    try:
        main(["check", "-q", *arguments])
    except SystemExit as stopped:
        return int(str(stopped.code))
    return 0


def _flip(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def _rewrite(file: Path, content: bytes) -> None:
    """Other bytes, and the time of modification that there was."""
    status = file.stat()
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_of_400_flipped_bits_in_results_none_is_silent(folder: Path) -> None:
    out, dice = _compare(folder, checksums=True), random.Random(0)
    files = [path for path in sorted(out.rglob("*")) if path.is_file() and path.stat().st_size]
    assert len(files) == 8
    for i in range(FLIPS):
        file = files[i % len(files)]
        before = file.read_bytes()
        _flip(file, dice.randrange(8 * len(before)))
        wrong = check_results(out, lambda _: None).wrong
        assert wrong, f"flip {i} in {file} is silent"
        assert all(str(out) in line for line in wrong)
        if file.name != "DONE.json":  # which accuses others, too
            assert any(line.startswith(f"{file}: ") for line in wrong)
        file.write_bytes(before)
    assert check_results(out, lambda _: None).wrong == []


def test_of_flipped_bits_in_parts_none_reaches_a_table(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _compare(folder).rename(folder / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(ResultsFolder, "finish", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            _compare(folder)
    out, dice = folder / "out", random.Random(0)
    (part,) = (out / "parts").iterdir()
    before = part.read_bytes()
    for i in range(FLIPS):
        _flip(part, dice.randrange(8 * len(before)))
        found = check_results(out, lambda _: None)
        assert [line for line in found.wrong if line.startswith(f"{part}: is not what")], i
        assert "only the 1 finished units" in found.notes[0]
        part.write_bytes(before)
    _flip(part, dice.randrange(8 * len(before)))
    _compare(folder)
    for name in ("modules.parquet", "facts.parquet", "fits.parquet", "DONE.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_whole_results_and_inputs_are_said_to_be_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = _compare(folder, checksums=True)
    assert _check(str(out), "--inputs") == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        f"{out}: 7 files of its results are what they were.",
        f"{out}: 3 files of its inputs are what they were.",
    ]
    assert said.err == ""


def test_a_table_that_is_gone_and_one_that_was_put_there_are_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = _compare(folder)
    (out / "columns" / "ft" / "final.parquet").unlink()
    shutil.copy(out / "fits.parquet", out / "columns" / "ft" / "step-7.parquet")
    assert _check(str(out)) == 3
    said = capsys.readouterr().out
    assert f"{out / 'columns/ft/final.parquet'}: is gone." in said
    assert f"{out / 'columns/ft/step-7.parquet'}: is none of the files that DONE.json" in said


@pytest.mark.parametrize("name", ["../base/model.safetensors", "/etc/passwd", "other/x"])
def test_a_list_of_digests_leads_nowhere_else(name: str, folder: Path) -> None:
    out = _compare(folder)
    (out / "DONE.json").write_text(json.dumps({"sha256": {name: "0"}}, indent=1) + "\n")
    (wrong,) = check_results(out, lambda _: None).wrong
    assert wrong == f"{out / 'DONE.json'}: is not what was written."


@pytest.mark.parametrize("there", [True, False])
def test_what_holds_no_results_is_no_matter_of_rot(there: bool, tmp_path: Path) -> None:
    if there:
        write_full(tmp_path / "x", tiny_llama(1))
    with pytest.raises(ResultsError, match="holds no results"):
        check_results(tmp_path / "x", lambda _: None)
    assert _check(str(tmp_path / "x")) == 1


def _truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 4)


def _replace(file: Path) -> None:
    other = file.with_name("other")
    other.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\1")
    other.replace(file)


def _touch_nothing_but_bytes(file: Path) -> None:
    _rewrite(file, file.read_bytes()[:-4] + b"\0\0\0\1")


def _remove(file: Path) -> None:
    file.unlink()


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (_truncate, "was changed or replaced|ended while"),
    "replaced": (_replace, "was changed or replaced"),
    "rewritten with size and time kept": (_touch_nothing_but_bytes, "was changed or replaced"),
    "removed": (_remove, "went away while it was read|cannot be read"),
}


@pytest.mark.parametrize("late", [False, True], ids=["before its tensor", "after all"])
@pytest.mark.parametrize("kind", CHANGES)
def test_an_input_that_changes_during_the_run_is_refused_by_name(
    kind: str, late: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, message = CHANGES[kind]
    file, real, calls = folder / "ft" / "model.safetensors", scan_unit_module.measure, []

    def measure(*arguments: object) -> object:
        calls.append(arguments)
        if not late and len(calls) == 2:
            change(file)
        found = real(*arguments)  # type: ignore[arg-type]
        if late and len(calls) == 5:
            change(file)
        return found

    monkeypatch.setattr(scan_unit_module, "measure", measure)
    with pytest.raises(CheckpointError, match=message) as refused:
        wdecomp.compare(folder / "base", folder / "ft", out=folder / "out", workers=1)
    assert str(refused.value).startswith(f"{file}: ")
    assert not list((folder / "out").rglob("*.parquet"))


def test_a_change_after_all_was_read_is_noticed_before_the_tables_are_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, draft = folder / "ft" / "model.safetensors", ResultsFolder.draft

    def late(opened: ResultsFolder, number: int, part: Part) -> Callable[[], None]:
        rest = draft(opened, number, part)
        _touch_nothing_but_bytes(file)
        return rest

    monkeypatch.setattr(ResultsFolder, "draft", late)
    with pytest.raises(CheckpointError, match="was changed or replaced"):
        _compare(folder)
    assert not (folder / "out" / "modules.parquet").exists()


def test_a_checkpoint_of_the_same_size_and_time_is_another_one(folder: Path) -> None:
    _compare(folder)
    file = folder / "ft" / "model.safetensors"
    _touch_nothing_but_bytes(file)
    with pytest.raises(ResultsError, match=r"another run \(runs differ\)"):
        _compare(folder)


@pytest.mark.parametrize("kind", CHANGES)
def test_an_input_that_has_changed_since_is_found(
    kind: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, file = _compare(folder), folder / "ft" / "model.safetensors"
    CHANGES[kind][0](file)
    assert _check(str(out), "--inputs") == 3
    said = capsys.readouterr()
    assert said.out.startswith(f"{file}: ")
    assert "checksums of what was read were not kept" in said.err


def test_any_byte_of_a_large_input_is_found_by_its_checksum(tmp_path: Path) -> None:
    """One in a hundred places, beyond what a sample of the file sees."""
    random_ = torch.Generator().manual_seed(0)
    base = {"model.layers.0.mlp.up_proj.weight": torch.randn(800, 1024, generator=random_)}
    write_full(tmp_path / "base", base)
    file = write_full(tmp_path / "ft", moved(base)) / "model.safetensors"
    size = file.stat().st_size
    assert size > 10 * SAMPLES * SAMPLE_BYTES
    results = wdecomp.compare(tmp_path / "base", tmp_path / "ft", checksums=True)
    rows, dice, unseen = checksums(results.path), random.Random(0), 0
    before, sample = file.read_bytes(), sample_sha256(file, size)
    for _ in range(100):
        content = bytearray(before)
        content[dice.randrange(200, size)] ^= 1 << dice.randrange(8)
        _rewrite(file, content)
        unseen += sample_sha256(file, size) == sample
        (wrong,) = check_inputs(results.run, rows, lambda _: None).wrong
        assert wrong.startswith(f"{file}: ")
    assert unseen > 50
    _rewrite(file, before)
    assert check_inputs(results.run, rows, lambda _: None).wrong == []


def test_checksums_are_those_of_zlib_over_every_byte_of_every_tensor(folder: Path) -> None:
    rows = checksums(_compare(folder, checksums=True))
    expected = set()
    for name in ("base", "ft", "lora"):
        for tensor in open_checkpoint(folder / name).tensors.values():
            content = tensor.file.read_bytes()[tensor.offset :][: tensor.nbytes]
            expected.add((str(tensor.file), tensor.name, tensor.nbytes, zlib.crc32(content)))
    found = {(row["file"], row["tensor"], row["bytes"], row["crc32"]) for row in rows}
    assert found == expected
    assert len(rows) == len(found)


def test_a_file_that_was_another_in_an_earlier_session_is_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where neither size nor time nor sample tell, the checksums of the parts do."""
    paths = [folder / name for name in ("base", "ft", "lora")]
    monkeypatch.setattr(plan, "UNIT_BYTES", 1)
    monkeypatch.setattr(asked, "sample_sha256", lambda *_: None)
    draft, drafted = ResultsFolder.draft, []

    def some(opened: ResultsFolder, number: int, part: Part) -> Callable[[], None]:
        if len(drafted) == 4:
            raise KeyboardInterrupt
        drafted.append(number)
        return draft(opened, number, part)

    with monkeypatch.context() as patched:
        patched.setattr(ResultsFolder, "draft", some)
        with pytest.raises(KeyboardInterrupt):
            wdecomp.compare(*paths, out=folder / "out", workers=1, checksums=True)
    file = folder / "ft" / "model.safetensors"
    _rewrite(file, file.read_bytes()[:-4000] + bytes(4000))
    out = wdecomp.compare(*paths, out=folder / "out", checksums=True).path
    assert _check(str(out), "--inputs") == 3
    assert f"{file}: tensor 'model." in capsys.readouterr().out


def test_one_tensor_read_as_two_is_refused(tmp_path: Path) -> None:
    row = {"file": "a.safetensors", "start": 8, "bytes": 4, "tensor": "a.weight", "crc32": 1}
    with open_folder(tmp_path, power_cuts.plan("x") | CHECKSUMS, restart=False) as opened:
        for unit in opened.pending():
            found = power_cuts.part(unit)
            found.inputs.append(row | {"crc32": 1 + unit // 2})
            opened.commit(unit, found)
        with pytest.raises(ResultsError, match=r"a\.weight' was another when it was read again"):
            opened.finish(power_cuts.fits)
