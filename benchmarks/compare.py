"""`wdecomp compare` from end to end, beside reading alone, the disk, and what others do.

    python benchmarks/compare.py FOLDER [--rounds 3] [--only PART …] [--patience 300]

writes synthetic checkpoints with the shapes of LLaMA-7B into FOLDER (22 GB; they are removed) and
prints, from rounds that take turns, medians and their ratios:

    peers     whole processes on a base and three tuned checkpoints, 3 GB in all: `weightscope diff`
              (equal or not, and by how much) and `modeldelta` (norms and singular values), where
              they are installed, both on the three pairs; a script of load_file, norm and
              cosine_similarity; reading alone with safe_open; cat
    scan      the scan inside a process that has started, beside a loop that only reads the same
              files there, on one core and on two
    cold      the same when the files are in no cache, beside reading them from the disk
    scaling   time against size, and the peak of memory
    together  three tuned checkpoints in one run, beside three runs
    adapters  LoRA and DoRA beside a full checkpoint, and beside PEFT's merge_and_unload
"""

import argparse
import mmap
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path

import numpy as np
from kernel import read, seconds
from memory import peak_pss
from synthetic import write_adapter, write_models

import wdecomp
from wdecomp.checkpoint.direct import WIDEST_READ
from wdecomp.comparison import running

PEERS = Path(__file__).with_name("peers.py")
# As users have it: a package is compiled when it is first imported, not at every start.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
DIRECT = 8 << 20  # bytes of one read past the page cache
LARGE_PAGE = 2 << 20
SCANNED = ((10, 1), (6, 3))  # layers and tuned checkpoints


def files_of(*folders: Path) -> list[Path]:
    """Their weights."""
    return sorted(file for folder in folders for file in folder.glob("*.safetensors"))


def gigabytes(*folders: Path) -> float:
    """Of weights."""
    return sum(file.stat().st_size for file in files_of(*folders)) / 1e9


def wdecomp_command(out: Path, *paths: Path) -> list[str]:
    """A comparison into a new folder."""
    shutil.rmtree(out, ignore_errors=True)
    return [sys.executable, "-m", "wdecomp", "compare", *map(str, paths), "-q", "-o", str(out)]


def run(command: list[str], patience: float | None = None) -> float:
    """Seconds that a process takes; infinite if it is not done within its time."""
    start = time.perf_counter()
    try:
        done = subprocess.run(
            command,
            check=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=patience,
            env=ENVIRONMENT,
        )
    except subprocess.TimeoutExpired:
        return float("inf")
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr.decode()}")
    return time.perf_counter() - start


def peers(folder: Path, rounds: int, patience: float) -> None:
    """Whole processes; the slow ones have one round."""
    base, tuned = write_models(folder, 2, 3)
    size, all_files = gigabytes(base, *tuned), files_of(base, *tuned)
    script = [sys.executable, str(PEERS)]
    quick: dict[str, Callable[[], float]] = {
        "wdecomp compare": lambda: run(wdecomp_command(folder / "out", base, *tuned)),
        "reading with safe_open": lambda: run([*script, "read", str(base), *map(str, tuned)]),
        "cat": lambda: run(["cat", *map(str, all_files)]),
    }
    taken = [[work() for work in quick.values()] for _ in range(rounds + 1)]
    found = dict(zip(quick, np.median(taken[1:], axis=0), strict=True))
    found["plain script"] = run([*script, "plain", str(base), *map(str, tuned)], patience)
    for name, options in (("weightscope", ["diff"]), ("modeldelta", [])):
        if find_spec(name) is None:
            print(f"{name}: is not installed")
            continue
        start = [sys.executable, "-c", f"from {name}.cli import main; main()", *options]
        out = ["-o", str(folder / "report.json")]
        pairs = [run([*start, str(base), str(each), *out], patience) for each in tuned[:1]]
        if np.isfinite(pairs).all():
            pairs += [run([*start, str(base), str(each), *out], patience) for each in tuned[1:]]
        found[f"{name}, three pairs"] = sum(pairs)
    ours = found["wdecomp compare"]
    print(f"{size:.1f} GB, {os.cpu_count()} cores, page cache warm")
    for name, taken_by in found.items():
        known = np.isfinite(taken_by)
        print(
            f"  {name:<26} {'' if known else '>'}{taken_by if known else patience:7.1f} s"
            f" {'' if known else '>'}{(taken_by if known else patience) / ours:7.1f} x"
        )


