"""Comparisons that are killed with SIGKILL, go on, and have to end as if nothing had been.

    python tests/kills.py FOLDER [--every 1] [--random 200] [--signals 50] [--seed 0]

Makes tiny checkpoints in FOLDER and compares them in units of one matrix, in forks. One run dies at
the n-th change to its disk, in the middle of it where it is a write, for every n; dies once more at
some change while it recovers; and is then let finish. So many more die at any moment. Others get
SIGINT or SIGTERM and have to end in seconds, with one line and exit code 130 or 143. Prints JSON:
how many runs, kills and stops there were, the longest time to an end, and what was wrong.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any
from unittest import mock

from builders import low_rank, moved, tiny_llama, write_adapter, write_full
from disk import Change, watched
from power_cuts import contents

from wdecomp import cli, comparison
from wdecomp.scan import plan

WORKERS = 2


class Trial:
    """Inputs, and what an undisturbed run makes of them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.wrong = folder, list[str]()
        self.kills, self.stopped, self.slowest = 0, 0, 0.0
        tensors = tiny_llama(1)
        write_full(folder / "base", tensors)
        write_full(folder / "ft", moved(tensors))
        write_adapter(folder / "lora", low_rank(tensors))
        plan.UNIT_BYTES = 1
        self._compare(folder / "whole")  # loads all that the forks need
        self.whole = contents(folder / "whole")

    def at_change(self, number: int, again: int) -> bool:
        """Dies at one change, then at another while it recovers; False where there was none."""
        out = self.folder / f"change-{number}"
        died = self._run(out, number) == -signal.SIGKILL
        before = _parts(out)
        self.kills += died + (self._run(out, again) == -signal.SIGKILL)
        if not (out / "DONE.json").exists() and not before.items() <= _parts(out).items():
            self.wrong.append(f"{out.name}: work that was done was done again")
        self._finish(out)
        return died

    def at_moment(self, number: int, seconds: float) -> None:
        """Dies after so many seconds, wherever it is then."""
        out = self.folder / f"moment-{number}"
        child = self._fork(out, 0)
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        self.kills += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        self._finish(out)

    def by_signal(self, number: int, seconds: float, signal_: signal.Signals) -> None:
        """The command itself, told to stop after so many seconds."""
        out, (ready, begin), (said, say) = self.folder / f"signal-{number}", os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            os.dup2(say, 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            _command(self._arguments(out), begin)
        os.close(say)
        os.read(ready, 1)
        time.sleep(seconds)
        start = time.monotonic()
        os.kill(child, signal_)
        with os.fdopen(said) as stream:
            lines = [line for line in stream.read().splitlines() if line]  # click begins a new one
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        self.slowest = max(self.slowest, time.monotonic() - start)
        for descriptor in (ready, begin):
            os.close(descriptor)
        self.stopped += code == 128 + signal_
        if code not in (0, -signal_, 128 + signal_) or (code == 128 + signal_ and len(lines) != 1):
            self.wrong.append(f"{out.name}: exit code {code}, {lines}")
        self._finish(out)

    def _arguments(self, out: Path) -> list[str]:
        paths = [str(self.folder / name) for name in ("base", "ft", "lora")]
        return ["compare", *paths, "-q", "-o", str(out), "--columns", "both", "-j", str(WORKERS)]

    def seconds(self) -> float:
        """How long an undisturbed run takes."""
        start = time.monotonic()
        assert self._run(self.folder / "timed", 0) == 0
        return time.monotonic() - start

    def _finish(self, out: Path) -> None:
        if self._run(out, 0) != 0:
            self.wrong.append(f"{out.name}: could not go on")
        elif contents(out) != self.whole:
            self.wrong.append(f"{out.name}: other tables")
        shutil.rmtree(out)

    def _run(self, out: Path, die_at: int) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self._fork(out, die_at), 0)[1])

    def _fork(self, out: Path, die_at: int) -> int:
        child = os.fork()
        if child:
            return child
        numbers, turn = itertools.count(1), threading.Lock()

        def die(change: Change) -> None:
            with turn:
                if next(numbers) == die_at:
                    if change.kind == "write":
                        os.write(change.descriptor, change.content[: len(change.content) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)

        with contextlib.suppress(BaseException), watched(out, die):
            self._compare(out)
            os._exit(0)
        os._exit(1)

    def _compare(self, out: Path) -> None:
        runs = [self.folder / "ft", self.folder / "lora"]
        comparison.compare(self.folder / "base", *runs, out=out, columns="both", workers=WORKERS)


def _command(arguments: list[str], begin: int) -> None:
    """In a fork: the command, after it has said that signals may come."""
    main = cli.commands.main

    def told(*rest: Any, **options: Any) -> Any:
        os.write(begin, b".")
        return main(*rest, **options)

    try:
        with mock.patch.object(cli.commands, "main", told):
            cli.main(arguments)
    except SystemExit as stopped:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        os._exit(int(stopped.code or 0))
    os._exit(0)


def _parts(out: Path) -> dict[str, int]:
    found = (out / "parts").glob("*.arrow")
    return {path.name: path.stat().st_mtime_ns for path in found}


def trial(folder: Path, every: int, moments: int, signals: int, seed: int) -> dict[str, Any]:
    """All of it; what main prints."""
    dice, this = random.Random(seed), Trial(folder)
    number, runs = 1 + seed % every, 0
    while this.at_change(number, dice.randint(1, 40)):
        number, runs = number + every, runs + 1
    whole = this.seconds()
    for i in range(moments):
        this.at_moment(i, dice.uniform(0, whole))
    for i in range(signals):
        which = signal.SIGTERM if i % 2 else signal.SIGINT
        this.by_signal(i, dice.uniform(0, whole / 2), which)
    return {
        "runs": runs + moments + signals,
        "kills": this.kills,
        "stopped": this.stopped,
        "slowest": round(this.slowest, 2),
        "wrong": this.wrong,
    }


def main() -> None:
    """As the module's own docstring says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--random", type=int, default=200)
    parser.add_argument("--signals", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    found = trial(options.folder, options.every, options.random, options.signals, options.seed)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
