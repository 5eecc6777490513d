"""A disk that fails or is full, a clock that jumps, a thread that dies: said, and gone on later."""

import contextlib
import errno
import io
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import power_cuts
import pytest
import torch
from builders import low_rank, moved, tiny_llama, write_adapter, write_full
from disk import Change, watched

import wdecomp
from wdecomp.checkpoint.mapping import LEAST, Window
from wdecomp.cli import main
from wdecomp.errors import ResultsError, WdecompError
from wdecomp.scan import unit as scan_unit_module


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tensors = tiny_llama(1)
    write_full(tmp_path / "base", tensors, config={"model_type": "llama"})
    write_full(tmp_path / "ft", moved(tensors), shards=2)
    write_adapter(tmp_path / "lora", low_rank(tensors))
    _compare(tmp_path, "whole")
    return tmp_path


def _compare(folder: Path, out: str = "out") -> dict[str, bytes]:
    paths = [folder / name for name in ("base", "ft", "lora")]
    wdecomp.compare(*paths, out=folder / out, columns="both", checksums=True)
    return power_cuts.contents(folder / out)


@contextmanager
def _failing(folder: Path, at: int, reason: int) -> Iterator[list[Change]]:
    """The at-th change below a folder fails, and everything after it."""
    seen: list[Change] = []

    def see(change: Change) -> None:
        seen.append(change)
        if len(seen) >= at:
            raise OSError(reason, os.strerror(reason))

    with watched(folder, see):
        yield seen


