"""Dask as separate processes: a scheduler and workers, which may be killed one by one.

Workers are slowed down so that there is something to kill, and write down every part that they
commit.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TESTS = Path(__file__).parent
PRELOADED = """
import os, time
from pathlib import Path
from wdecomp.scan import engine
from wdecomp.table import ResultsFolder

scan = engine.__dict__.setdefault("scan", engine.scan_unit)  # Dask loads this more than once
draft = ResultsFolder.__dict__.get("drafted") or ResultsFolder.draft
ResultsFolder.drafted = draft

def slow_scan(*arguments):
    time.sleep(float({slow!r}))
    return scan(*arguments)

def told_draft(folder, unit, part):
    rest = draft(folder, unit, part)
    def told():
        rest()
        with Path({log!r}).open("a") as log:
            log.write(folder._parts[unit].name + chr(10))
    return told

engine.scan_unit, ResultsFolder.draft = slow_scan, told_draft
"""


class Processes:
    """A scheduler and its workers, all on this machine.

    workers: the processes, in the order in which they were started.
    log: the names of all parts that workers have committed, a line each.
    """

    def __init__(self, folder: Path, slow: float = 0.0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self.workers = folder, list[subprocess.Popen[bytes]]()
        self.log, self._preload = folder / "log", folder / "preload.py"
        self._preload.write_text(PRELOADED.format(slow=slow, log=str(self.log)))
        self._told = folder / f"scheduler-{os.urandom(4).hex()}.json"
        arguments = ["--port", "0", "--no-dashboard", "--scheduler-file", str(self._told)]
        self.scheduler = self._start("scheduler", *arguments)
        self.address = str(json.loads(self._read())["address"])

    def add_worker(self, threads: int = 1) -> subprocess.Popen[bytes]:
        """One more worker; it is there some seconds later."""
        options = {
            "--nthreads": str(threads),
            "--death-timeout": "20",
            "--memory-limit": "0",
            "--preload": str(self._preload),
        }
        options |= {"--local-directory": str(self._folder / "scratch")}
        words = [word for option in options.items() for word in option]
        self.workers.append(
            self._start("worker", self.address, "--no-nanny", "--no-dashboard", *words)
        )
        return self.workers[-1]

    def wait_for_workers(self) -> None:
        """Until the scheduler knows all of them."""
        for _ in range(1200):
            said = (self._folder / "scheduler.txt").read_text()
            if said.count("Register worker addr") >= len(self.workers):
                return
            time.sleep(0.05)
        raise TimeoutError("the workers did not start")

    def kill(self) -> None:
        """Ends all of it at once."""
        everyone = (self.scheduler, *self.workers)
        for process in everyone:
            process.send_signal(signal.SIGKILL)
        for process in everyone:
            process.wait()

    def _start(self, what: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.dask_{what}", *arguments]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
        with (self._folder / f"{what}.txt").open("ab") as said:
            return subprocess.Popen(
                [*command, "--host", "127.0.0.1"], stdout=said, stderr=said, env=environment
            )

    def _read(self) -> str:
        for _ in range(600):
            with contextlib.suppress(OSError):
                if text := self._told.read_text():
                    return text
            time.sleep(0.05)
        raise TimeoutError("the scheduler did not start")


@contextmanager
def dask(folder: Path, workers: int, slow: float = 0.0) -> Iterator[Processes]:
    """A scheduler with so many workers, none of which is left at the end."""
    processes = Processes(folder, slow)
    try:
        for _ in range(workers):
            processes.add_worker()
        processes.wait_for_workers()
        yield processes
    finally:
        processes.kill()
