"""Dask's workers do what threads here do, and nothing that dies there is lost or done twice."""

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from builders import low_rank, moved, tiny_llama, write_adapter, write_full
from clusters import Processes, dask
from power_cuts import contents

import wdecomp
from wdecomp.cli import main
from wdecomp.comparison import asked, asking
from wdecomp.comparison.asked import prepare
from wdecomp.errors import ClusterError, DeviceError, ResultsError, UnfinishedError
from wdecomp.scan import Cluster, cluster, run_on_cluster
from wdecomp.table import ResultsFolder, open_folder

COMMAND = """
import sys
from wdecomp.cli import main
from wdecomp.scan import plan
plan.UNIT_BYTES = 1
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    with dask(tmp_path_factory.mktemp("dask"), 1) as processes:
        processes.add_worker(threads=3)
        yield processes


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tensors = tiny_llama(2)
    write_full(tmp_path / "base", tensors)
    write_full(tmp_path / "ft", moved(tensors))
    write_adapter(tmp_path / "lora", low_rank(tensors))
    monkeypatch.setattr("wdecomp.scan.plan.UNIT_BYTES", 1)
    monkeypatch.setattr("wdecomp.comparison.asked.SPECTRAL_UNIT_BYTES", 1)
    return tmp_path


def _paths(folder: Path) -> list[Path]:
    return [folder / "base", folder / "ft", folder / "lora"]


@pytest.mark.parametrize(
    "options",
    [
        {"columns": "both", "modules": ["q", "down"], "layers": [1]},
        {"columns": "both", "checksums": True, "spectral": True, "device": "numpy"},
    ],
    ids=["some", "all"],
)
def test_the_tables_are_those_of_a_local_run_byte_for_byte(
    options: dict[str, Any], folder: Path, workers: Processes
) -> None:
    wdecomp.compare(*_paths(folder), out=folder / "here", **options)
    wdecomp.compare(*_paths(folder), out=folder / "there", scheduler=workers.address, **options)
    assert contents(folder / "there") == contents(folder / "here")
    assert sorted(_log(workers)) == sorted(set(_log(workers)))  # no unit was done twice


def test_a_run_begun_on_either_engine_goes_on_with_the_other(
    folder: Path, workers: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = contents(wdecomp.compare(*_paths(folder), out=folder / "whole").path)
    for first, then in ((workers.address, None), (None, workers.address)):
        out = folder / f"out-{first is None}"
        with monkeypatch.context() as patched:
            patched.setattr(ResultsFolder, "finish", _interrupt)
            with pytest.raises(KeyboardInterrupt):
                wdecomp.compare(*_paths(folder), out=out, scheduler=first)
        parts = sorted((out / "parts").glob("*.arrow"))
        assert len(parts) == 8
        for part in parts[::2]:
            part.unlink()
        wdecomp.compare(*_paths(folder), out=out, scheduler=then)
        assert contents(out) == whole


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_an_error_of_a_unit_ends_the_run_with_its_line_and_says_where(
    folder: Path, workers: Processes
) -> None:
    """Devices are looked for where the sums are formed: not here."""
    said = r"On tcp://127\.0\.0\.1:\d+: --device cuda:99: torch sees no"
    options = {"device": "cuda:99", "scheduler": workers.address}
    with pytest.raises(DeviceError, match=said):
        wdecomp.compare(*_paths(folder), out=folder / "out", **options)


def test_a_worker_with_other_files_or_packages_refuses_and_names_them(
    folder: Path, workers: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare = partial(wdecomp.compare, *_paths(folder), scheduler=workers.address)
    versions = asked.versions()
    with monkeypatch.context() as patched:
        patched.setattr(asked, "versions", lambda: versions | {"numpy": "0.1", "scipy": "0.2"})
        with pytest.raises(ClusterError, match=r"On tcp.*: versions.numpy, versions.scipy differ"):
            compare(out=folder / "versions")
    with monkeypatch.context() as patched:
        patched.setattr(asked, "sample_sha256", lambda *_: "another")
        with pytest.raises(ClusterError, match=r"On tcp.*: base.shards, runs differ"):
            compare(out=folder / "files")
    assert not list(folder.rglob("parts/*.arrow"))


def test_relative_paths_need_workers_in_the_same_folder(
    folder: Path, workers: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(ClusterError, match=rf"relative to {folder}, .* Give absolute paths"):
        wdecomp.compare("base", "ft", out="out", scheduler=workers.address)


def test_a_results_folder_that_workers_do_not_see_is_told(
    folder: Path, workers: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("wdecomp.comparison.elsewhere.Path.absolute", lambda p: p / "elsewhere")
        with pytest.raises(ResultsError, match=r"elsewhere: is not the results folder that the"):
            wdecomp.compare(*_paths(folder), out=folder / "out", scheduler=workers.address)
    assert not (folder / "out" / "elsewhere").exists()


def failing(number: int) -> None:
    """Sent to workers: no error of ours."""
    if number == 3:
        raise ValueError("no such luck")


def test_what_is_not_done_after_five_passes_is_left_to_the_next_run(
    folder: Path, workers: Processes
) -> None:
    ready = prepare(asking(*_paths(folder)), None)
    there = Cluster(workers.address, 30)
    with (
        open_folder(folder / "out", ready.record, restart=False) as opened,
        pytest.raises(
            UnfinishedError,
            match=r"left after 5 passes: 8, the first with model\..* \(ValueError: no such luck\)",
        ),
    ):
        run_on_cluster(ready.plan, ready.options, opened, there, failing, lambda _: None)


def endless(number: int) -> None:
    """Sent to workers: its error is so deep that Dask never tells of it."""
    endless(number)


def test_what_dask_loses_is_no_reason_to_wait_for_ever(
    folder: Path, workers: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "IDLE", 1)
    monkeypatch.setattr(cluster, "PASSES", 1)
    ready = prepare(asking(*_paths(folder)), None)
    there = Cluster(workers.address, 30)
    with (
        open_folder(folder / "out", ready.record, restart=False) as opened,
        pytest.raises(
            UnfinishedError, match=r"left after 1 passes: 8, .* \(its workers took no work\)"
        ),
    ):
        run_on_cluster(ready.plan, ready.options, opened, there, endless, lambda _: None)


def test_without_workers_a_run_ends_with_75_and_goes_on_later(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = contents(wdecomp.compare(*_paths(folder), out=folder / "whole").path)
    words = ["compare", *map(str, _paths(folder)), "-q", "-o", str(folder / "out")]
    with dask(folder / "dask", 1, slow=0.3) as processes:
        words += ["--scheduler", processes.address, "--worker-timeout", "2"]
        killed = threading.Thread(target=_kill_after_a_part, args=(processes, processes.workers[0]))
        killed.start()
        code, said = _run(words, capsys)
        killed.join()
        left = 8 - len(list((folder / "out" / "parts").glob("*.arrow")))
        assert 0 < left < 8
        assert code == 75
        assert said == (
            f"wdecomp: {processes.address}: no worker for 2 seconds; units of work left: "
            f"{left}. Start workers and give the same command again to continue.\n"
        )
        processes.add_worker()
        assert _run(words, capsys) == (0, "")
    assert contents(folder / "out") == whole


def test_a_scheduler_that_is_killed_ends_it_with_75_and_another_goes_on(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "CONNECT", 1.0)
    whole = contents(wdecomp.compare(*_paths(folder), out=folder / "whole").path)
    words = ["compare", *map(str, _paths(folder)), "-q", "-o", str(folder / "out")]
    with dask(folder / "dask", 1, slow=0.3) as processes:
        there = ["--scheduler", processes.address]
        killed = threading.Thread(target=_kill_after_a_part, args=(processes, processes.scheduler))
        killed.start()
        code, said = _run([*words, *there], capsys)
        killed.join()
        assert code == 75
        assert said.startswith(f"wdecomp: {processes.address}: no scheduler answers (OSError: ")
        assert said.endswith("Start one and give the same command again to continue.\n")
        assert said.count("\n") == 1
    parts = set((folder / "out" / "parts").iterdir())
    assert parts
    with dask(folder / "dask-again", 1) as processes:
        assert _run([*words, "--scheduler", processes.address], capsys) == (0, "")
        assert len(_log(processes)) == 8 - len(parts)
    assert contents(folder / "out") == whole


def test_a_signal_takes_back_what_was_asked_for(folder: Path) -> None:
    with dask(folder / "dask", 1, slow=0.5) as processes:
        words = ["compare", *map(str, _paths(folder)), "-q", "-o", str(folder / "out")]
        command = [sys.executable, "-c", COMMAND, *words, "--scheduler", processes.address]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as run:
            try:
                _wait_for(lambda: _log(processes))
                start = time.monotonic()
                run.send_signal(signal.SIGINT)
                out, err = run.communicate(timeout=30)
            finally:
                run.kill()
        assert run.returncode == 130
        assert time.monotonic() - start < 5
        assert out == ""
        assert err.strip() == "wdecomp: interrupted. Give the same command again to continue."
        time.sleep(1)  # what was begun is committed
        done = len(_log(processes))
        time.sleep(1.5)
        assert len(_log(processes)) == done < 8


def test_workers_that_are_killed_one_after_another_lose_nothing(tmp_path: Path) -> None:
    """A sample of what `python tests/kills_cluster.py` does."""
    script = [sys.executable, str(Path(__file__).with_name("kills_cluster.py"))]
    command = [*script, str(tmp_path), "--runs", "1", "--kills", "2", "--sessions", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    said = json.loads(done.stdout)
    assert said["wrong"] == []
    assert (said["workers_killed"], said["sessions_killed"]) == (2, 1)
    assert said["units_committed"] >= 60


def test_what_cannot_be_together_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["compare", *map(str, _paths(folder)), "-q", "-o", str(folder / "out")]
    code, said = _run([*words, "--scheduler", "tcp://h:1", "-j", "2"], capsys)
    assert (code, said.splitlines()[-1][:38]) == (2, "Error: --workers counts threads here, ")
    code, said = _run([*words, "--scheduler", "tcp://h:1", "--part", "0/2"], capsys)
    assert (code, said.splitlines()[-1][:36]) == (2, "Error: --part and --scheduler are tw")
    for address in ("localhost:8786", "inproc://1/2", "tcp://host", "tcp://user@host:1"):
        code, said = _run([*words, "--scheduler", address], capsys)
        assert code == 1
        assert said.startswith(f"wdecomp: --scheduler {address}: is no address of a Dask scheduler")
    code, said = _run([*words, "--scheduler", "tls://127.0.0.1:1"], capsys)
    assert (code, "tls://127.0.0.1:1: needs certificates (TypeError: TLS" in said) == (1, True)
    shutil.rmtree(folder / "out")
    with pytest.raises(ValueError, match="has its own workers"):
        wdecomp.compare(*_paths(folder), scheduler="tcp://h:1")
    monkeypatch.setattr(cluster, "find_spec", lambda _: None)
    code, said = _run([*words, "--scheduler", "tcp://h:1"], capsys)
    assert code == 1
    assert said.endswith("Dask is not installed. Install it: pip install 'wdecomp[dask]'.\n")
    assert not (folder / "out").exists()


def _run(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The command's exit code, and what it says on stderr."""
    try:
        main(words)
    except SystemExit as stopped:
        return int(stopped.code or 0), capsys.readouterr().err
    return 0, capsys.readouterr().err


def _log(processes: Processes) -> list[str]:
    return processes.log.read_text().split() if processes.log.exists() else []


def _wait_for(what: Any) -> None:
    for _ in range(600):
        if what():
            return
        time.sleep(0.05)
    raise TimeoutError


def _kill_after_a_part(processes: Processes, which: "subprocess.Popen[bytes]") -> None:
    _wait_for(lambda: _log(processes))
    which.kill()