@pytest.mark.parametrize("reason", [errno.EIO, errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_whichever_change_to_the_disk_fails_it_is_said_and_the_next_run_goes_on(
    reason: int, tmp_path: Path
) -> None:
    power_cuts.work(tmp_path / "whole")
    whole = power_cuts.contents(tmp_path / "whole")
    failed = 0
    for at in itertools.count(1 + reason % 3, 3):
        out = tmp_path / str(at)
        with _failing(out, at, reason) as seen:
            said = _said(out)
        if said:
            failed += 1
            assert "\n" not in said
            assert said.startswith(str(out))
            assert os.strerror(reason) in said
        if len(seen) < at:
            break
        power_cuts.work(out)
        assert power_cuts.contents(out) == whole
    assert failed > 15


class _Killed(BaseException):
    """As good as SIGKILL: nothing of ours catches it."""


def test_wherever_a_restart_is_killed_the_same_command_goes_on(tmp_path: Path) -> None:
    power_cuts.work(tmp_path / "whole")
    whole = power_cuts.contents(tmp_path / "whole")
    for at in range(1, 17):  # what was there is removed, and a new plan is written
        out, seen = tmp_path / str(at), list[Change]()
        power_cuts.work(out, mark="old")

        def see(change: Change, at: int = at, seen: list[Change] = seen) -> None:
            seen.append(change)
            if len(seen) >= at:
                raise _Killed

        with watched(out, see), contextlib.suppress(_Killed):
            power_cuts.work(out, restart=True)
        power_cuts.work(out, restart=True)
        assert power_cuts.contents(out) == whole
    assert [change.to for change in seen if change.kind == "rename"] == ["run.json"]


def _said(out: Path) -> str:
    try:
        power_cuts.work(out)
    except ResultsError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("eighth", range(8))
def test_a_disk_that_fills_up_ends_in_a_sentence_and_leaves_nothing_half_written(
    eighth: int, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = power_cuts.contents(folder / "whole")
    out, room = folder / "out", sum(map(len, whole.values())) * (eighth + 0.5) / 8

    def see(change: Change) -> None:
        nonlocal room
        if change.kind == "write":
            room -= len(change.content)
            if room < 0:
                os.write(change.descriptor, change.content[: len(change.content) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    names = [str(folder / name) for name in ("base", "ft", "lora")]
    command = ["compare", *names, "-q", "-o", str(out), "--columns", "both", "--checksums"]
    with watched(out, see), pytest.raises(SystemExit) as stopped:
        main(command)
    said = capsys.readouterr()
    assert stopped.value.code == 1
    assert said.out == ""
    assert said.err.startswith(f"wdecomp: {out}")
    assert said.err.endswith("cannot be written (No space left on device).\n")
    assert said.err.count("\n") == 1
    left = power_cuts.contents(out)
    assert "DONE.json" not in left
    assert not [name for name in left if ".tmp-" in name]
    assert _compare(folder) == whole


class _Reading(io.FileIO):
    """A file whose reads may fail, be short, or be interrupted."""

    def __init__(self, path: Path, read: Callable[[Path, Any], Any]) -> None:
        super().__init__(path, "r")
        self._path, self._read = path, read

    def readinto(self, buffer: Any) -> int:
        part: int | None = self._read(self._path, memoryview(buffer))
        return super().readinto(memoryview(buffer)[:part])

    def read(self, size: int | None = -1, /) -> bytes:
        content = bytearray(self.stat_size() if size is None or size < 0 else size)
        return bytes(content[: self.readinto(content)])

    def readall(self) -> bytes:
        parts = iter(lambda: self.read(1 << 16), b"")
        return b"".join(parts)

    def stat_size(self) -> int:
        return os.fstat(self.fileno()).st_size


@contextmanager
def _read_by(folder: Path, read: Callable[[Path, Any], Any]) -> Iterator[None]:
    """Reads of what is below a folder go through a function, which says how much they may have."""
    before = Path.open

    def open_(path: Path, mode: str = "r", buffering: int = -1, *rest: Any, **more: Any) -> Any:
        if mode != "rb" or folder not in path.parents:
            return before(path, mode, buffering, *rest, **more)
        raw = _Reading(path, read)
        return raw if buffering == 0 else io.BufferedReader(raw)

    with mock.patch.object(Path, "open", open_):
        yield


def test_whichever_read_of_an_input_fails_its_file_is_named_and_the_next_run_goes_on(
    folder: Path,
) -> None:
    whole, total = power_cuts.contents(folder / "whole"), _reads(folder)
    assert total > 40
    for at in range(1, total + 1):
        seen: list[Path] = []

        def read(path: Path, _: Any, at: int = at, seen: list[Path] = seen) -> None:
            seen.append(path)
            if len(seen) == at:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        with _reading_inputs(folder, read), pytest.raises(WdecompError) as failed:
            _compare(folder)
        said = str(failed.value)
        assert said.startswith(str(seen[at - 1]))
        assert "cannot be read (Input/output error)" in said
        assert "\n" not in said
        if at % 10 == 0 or at == total:
            assert _compare(folder) == whole
            for path in sorted((folder / "out").rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()


@contextmanager
def _reading_inputs(folder: Path, read: Callable[[Path, Any], Any]) -> Iterator[None]:
    with (
        _read_by(folder / "base", read),
        _read_by(folder / "ft", read),
        _read_by(folder / "lora", read),
    ):
        yield


def _reads(folder: Path) -> int:
    seen: list[Path] = []
    with _reading_inputs(folder, lambda path, _: seen.append(path)):
        _compare(folder, "counted")
    return len(seen)


def test_short_and_interrupted_reads_change_nothing(folder: Path) -> None:
    """A read may end early at any place."""
    sizes = itertools.cycle([1, 7, 64, 3, 1000])

    def read(_: Path, buffer: Any) -> int:
        return min(next(sizes), len(buffer))

    with _reading_inputs(folder, read):
        assert _compare(folder) == power_cuts.contents(folder / "whole")


def test_signals_that_interrupt_reads_and_writes_change_nothing(folder: Path) -> None:
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0005)
    try:
        assert _compare(folder) == power_cuts.contents(folder / "whole")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_mapped_page_that_cannot_be_read_is_an_error_at_every_window(tmp_path: Path) -> None:
    names = [f"model.layers.{i}.self_attn.q_proj.weight" for i in range(3)]
    random = torch.Generator().manual_seed(0)
    base = {name: torch.randn(300, 256, generator=random) for name in names}
    assert base[names[0]].nbytes > LEAST
    write_full(tmp_path / "base", base)
    write_full(tmp_path / "ft", moved(base))
    whole = _bytes_of(tmp_path, "whole")
    opened: list[Window] = []
    init = Window.__init__

    def window(self: Window, *arguments: Any) -> None:
        init(self, *arguments)
        opened.append(self)
        if len(opened) == at:
            self.damaged = True

    at = 0
    with mock.patch.object(Window, "__init__", window):
        _bytes_of(tmp_path, "counted")
        total = len(opened)
        assert total >= 6
        for at in range(1, total + 1):
            opened.clear()
            with pytest.raises(WdecompError, match=r"model\.safetensors: tensor .* cannot be read"):
                _bytes_of(tmp_path, f"out-{at}")
    assert _bytes_of(tmp_path, "out-1") == whole


def _bytes_of(folder: Path, out: str) -> dict[str, bytes]:
    wdecomp.compare(folder / "base", folder / "ft", out=folder / out, workers=1)
    return power_cuts.contents(folder / out)


def test_a_clock_that_jumps_changes_nothing(folder: Path) -> None:
    jumps = itertools.cycle([0, 1e9, -1e9, 3600, -86400])
    real = time.time

    def jumping() -> float:
        return real() + next(jumps)

    with mock.patch.object(time, "time", jumping):
        paths = [folder / name for name in ("base", "ft", "lora")]
        wdecomp.compare(*paths, out=folder / "out", columns="both", checksums=True, progress=True)
    assert power_cuts.contents(folder / "out") == power_cuts.contents(folder / "whole")


@pytest.mark.parametrize("error", [MemoryError, SystemError, KeyboardInterrupt])
def test_a_thread_that_dies_ends_the_run_and_the_next_goes_on(
    error: type[BaseException], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []
    real = scan_unit_module.measure

    def dying(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise error
        return real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(scan_unit_module, "measure", dying)
        with pytest.raises(error):
            _compare(folder)
    assert not (folder / "out" / "DONE.json").exists()
    assert _compare(folder) == power_cuts.contents(folder / "whole")


def test_an_output_that_may_not_be_written_is_said_before_anything_is_read(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / "out"
    command = ["compare", str(folder / "base"), str(folder / "ft"), "-q", "-o", str(out)]
    with _failing(out, 1, errno.EROFS), pytest.raises(SystemExit) as stopped:
        main(command)
    assert stopped.value.code == 1
    said = capsys.readouterr().err
    assert said == f"wdecomp: {out}: cannot be written (Read-only file system).\n"
    assert not out.exists()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "there is not enough memory"),
        (RuntimeError("can't start new thread"), "a mistake of its own (RuntimeError: can't start"),
        (AssertionError(), "a mistake of its own (AssertionError). WDECOMP_TRACEBACK=1 shows"),
    ],
)
def test_a_mistake_of_our_own_is_one_line_too(
    error: Exception,
    message: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(scan_unit_module, "measure", mock.Mock(side_effect=error))
    command = ["compare", str(folder / "base"), str(folder / "ft"), "-q", "-o", str(folder / "o")]
    with pytest.raises(SystemExit) as stopped:
        main(command)
    said = capsys.readouterr().err
    assert stopped.value.code == 1
    assert message in said
    assert said.count("\n") == 1
    monkeypatch.setenv("WDECOMP_TRACEBACK", "1")
    if not isinstance(error, MemoryError):
        with pytest.raises(type(error)):
            main(command)
