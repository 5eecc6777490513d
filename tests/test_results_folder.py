"""A results folder survives crashes, refuses what is not its own, and loses nothing."""

import fcntl
import hashlib
import json
import resource
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
from wdecomp.table import ResultsFolder, files

# Runs a comparison in units of one matrix again and again, in forks, which import nothing anew.
# Each dies without cleaning up at the k-th rename or removal, dies once more while it recovers, and
# is then let finish. Prints, per k: the exit codes, and the files that lay there after each.
DYING = """
import itertools, json, os, sys
from pathlib import Path
from wdecomp import comparison
from wdecomp.scan import plan
folder = Path(sys.argv[1])
plan.UNIT_BYTES = 1
runs = [folder / "ft", folder / "lora"]

def run(out, die_at):
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    event_number = itertools.count(1)
    def watch(event, arguments):
        if event in {"os.rename", "os.rmdir", "shutil.rmtree"} and str(out) in str(arguments[0]):
            if next(event_number) == die_at:
                os.kill(os.getpid(), 9)
    sys.addaudithook(watch)
    try:
        comparison.compare(folder / "base", *runs, out=out, columns="both", workers=2)
        os._exit(0)
    finally:
        os._exit(1)

def left(out):
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in out.rglob("*.*")}

assert run(folder / "whole", 0) == 0
codes, deaths = [-9], []
while codes[0] == -9:
    out = folder / f"killed-{len(deaths) + 1}"
    codes, leavings = [], []
    for die_at in (len(deaths) + 1, 4, 0):
        codes.append(run(out, die_at))
        leavings.append(left(out))
    deaths.append([codes, leavings])
print(json.dumps(deaths))
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


def _is_part(name: str) -> bool:
    return name.startswith("parts/") and name.endswith(".parquet")


def test_killed_at_every_step_the_tables_come_out_the_same(tmp_path: Path) -> None:
    folder = _inputs(tmp_path)
    command = [sys.executable, "-c", DYING, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    deaths = json.loads(done.stdout)
    n_steps = 1 + 5 + 3 + 2 + 1 + 2  # plan, units, tables, columns of two runs, DONE, parts removed
    assert [codes[0] for codes, _ in deaths] == [-signal.SIGKILL] * n_steps + [0]
    assert all(codes[1] in (0, -signal.SIGKILL) and codes[2] == 0 for codes, _ in deaths)
    assert any(".tmp-" in name for _, leavings in deaths for name in leavings[0])
    whole = _bytes(folder / "whole")
    for i, (_, (first, second, _)) in enumerate(deaths):
        kept = {name: at for name, at in first.items() if _is_part(name)}
        recovered = "DONE.json" in second
        assert recovered or {name: second.get(name) for name in kept} == kept
        assert _bytes(folder / f"killed-{i + 1}") == whole


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


@pytest.mark.parametrize("at", [60, -200, None], ids=["page", "footer", "cut"])
def test_a_damaged_part_is_named(
    at: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _inputs(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(ResultsFolder, "finish", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            wdecomp.compare(folder / "base", folder / "ft", out=folder / "out")
    (part,) = (folder / "out" / "parts").iterdir()
    content = bytearray(part.read_bytes())
    if at is None:
        del content[len(content) // 2 :]
    else:
        content[at] ^= 4
    part.write_bytes(content)
    with pytest.raises(ResultsError, match=rf"{part.name}: cannot be read"):
        wdecomp.compare(folder / "base", folder / "ft", out=folder / "out")
    wdecomp.compare(folder / "base", folder / "ft", out=folder / "out", restart=True)


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


def test_one_row_group_for_each_matrix_and_axis(tmp_path: Path) -> None:
    folder = _inputs(tmp_path)
    wdecomp.compare(folder / "base", folder / "ft", out=folder / "out", columns="both")
    metadata = pq.read_metadata(folder / "out" / "columns" / "ft" / "final.parquet")
    assert metadata.num_row_groups == 2 * 4
    assert [metadata.row_group(i).num_rows for i in range(4)] == [24, 50, 24, 56]


def test_digests_in_done_are_those_of_the_files(tmp_path: Path) -> None:
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