def scan(folder: Path, rounds: int, _: float) -> None:
    """Inside this process, on one core and on two; 8 GB with one tuned checkpoint, or 10."""
    models = [write_models(folder / str(beside), layers, beside) for layers, beside in SCANNED]
    cores = sorted(os.sched_getaffinity(0))
    for count in (1, 2):
        os.sched_setaffinity(0, cores[:count])
        for base, beside in models:
            size = gigabytes(base, *beside)
            reading, scanning = medians_of(
                rounds,
                partial(seconds, partial(read_mapped, count, base, *beside)),
                partial(seconds_of_scan, count, folder / "out", base, *beside),
            )
            print(
                f"  {count} core(s), {len(beside)} tuned, {size:.1f} GB: reading"
                f" {size / reading:.1f} GB/s, scan {size / scanning:.1f} GB/s,"
                f" ratio {reading / scanning:.2f}"
            )
    os.sched_setaffinity(0, cores)


def cold(folder: Path, rounds: int, _: float) -> None:
    """From the disk."""
    base, tuned = write_models(folder, 6, 3)
    files = files_of(base, *tuned)
    size, workers = gigabytes(base, *tuned), os.cpu_count() or 1

    def buffered() -> float:
        forget(files)
        return run(["cat", *map(str, files)])

    def scanned() -> float:
        forget(files)
        return seconds_of_scan(workers, folder / "out", base, *tuned)

    readings = {
        "past the page cache, one buffer of small pages": (False, [DIRECT]),
        "the same, of large pages": (True, [DIRECT]),
        "as many of these as the scan has": (
            True,
            [WIDEST_READ] * (2 * workers * (1 + len(tuned))),
        ),
    }
    # `cat` by itself: where a hypervisor takes freed memory back, what runs next pays for it.
    *taken, scanning = medians_of(
        rounds,
        *(partial(seconds, partial(read_direct, files, *into)) for into in readings.values()),
        scanned,
    )
    found = dict(zip(readings, taken, strict=True)) | {"cat": medians_of(rounds, buffered)[0]}
    print(f"  {size:.1f} GB, scan {size / scanning:.2f} GB/s; reading alone:")
    for name, taken_by in found.items():
        print(f"    {name:<47} {size / taken_by:.2f} GB/s, ratio {taken_by / scanning:.2f}")


def scaling(folder: Path, rounds: int, _: float) -> None:
    """Whole processes with two workers, on 1, 2, 4 and 8 GB."""
    found = []
    for layers in (1, 2, 5, 10):
        base, tuned = write_models(folder / str(layers), layers, 1)
        command = partial(wdecomp_command, folder / "out", base, *tuned)
        run(command())
        taken = [run([*command(), "--workers", "2"]) for _ in range(rounds)]
        peak, _ = peak_pss([*command(), "--workers", "2"])
        found.append((gigabytes(base, *tuned), float(np.median(taken)), peak))
        shutil.rmtree(folder / str(layers))
    sizes, times, _ = map(np.array, zip(*found, strict=True))
    slope, start = np.polyfit(sizes, times, 1)
    for size, taken_by, peak in found:
        apart = taken_by / (start + slope * size) - 1
        print(f"  {size:5.1f} GB {taken_by:6.2f} s ({apart:+.0%}) peak PSS {peak / 1e6:.0f} MB")
    print(f"  time = {start:.2f} s + {slope:.3f} s/GB")


def together(folder: Path, rounds: int, _: float) -> None:
    """Whole processes, all cores."""
    base, tuned = write_models(folder, 6, 3)
    one, three = medians_of(
        rounds,
        lambda: run(wdecomp_command(folder / "out", base, *tuned)),
        lambda: sum(run(wdecomp_command(folder / "out", base, each)) for each in tuned),
    )
    print(f"  one run {one:.2f} s, three runs {three:.2f} s, ratio {one / three:.2f}")


