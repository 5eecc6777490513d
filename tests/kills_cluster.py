"""Comparisons on Dask that are killed with SIGKILL, and have to end as if nothing had been.

    python tests/kills_cluster.py FOLDER [--runs 20] [--kills 80] [--sessions 10] [--seed 0]

Makes tiny checkpoints in FOLDER and compares them in units of one matrix on a scheduler and two
workers, all processes of their own; a unit takes a tenth of a second. At random times a worker is
killed, and another takes its place; or all of it at once: the command, the scheduler and the
workers, and the same command goes on with new ones. Prints JSON: how many runs, kills, units and
commits there were, and what was wrong: a table that is not that of a local run, a unit with two
parts of different content, or a command that did not end well.
"""

import argparse
import contextlib
import json
import random
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from builders import low_rank, moved, tiny_llama, write_adapter, write_full
from clusters import Processes
from power_cuts import contents

from wdecomp import comparison
from wdecomp.scan import plan

LAYERS = 20
SLOW = 0.1  # seconds that a unit takes at least
SESSION, HUNG = 240, -1  # seconds after which a command hangs
COMMAND = """
import sys
from wdecomp.cli import main
from wdecomp.scan import plan
plan.UNIT_BYTES = 1
main(sys.argv[1:])
"""


class Trial:
    """Inputs, what a local run makes of them, and what has gone on so far."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.dice, self.wrong = folder, random.Random(seed), list[str]()
        self.workers_killed = self.sessions_killed = self.commits = self.again = 0
        tensors = tiny_llama(LAYERS)
        write_full(folder / "base", tensors)
        write_full(folder / "ft", moved(tensors))
        write_adapter(folder / "lora", low_rank(tensors))
        self._paths = [folder / name for name in ("base", "ft", "lora")]
        plan.UNIT_BYTES = 1
        comparison.compare(*self._paths, out=folder / "whole", columns="both")
        self._whole = contents(folder / "whole")
        record = json.loads(self._whole["run.json"])
        self.units = len(record["units"])

    def run(self, number: int, kills: int, sessions: int) -> None:
        """One comparison, with so many kills in it."""
        out, logs = self.folder / f"run-{number}", list[Path]()
        events = ["worker"] * kills + ["session"] * sessions
        self.dice.shuffle(events)
        session = 0
        while True:
            folder = self.folder / f"dask-{number}-{session}"
            logs.append(folder / "log")
            code = self._session(folder, out, events)
            session += 1
            if code is None:  # it was killed
                continue
            if code == 75 and session < kills + sessions + 3:
                continue
            break
        if code != 0:
            self.wrong.append(f"run {number}: ended with {code}")
        elif contents(out) != self._whole:
            self.wrong.append(f"run {number}: other tables")
        self._count(number, logs)

    def _session(self, folder: Path, out: Path, events: list[str]) -> int | None:
        """The command's exit code, or None where all of it was killed."""
        processes = Processes(folder, SLOW)
        words = ["compare", *map(str, self._paths), "-q", "-o", str(out), "--columns", "both"]
        words += ["--scheduler", processes.address, "--worker-timeout", "30"]
        with (folder / "said").open("wb") as said:
            command = subprocess.Popen(
                [sys.executable, "-c", COMMAND, *words], stdout=said, stderr=said
            )
        try:
            processes.add_worker()
            processes.add_worker()
            return self._watched(command, processes, events)
        finally:
            command.kill()
            command.wait()
            processes.kill()

    def _watched(
        self, command: "subprocess.Popen[bytes]", processes: Processes, events: list[str]
    ) -> int | None:
        begun = time.monotonic()
        _wait_for_a_part(processes, command)
        while command.poll() is None and time.monotonic() - begun < SESSION:
            with contextlib.suppress(subprocess.TimeoutExpired):
                command.wait(self.dice.uniform(0.05, 2.0) if events else SESSION)
                continue
            if not events:
                break
            if events.pop() == "session":
                self.sessions_killed += 1
                return None
            self.workers_killed += 1
            alive = [worker for worker in processes.workers if worker.poll() is None]
            self.dice.choice(alive).kill()
            processes.add_worker()
        code = command.poll()
        return HUNG if code is None else code

    def _count(self, number: int, logs: list[Path]) -> None:
        names = [n for log in logs if log.exists() for n in log.read_text().split()]
        self.commits += len(names)
        self.again += len(names) - len(set(names))
        of_unit = defaultdict(set)
        for name in names:
            of_unit[name.rpartition("-")[0]].add(name)
        double = [unit for unit, parts in of_unit.items() if len(parts) > 1]
        if double:
            self.wrong.append(f"run {number}: {len(double)} units have parts of different content")


def _wait_for_a_part(processes: Processes, command: "subprocess.Popen[bytes]") -> None:
    for _ in range(600):
        if processes.log.exists() or command.poll() is not None:
            return
        time.sleep(0.1)


def trial(folder: Path, runs: int, kills: int, sessions: int, seed: int) -> dict[str, Any]:
    """All of it; what main prints."""
    begun, this = time.monotonic(), Trial(folder, seed)
    for number in range(runs):
        share = [
            total * (number + 1) // runs - total * number // runs for total in (kills, sessions)
        ]
        this.run(number, *share)
        print(f"run {number}: {this.workers_killed} workers, {this.sessions_killed} sessions",
              file=sys.stderr, flush=True)  # fmt: skip
    return {
        "runs": runs,
        "units": this.units,
        "workers_killed": this.workers_killed,
        "sessions_killed": this.sessions_killed,
        "units_committed": this.commits,
        "units_committed_again": this.again,
        "seconds": round(time.monotonic() - begun),
        "wrong": this.wrong,
    }


def main() -> None:
    """As the module's own docstring says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--kills", type=int, default=80)
    parser.add_argument("--sessions", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    found = trial(options.folder, options.runs, options.kills, options.sessions, options.seed)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
