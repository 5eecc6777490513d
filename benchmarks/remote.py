"""`compare` of checkpoints on a server, beside fetching the same ranges and computing nothing.

    python benchmarks/remote.py FOLDER [--layers 2] [--latency 0.03] [--rate 0] [--kinds http hf s3]

writes a base and a tuned checkpoint with the shapes of LLaMA-7B into FOLDER (0.8 GB a layer),
serves them from a process of its own, each request after the latency and with at most so many MB a
second for each (0: as fast as the machine; not for s3), and prints, from rounds that take turns,
the median rates and their ratio, the most ranges that were under way together, and the bytes that
came beside those of the tensors. The servers are those of the tests.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from synthetic import write_models

TESTS = Path(__file__).parents[1] / "tests"
sys.path.append(str(TESTS))


def serve(root: Path, kind: str, latency: float, rate: float) -> None:
    """Serves until stdin ends; the first line on stdout says where, each other what was done."""
    from servers.hub import running_hub
    from servers.s3 import running_s3
    from servers.web import running

    with ExitStack() as opened:
        if kind == "s3":
            server = opened.enter_context(running_s3())
            for file in sorted(root.rglob("*")):
                if file.is_file():
                    server.client.upload_file(str(file), "bucket", str(file.relative_to(root)))
            tally, url = server.tally, server.url
        elif kind == "hf":
            hub = opened.enter_context(running_hub(root))
            tally, url = hub.content.tally, hub.url
            hub.tally.latency = latency
        else:
            web = opened.enter_context(running(root))
            tally, url = web.tally, web.url
        tally.latency, tally.rate = latency, rate * 1e6
        print(url, flush=True)
        for _ in sys.stdin:
            spans = [a.span for a in tally.ranges() if a.span]
            got = sum(stop - start for start, stop in spans)
            print(json.dumps([tally.most, len(spans), got]), flush=True)
            tally.forget()


class Server:
    """`serve` in a process of its own."""

    def __init__(self, root: Path, kind: str, latency: float, rate: float = 0) -> None:
        command = [sys.executable, __file__, str(root), "--serve", kind]
        command += ["--latency", str(latency), "--rate", str(rate)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        url = self._line()
        self.front = {"s3": "s3://bucket/org", "hf": "hf://org", "http": f"{url}/org"}[kind]
        os.environ |= {"HF_ENDPOINT": url} if kind == "hf" else {"AWS_ENDPOINT_URL": url}

    def done(self) -> list[int]:
        """Most ranges together, how many there were, and their bytes, since this was last asked."""
        assert self._process.stdin
        print(file=self._process.stdin, flush=True)
        return list(json.loads(self._line()))

    def stop(self) -> None:
        """Ends it."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()

    def _line(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()


def fetched(base: str, tuned: str) -> float:
    """Seconds in which the ranges that `compare` asks for are fetched, as many at a time."""
    from wdecomp.comparison.planning import plan_comparison
    from wdecomp.remote import ahead, at_once
    from wdecomp.scan.ahead import _elsewhere, _Progress, pieces

    plan = plan_comparison(base, tuned)
    wanted = _elsewhere(pieces(plan, list(plan.units), os.cpu_count() or 1), _Progress(1 << 62))
    ranges = list(ahead._joined(wanted))
    started = time.perf_counter()
    at_once(lambda each: len(each.file.fetch(each.start, each.stop)), ranges)
    return time.perf_counter() - started


def compared(base: str, tuned: str) -> float:
    """Seconds of the scan and what is made of it, after the headers were read."""
    import wdecomp
    from wdecomp.comparison import running

    times: list[float] = []
    run_units = running.run_units

    def timed(*arguments: Any, **options: Any) -> None:
        started = time.perf_counter()
        run_units(*arguments, **options)
        times.append(time.perf_counter() - started)

    running.run_units = timed
    try:
        wdecomp.compare(base, tuned)
    finally:
        running.run_units = run_units
    return times[0]


def measure(asked: argparse.Namespace, kind: str, total: int) -> None:
    """One line for one kind of server."""
    server = Server(asked.folder, kind, asked.latency, asked.rate)
    try:
        base, tuned = f"{server.front}/base", f"{server.front}/tuned-1"
        alone, whole = [], []
        compared(base, tuned)  # compiles
        for _ in range(asked.rounds):
            alone.append(fetched(base, tuned))
            server.done()
            whole.append(compared(base, tuned))
            most, requests, got = server.done()
        rates = [total / median(times) / 1e6 for times in (alone, whole)]
        print(
            f"{kind:5} fetched {rates[0]:7.0f} MB/s, compared {rates[1]:7.0f} MB/s: "
            f"{rates[1] / rates[0]:.2f}; {most} under way, {requests} ranges, "
            f"{got / total:.4f} of the tensors' bytes"
        )
    finally:
        server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--latency", type=float, default=0.03)
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", default=["http", "hf", "s3"])
    parser.add_argument("--serve")
    asked = parser.parse_args()
    if asked.serve:
        serve(asked.folder, asked.serve, asked.latency, asked.rate)
        return
    os.environ |= {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "HF_TOKEN": "t"}
    os.environ["AWS_DEFAULT_REGION"] = "us-east-1"
    if not (asked.folder / "org").exists():
        write_models(asked.folder / "org", asked.layers, 1)
    files = (asked.folder / "org").rglob("*.safetensors")
    total = sum(file.stat().st_size for file in files)
    for kind in asked.kinds:
        measure(asked, kind, total)


if __name__ == "__main__":
    main()