def adapters(folder: Path, rounds: int, patience: float) -> None:
    """The scan on one core; then whole processes."""
    base, tuned = write_models(folder, 2, 1)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:1])
    kinds = {
        f"{'DoRA' if dora else 'LoRA'} r={rank}": write_adapter(
            folder / f"adapter-{rank}-{dora}", 2, rank, dora
        )
        for dora in (False, True)
        for rank in (16, 64)
    }
    full, *theirs = medians_of(
        rounds,
        *(
            partial(seconds_of_scan, 1, folder / "out", base, path)
            for path in (tuned[0], *kinds.values())
        ),
    )
    for name, taken_by in zip(kinds, theirs, strict=True):
        print(f"  {name}: {taken_by:.2f} s, full checkpoint {full:.2f} s: {taken_by / full:.1f} x")
    os.sched_setaffinity(0, cores)
    lora = kinds["LoRA r=16"]
    ours, merging = medians_of(
        1,
        lambda: run(wdecomp_command(folder / "out", base, lora)),
        lambda: run([sys.executable, str(PEERS), "merged", str(base), str(lora)], patience),
    )
    print(f"  LoRA r=16: {ours:.1f} s, merged by PEFT and the plain script {merging:.1f} s")


def medians_of(rounds: int, *works: Callable[[], float]) -> list[float]:
    """Of works that tell themselves how long they took; one round before is not counted."""
    taken = [[work() for work in works] for _ in range(rounds + 1)]
    return [float(each) for each in np.median(taken[1:], axis=0)]


def seconds_of_scan(workers: int, out: Path, *paths: Path) -> float:
    """Of the scan alone: no imports, no headers, no statistics."""
    taken, run_units = [], running.run_units
    shutil.rmtree(out, ignore_errors=True)
    try:
        running.run_units = lambda *a: taken.append(seconds(lambda: run_units(*a)))
        wdecomp.compare(*paths, out=out, workers=workers)
    finally:
        running.run_units = run_units
    return taken[0]


def read_mapped(workers: int, *folders: Path) -> None:
    """Every byte of the files, from fresh mappings."""

    def one(file: Path) -> None:
        with file.open("rb") as stream:
            mapped = mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ)
            read(np.frombuffer(mapped, np.int64, len(mapped) // 8))

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, files_of(*folders)))


def read_direct(files: list[Path], large: bool, sizes: list[int]) -> None:
    """Past the page cache, one read at a time, into buffers that take turns.

    Args:
        files: one after another.
        large: whether buffers have pages of 2 MiB, of which a disk is asked for more at a time.
        sizes: of the buffers: a virtual machine's disk is copied, faster into a few that are
            cached.
    """
    buffers = cycle([_buffer(size, large) for size in sizes])
    for file in files:
        descriptor = os.open(file, os.O_RDONLY | os.O_DIRECT)
        try:
            while os.readv(descriptor, [buffer := next(buffers)]) == len(buffer):
                pass
        finally:
            os.close(descriptor)


def _buffer(size: int, large: bool) -> memoryview:
    mapped = mmap.mmap(-1, size + LARGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if large:
        mapped.madvise(mmap.MADV_HUGEPAGE)
    every = np.frombuffer(mapped, np.uint8)
    first = -every.ctypes.data % LARGE_PAGE
    return every[first : first + size].data


def forget(files: list[Path]) -> None:
    """Takes files out of the page cache."""
    for file in files:
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


PARTS = {part.__name__: part for part in (peers, scan, cold, scaling, together, adapters)}


def main() -> None:
    """Runs the parts that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--patience", type=float, default=300)
    options = parser.parse_args()
    if sys.platform != "linux":
        sys.exit("It needs Linux: it chooses cores and empties the page cache.")
    read(np.ones(8, np.int64))
    for name in options.only:
        work = options.folder / f"compare-{name}"
        print(f"{name} ({time.strftime('%H:%M')})", flush=True)
        try:
            PARTS[name](work, options.rounds, options.patience)
        finally:
            shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
