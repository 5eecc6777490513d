"""The same units on two Dask workers of one thread each, and on two threads here.

    python benchmarks/cluster.py FOLDER [--layers 8] [--rounds 5]

writes a base and a tuned checkpoint with the shapes of LLaMA-7B into FOLDER (0.8 GB a layer; they
are removed), starts a scheduler and two workers, and prints, from rounds that take turns, how long
the units took: of the cluster from the connection to the last acknowledgement, headers and the plan
on the workers included; starting the processes and importing are before it. The page cache is warm.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from synthetic import write_models

import wdecomp
from wdecomp.comparison import running
from wdecomp.scan import plan

WORKERS = 2


@contextmanager
def dask(folder: Path) -> Iterator[str]:
    """The address of a scheduler with its workers."""
    told = folder / "scheduler.json"
    log = (folder / "dask.txt").open("wb")
    begin = [sys.executable, "-m"]
    options = ["--no-dashboard", "--host", "127.0.0.1"]

    def start(*words: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*begin, *words, *options], stdout=log, stderr=log)

    scheduler = ["distributed.cli.dask_scheduler", "--port", "0", "--scheduler-file", str(told)]
    processes = [start(*scheduler)]
    try:
        while not told.exists() or not told.read_text():
            time.sleep(0.1)
        address = json.loads(told.read_text())["address"]
        worker = ["distributed.cli.dask_worker", address, "--nthreads", "1", "--no-nanny"]
        scratch = ["--local-directory", str(folder / "scratch"), "--memory-limit", "0"]
        processes += [start(*worker, *scratch) for _ in range(WORKERS)]
        wait_for_workers(address)
        yield address
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait()
        log.close()


def wait_for_workers(address: str) -> None:
    """Until all are there."""
    from distributed import Client

    with Client(address, set_as_default=False) as client:
        client.wait_for_workers(WORKERS)


def seconds_of_units(engine: str, out: Path, paths: list[Path], **options: Any) -> float:
    """Of one engine alone: no headers here, no statistics."""
    taken: list[float] = []
    run = getattr(running, engine)

    def timed(*rest: Any) -> None:
        start = time.perf_counter()
        run(*rest)
        taken.append(time.perf_counter() - start)

    shutil.rmtree(out, ignore_errors=True)
    try:
        setattr(running, engine, timed)
        wdecomp.compare(*paths, out=out, columns="none", **options)
    finally:
        setattr(running, engine, run)
    return taken[0]


def same(one: Path, other: Path) -> bool:
    """Whether two folders have the same tables."""
    names = ("modules.parquet", "facts.parquet", "fits.parquet")
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def measure(folder: Path, layers: int, rounds: int) -> None:
    """Prints it."""
    base, tuned = write_models(folder, layers, 1)
    paths, here, there = [base, *tuned], folder / "here", folder / "there"
    size = sum(file.stat().st_size for path in paths for file in path.glob("*.safetensors"))
    with dask(folder) as address:
        works: list[Callable[[], float]] = [
            lambda: seconds_of_units("run_units", here, paths, workers=WORKERS),
            lambda: seconds_of_units("run_on_cluster", there, paths, scheduler=address),
        ]
        rows = [[work() for work in works] for _ in range(rounds + 1)][1:]
    assert same(here, there)
    units = len(json.loads((here / "run.json").read_bytes())["units"])
    local, cluster = np.median(rows, axis=0)
    ratios = sorted(there / here for here, there in rows)
    print(
        f"{size / 1e9:.1f} GB in {units} units of about {plan.UNIT_BYTES >> 20} MiB,"
        f" {os.cpu_count()} cores, {rounds} rounds\n"
        f"  {WORKERS} threads here   {local:6.2f} s\n"
        f"  {WORKERS} Dask workers   {cluster:6.2f} s\n"
        f"  ratio {cluster / local:.2f}, of single rounds {ratios[0]:.2f} to {ratios[-1]:.2f}"
    )


def main() -> None:
    """As the module's own docstring says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    work = options.folder / "cluster"
    try:
        measure(work, options.layers, options.rounds)
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
