"""SIGINT and SIGTERM end a command in seconds, also where a thread hangs in foreign code."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import power_cuts
import pytest
from builders import moved, tiny_llama, write_full

import wdecomp
from wdecomp.cli.stopping import GRACE

# The command itself, whose second matrix takes a minute, or comes to its end when it is told to.
SLOW = """
import sys, time
from pathlib import Path
from wdecomp.cli import main
from wdecomp.scan import plan, unit
plan.UNIT_BYTES = 1
measure, hangs, calls = unit.measure, sys.argv.pop(1) == "hangs", []
def slow(pairs, block_bytes, on_bytes, *rest):
    calls.append(pairs)
    if len(calls) == 3:
        print("ready", flush=True)
        for _ in range(1 if hangs else 600):
            time.sleep(60 if hangs else 0.1)
            on_bytes(0)
    return measure(pairs, block_bytes, on_bytes, *rest)
unit.measure = slow
main(["compare", "base", "ft", "-q", "-o", "out", "-j", "2"])
"""


@pytest.mark.parametrize(
    ("kind", "number"),
    [("answers", signal.SIGINT), ("answers", signal.SIGTERM), ("hangs", signal.SIGTERM)],
)
def test_a_signal_ends_a_comparison_in_seconds_and_it_can_go_on(
    kind: str, number: signal.Signals, tmp_path: Path
) -> None:
    tensors = tiny_llama(1)
    write_full(tmp_path / "base", tensors)
    write_full(tmp_path / "ft", moved(tensors))
    command = [sys.executable, "-c", SLOW, kind]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=tmp_path, stdout=pipe, stderr=pipe, text=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
        time.sleep(0.2)
        start = time.monotonic()
        run.send_signal(number)
        out, err = run.communicate(timeout=30)
        seconds = time.monotonic() - start
    assert run.returncode == 128 + number
    assert out == ""
    assert err.strip() == "wdecomp: interrupted. Give the same command again to continue."
    assert seconds < GRACE + 2
    assert (seconds >= GRACE) == (kind == "hangs")
    assert not (tmp_path / "out" / "DONE.json").exists()
    assert list((tmp_path / "out" / "parts").glob("*.arrow"))
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(tmp_path)
        patched.setattr("wdecomp.scan.plan.UNIT_BYTES", 1)
        wdecomp.compare("base", "ft", out="out")
        wdecomp.compare("base", "ft", out="whole")
    assert power_cuts.contents(tmp_path / "out") == power_cuts.contents(tmp_path / "whole")


def test_a_second_run_is_refused_within_a_second_while_the_first_goes_on(tmp_path: Path) -> None:
    tensors = tiny_llama(1)
    write_full(tmp_path / "base", tensors)
    write_full(tmp_path / "ft", moved(tensors))
    command = [sys.executable, "-c", SLOW, "answers"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "ready\n"
        start = time.monotonic()
        try:
            with pytest.raises(wdecomp.WdecompError, match="another wdecomp is writing there"):
                wdecomp.compare(tmp_path / "gone", tmp_path / "ft", out=tmp_path / "out")
            assert time.monotonic() - start < 1
        finally:
            first.kill()
    wdecomp.compare(tmp_path / "base", tmp_path / "ft", out=tmp_path / "out", restart=True)
