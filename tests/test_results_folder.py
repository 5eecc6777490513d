"""A results folder survives crashes, refuses what is not its own, and loses nothing."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from builders import low_rank, moved, tiny_llama, write_adapter, write_full

import wdecomp
from wdecomp.errors import ResultsError
from wdecomp.table import files

# Runs a comparison in units of one matrix and dies, without cleaning up, at the k-th rename.
DYING = """
import os, sys
from pathlib import Path
from wdecomp import comparison
from wdecomp.scan import plan
folder, die_at = Path(sys.argv[1]), int(sys.argv[2])
plan.UNIT_BYTES = 1
renamed = 0
rename = Path.replace
def counted(self, target):
    global renamed
    renamed += 1
    if renamed == die_at:
        os.kill(os.getpid(), 9)
    return rename(self, target)
Path.replace = counted
runs = [folder / "ft", folder / "lora"]
comparison.compare(folder / "base", *runs, out=folder / sys.argv[3], columns="both", workers=2)
"""


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


def _run(folder: Path, die_at: int, out: str) -> int:
    command = [sys.executable, "-c", DYING, str(folder), str(die_at), out]
    return subprocess.run(command, capture_output=True, timeout=120, check=False).returncode


def test_killed_at_every_second_rename_the_tables_come_out_the_same(tmp_path: Path) -> None:
    folder = _inputs(tmp_path)
    assert _run(folder, 0, "whole") == 0
    whole = _bytes(folder / "whole")
    n_renames = 1 + 5 + 3 + 2 + 1  # plan, units, tables, columns of two runs, DONE
    for die_at in range(1, n_renames + 1, 2):
        out = f"killed-{die_at}"
        assert _run(folder, die_at, out) == -signal.SIGKILL
        committed = {p.name: p.stat().st_mtime_ns for p in folder.glob(f"{out}/parts/*.parquet")}
        assert not (folder / out / "DONE.json").exists()
        assert _run(folder, 4, out) in (0, -signal.SIGKILL)  # and again while it recovers
        for part in folder.glob(f"{out}/parts/*.parquet"):
            assert committed.get(part.name, part.stat().st_mtime_ns) == part.stat().st_mtime_ns
        assert _run(folder, 0, out) == 0
        got = {n: b for n, b in _bytes(folder / out).items() if ".tmp-" not in n}
        assert got == whole


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
    import fcntl

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


def test_one_row_group_for_each_matrix_and_axis(tmp_path: Path) -> None:
    folder = _inputs(tmp_path)
    wdecomp.compare(folder / "base", folder / "ft", out=folder / "out", columns="both")
    metadata = pq.read_metadata(folder / "out" / "columns" / "ft" / "final.parquet")
    assert metadata.num_row_groups == 2 * 4
    assert [metadata.row_group(i).num_rows for i in range(4)] == [24, 50, 24, 56]


def test_digests_in_done_are_those_of_the_files(tmp_path: Path) -> None:
    import hashlib
    import json

    folder = _inputs(tmp_path)
    wdecomp.compare(folder / "base", folder / "ft", out=folder / "out")
    done = json.loads((folder / "out" / "DONE.json").read_text())["sha256"]
    assert sorted(done) == [
        "columns/ft/final.parquet",
        "facts.parquet",
        "fits.parquet",
        "modules.parquet",
    ]
    for name, digest in done.items():
        assert hashlib.sha256((folder / "out" / name).read_bytes()).hexdigest() == digest
    assert not (folder / "out" / "parts").exists()
