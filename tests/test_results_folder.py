"""A results folder survives crashes, refuses what is not its own, and loses nothing."""

import errno
import fcntl
import hashlib
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from builders import low_rank, moved, tiny_llama, write_adapter, write_full

import wdecomp
from wdecomp.errors import ResultsError
from wdecomp.table import ResultsFolder, files


def _inputs(folder: Path) -> Path:
    tensors = tiny_llama(1)
    write_full(folder / "base", tensors)
    write_full(folder / "ft", moved(tensors))
    write_adapter(folder / "lora", low_rank(tensors))
    return folder


def _bytes(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_killed_at_any_change_to_the_disk_the_tables_come_out_the_same(tmp_path: Path) -> None:
    """A sample of what `python tests/kills.py` does, in a process that may fork."""
    script = [sys.executable, str(Path(__file__).with_name("kills.py"))]
    command = [*script, str(tmp_path), "--every", "12", "--random", "5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    said = json.loads(done.stdout)
    assert said["wrong"] == []
    assert said["kills"] >= 18


def test_another_plan_is_refused_by_what_differs_and_restart_replaces(tmp_path: Path) -> None:
    folder = _inputs(tmp_path)
    base, out = folder / "base", folder / "out"
    wdecomp.compare(base, folder / "ft", out=out)
    before = _bytes(out)
    with pytest.raises(ResultsError, match=r"another run \(runs, units differ\)"):
        wdecomp.compare(base, folder / "lora", out=out)
    with pytest.raises(ResultsError, match=r"another run \(options differ\)"):
        wdecomp.compare(base, folder / "ft", out=out, columns="none")
    assert _bytes(out) == before
    again = wdecomp.compare(base, folder / "lora", out=out, restart=True)
    assert set(again.modules["run"]) == {"lora"}
    assert wdecomp.read_results(out).run["runs"][0]["run"] == "lora"


def test_a_retrained_checkpoint_of_the_same_shape_is_another_plan(tmp_path: Path) -> None:
    folder = _inputs(tmp_path)
    wdecomp.compare(folder / "base", folder / "ft", out=folder / "out")
    write_full(folder / "ft", moved(tiny_llama(1), seed=9))
    with pytest.raises(ResultsError, match=r"another run \(runs differ\)"):
        wdecomp.compare(folder / "base", folder / "ft", out=folder / "out")


def test_a_finished_folder_is_returned_as_it_is(tmp_path: Path) -> None:
    folder = _inputs(tmp_path)
    wdecomp.compare(folder / "base", folder / "ft", out=folder / "out")
    before = {p: p.stat().st_mtime_ns for p in (folder / "out").glob("*.parquet")}
    wdecomp.compare(folder / "base", folder / "ft", out=folder / "out")
    assert {p: p.stat().st_mtime_ns for p in (folder / "out").glob("*.parquet")} == before


def test_a_table_that_is_gone_is_made_again_and_a_damaged_one_named(tmp_path: Path) -> None:
    folder = _inputs(tmp_path)
    out = folder / "out"
    wdecomp.compare(folder / "base", folder / "ft", out=out)
    before = _bytes(out)
    (out / "modules.parquet").unlink()
    with pytest.raises(ResultsError, match=r"modules\.parquet: cannot be read"):
        _ = wdecomp.read_results(out).modules
    wdecomp.compare(folder / "base", folder / "ft", out=out)
    assert _bytes(out) == before
    damaged = bytearray(before["modules.parquet"])
    damaged[40] ^= 4
    (out / "modules.parquet").write_bytes(damaged)
    with pytest.raises(ResultsError, match=r"modules\.parquet: cannot be read"):
        _ = wdecomp.read_results(out).modules


def test_a_second_process_is_refused_at_once(tmp_path: Path) -> None:
    folder = _inputs(tmp_path)
    (folder / "out").mkdir()
    with (folder / "out" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        start = time.monotonic()
        with pytest.raises(ResultsError, match="another wdecomp is writing there"):
            wdecomp.compare(folder / "base", folder / "ft", out=folder / "out")
        assert time.monotonic() - start < 1


def test_a_full_disk_ends_in_a_message_and_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _inputs(tmp_path)
    calls = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 3:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "fsync", full)
        with pytest.raises(ResultsError, match="No space left on device"):
            wdecomp.compare(folder / "base", folder / "ft", out=folder / "out")
    assert not [path for path in (folder / "out").rglob("*") if ".tmp-" in path.name]
    wdecomp.compare(folder / "base", folder / "ft", out=folder / "out")


@pytest.mark.parametrize("most_bytes", [100, 4000, 7000])
def test_a_file_that_cannot_grow_ends_in_a_message_too(most_bytes: int, tmp_path: Path) -> None:
    folder = _inputs(tmp_path)
    arguments, out = (folder / "base", folder / "ft"), folder / "out"
    whole = wdecomp.compare(*arguments, out=folder / "whole").path
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, hard))
        with pytest.raises(ResultsError, match=r"cannot be written .*File too large"):
            wdecomp.compare(*arguments, out=out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    half = _bytes(out)
    assert "DONE.json" not in half
    assert half == {name: content for name, content in _bytes(whole).items() if name in half}
    wdecomp.compare(*arguments, out=out)
    assert _bytes(out) == _bytes(whole)


def test_what_a_killed_process_was_writing_is_removed_by_the_next(tmp_path: Path) -> None:
    folder = _inputs(tmp_path)
    out = wdecomp.compare(folder / "base", folder / "ft", out=folder / "out").path
    before = _bytes(out)
    for name in ("modules.parquet.tmp-7-0123abcd", "columns/ft/final.parquet.tmp-7-0123abcd"):
        (out / name).write_text("half")
    wdecomp.compare(folder / "base", folder / "ft", out=out)
    assert _bytes(out) == before


@pytest.mark.parametrize("damaged", ["{", "[]", "{}", ""])
def test_a_damaged_record_is_named_or_made_again(damaged: str, tmp_path: Path) -> None:
    folder = _inputs(tmp_path)
    out = wdecomp.compare(folder / "base", folder / "ft", out=folder / "out").path
    before = _bytes(out)
    (out / "DONE.json").write_text(damaged)
    wdecomp.compare(folder / "base", folder / "ft", out=out)
    assert _bytes(out) == before
    (out / "run.json").write_text(damaged)
    with pytest.raises(ResultsError, match=r"run\.json: cannot be read|has schema None"):
        wdecomp.read_results(out)
    with pytest.raises(ResultsError, match="is no result of wdecomp"):
        wdecomp.compare(folder / "base", folder / "ft", out=out)


ROTTEN = pytest.mark.parametrize("at", [60, -200, None], ids=["page", "footer", "cut"])


def _rot(part: Path, at: int | None) -> None:
    content = bytearray(part.read_bytes())
    if at is None:
        del content[len(content) // 2 :]
    else:
        content[at] ^= 4
    part.write_bytes(content)


@ROTTEN
def test_a_part_that_rots_between_two_sessions_is_made_again(
    at: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _inputs(tmp_path)
    arguments = (folder / "base", folder / "ft")
    whole = wdecomp.compare(*arguments, out=folder / "whole").path
    with monkeypatch.context() as patched:
        patched.setattr(ResultsFolder, "finish", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            wdecomp.compare(*arguments, out=folder / "out")
    (part,) = (folder / "out" / "parts").iterdir()
    _rot(part, at)
    wdecomp.compare(*arguments, out=folder / "out")
    assert _bytes(folder / "out") == _bytes(whole)


@pytest.mark.parametrize("rotten", [False, True])
def test_what_a_worker_had_written_when_it_was_killed_is_not_done_again(
    rotten: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the writing of a part and its flush, in a thread of its own."""
    folder, done = _inputs(tmp_path), []
    arguments = (folder / "base", folder / "ft")
    whole = wdecomp.compare(*arguments, out=folder / "whole").path
    with monkeypatch.context() as patched:
        patched.setattr(files, "settle", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            wdecomp.compare(*arguments, out=folder / "out")
    (draft,) = (folder / "out" / "parts").iterdir()
    assert ".arrow.tmp-" in draft.name
    if rotten:
        _rot(draft, 60)
    drafted, settle = ResultsFolder.draft, files.settle

    def settled(draft: Path) -> Path:
        assert files.is_whole(draft)  # no name before its content, not for a moment
        return settle(draft)

    monkeypatch.setattr(files, "settle", settled)
    monkeypatch.setattr(
        ResultsFolder, "draft", lambda self, *unit: done.append(unit) or drafted(self, *unit)
    )
    wdecomp.compare(*arguments, out=folder / "out")
    assert len(done) == rotten
    assert _bytes(folder / "out") == _bytes(whole)


def test_after_a_flush_that_failed_nothing_is_left_to_be_taken_for_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, sync = _inputs(tmp_path), files.sync

    def failing(path: Path) -> None:
        if ".arrow.tmp-" in path.name:
            raise OSError(errno.EIO, "Input/output error")
        sync(path)

    monkeypatch.setattr(files, "sync", failing)
    with pytest.raises(ResultsError, match=r"cannot be written \(Input/output error\)"):
        wdecomp.compare(folder / "base", folder / "ft", out=folder / "out")
    assert not list((folder / "out" / "parts").iterdir())


@ROTTEN
def test_a_part_that_rots_before_the_tables_are_made_is_named(
    at: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _inputs(tmp_path)
    finish = ResultsFolder.finish

    def rot_and_finish(opened: ResultsFolder, fits: Any) -> wdecomp.Results:
        (part,) = (opened.path / "parts").iterdir()
        _rot(part, at)
        return finish(opened, fits)

    with monkeypatch.context() as patched:
        patched.setattr(ResultsFolder, "finish", rot_and_finish)
        with pytest.raises(ResultsError, match=r"\.arrow: has changed since it was written"):
            wdecomp.compare(folder / "base", folder / "ft", out=folder / "out")
    wdecomp.compare(folder / "base", folder / "ft", out=folder / "out")


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_unfinished_results_and_other_schemas_are_refused_by_name(tmp_path: Path) -> None:
    folder = _inputs(tmp_path)
    out = folder / "out"
    wdecomp.compare(folder / "base", folder / "ft", out=out)
    (out / "DONE.json").unlink()
    with pytest.raises(ResultsError, match="is unfinished"):
        wdecomp.read_results(out)
    record = (out / "run.json").read_text()
    (out / "run.json").write_text(record.replace('"schema": 1', '"schema": 99'))
    with pytest.raises(ResultsError, match="has schema 99, expected 1"):
        wdecomp.read_results(out)
    for key, value in (("options", 3), ("runs", "abc"), ("runs", [{}]), ("left_out", None)):
        (out / "run.json").write_text(json.dumps(json.loads(record) | {key: value}))
        with pytest.raises(ResultsError, match=r"run\.json: lacks what every comparison writes"):
            wdecomp.read_results(out)


def test_a_row_group_holds_one_matrix_or_small_ones_up_to_4096_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, groups = _inputs(tmp_path), {}
    for fewest in (4096, 1, 60):
        monkeypatch.setattr("wdecomp.table.columns.FEWEST_ROWS", fewest)
        out = folder / f"out-{fewest}"
        results = wdecomp.compare(folder / "base", folder / "ft", out=out, columns="both")
        metadata = pq.read_metadata(out / "columns" / "ft" / "final.parquet")
        rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        groups[fewest] = rows, _pickings(results)
    assert groups[1][0][:4] == [24, 50, 24, 56]
    assert len(groups[1][0]) == 2 * 4
    assert groups[4096][0] == [sum(groups[1][0])]
    assert groups[60][0][:2] == [24 + 50, 24 + 56]
    assert groups[4096][1] == groups[1][1] == groups[60][1]
    every_third = results.columns("ft", every=3)["column"]
    assert sorted(set(every_third)) == list(range(0, max(every_third) + 1, 3))


def _pickings(results: wdecomp.Results) -> list[str]:
    """The columns of all matrices, of one, of every third column, along each axis."""
    one = [str(results.modules["parameter"].iloc[0])]
    return [
        results.columns("ft", None, parameters, axis, every).to_csv()
        for axis in ("output", "input")
        for parameters in (None, one)
        for every in (1, 3)
    ]


def test_digests_in_done_are_those_of_the_files(tmp_path: Path) -> None:
    folder = _inputs(tmp_path)
    wdecomp.compare(folder / "base", folder / "ft", out=folder / "out")
    done = json.loads((folder / "out" / "DONE.json").read_text())["sha256"]
    assert sorted(done) == [
        "columns/ft/final.parquet",
        "facts.parquet",
        "fits.parquet",
        "modules.parquet",
        "run.json",
    ]
    for name, digest in done.items():
        assert hashlib.sha256((folder / "out" / name).read_bytes()).hexdigest() == digest
    assert not (folder / "out" / "parts").exists()
