"""The kernel on one core, in memory, beside reading alone and beside plain PyTorch.

    python benchmarks/kernel.py [--mb 400] [--rounds 5]

compares matrices of --mb megabytes, along both axes, with one and with three tuned ones beside a
base, in blocks as the scan gives them. Rounds of reading and of comparing take turns; printed are
medians, in GB/s of input (every byte once), and their ratio.
"""

import argparse
import os
import time
from collections.abc import Callable

import numba
import numpy as np
import torch
from peers import plain

from wdecomp.checkpoint import BLOCK_BYTES
from wdecomp.decomposition import SharedSums
from wdecomp.scan.measure import UNCACHED

Array = np.ndarray
STORED = {"BF16": np.uint16, "F16": np.int16, "F32": np.float32}
BLOCK = BLOCK_BYTES * UNCACHED  # bytes of the base, as the scan has them


@numba.njit(nogil=True, fastmath=True)
def read(numbers: Array) -> int:
    """Touches every byte: what no comparison can be faster than."""
    total = np.int64(0)
    for i in range(numbers.size):
        total += numbers[i]
    return total


def matrices(dtype: str, width: int, nbytes: float, count: int) -> list[Array]:
    """A base, and tuned ones at a distance of 5 % from it."""
    rows = int(nbytes // (width * np.dtype(STORED[dtype]).itemsize)) // 8 * 8
    random = np.random.default_rng(0)
    base = random.normal(0, 0.02, (256, width)).astype(np.float32)
    found = []
    for i in range(count):
        weight = base + (i > 0) * random.normal(0, 1e-3, base.shape).astype(np.float32)
        if dtype == "BF16":
            weight = (weight.view(np.uint32) >> 16).astype(np.uint16)
        elif dtype == "F16":
            weight = weight.astype(np.float16).view(np.int16)
        found.append(np.tile(weight, (-(-rows // 256), 1))[:rows].copy())
    return found


def compare(base: Array, tuned: list[Array]) -> None:
    """As the scan does it: block by block."""
    sums = SharedSums(base.shape, len(tuned))
    shares, columns = [1.0] * len(tuned), slice(0, base.shape[1])
    height = BLOCK // base[0].nbytes
    for top in range(0, len(base), height):
        rows = slice(top, min(top + height, len(base)))
        sums.add(base[rows], [t[rows] for t in tuned], shares, rows, columns)


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def medians(rounds: int, *works: Callable[[], object]) -> list[float]:
    """Median seconds of each, taking turns; one round before is not counted."""
    taken = [[seconds(work) for work in works] for _ in range(rounds + 1)]
    return [float(np.median(column)) for column in zip(*taken[1:], strict=True)]


def main() -> None:
    """Prints a row for each dtype, width and number of tuned matrices, then the peer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=float, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    print(
        f"{'dtype':>6} {'width':>6} {'tuned':>6} {'read GB/s':>10} {'kernel GB/s':>12} {'ratio':>6}"
    )
    for dtype in STORED:
        for width in (4096, 11008, 768):
            base, *tuned = matrices(dtype, width, options.mb * 1e6, 4)
            flat = [each.view(np.int64).reshape(-1) for each in (base, *tuned)]
            for count in (1, 3):
                touched, beside = flat[: count + 1], tuned[:count]
                reading, comparing = medians(
                    options.rounds,
                    lambda touched=touched: [read(each) for each in touched],
                    lambda base=base, beside=beside: compare(base, beside),
                )
                size = (1 + count) * base.nbytes / 1e9
                print(
                    f"{dtype:>6} {width:>6} {count:>6} {size / reading:>6.1f}"
                    f" {size / comparing:>7.1f}      {reading / comparing:>6.2f}"
                )
    base, tuned = matrices("BF16", 4096, 64e6, 2)
    tensors = [torch.from_numpy(each.view(np.int16)).view(torch.bfloat16) for each in (base, tuned)]
    ours, theirs = medians(3, lambda: compare(base, [tuned]), lambda: plain(*tensors))
    print(f"Plain PyTorch (.float(), norm, cosine_similarity, BF16, 64 MB): {theirs / ours:.0f} x")


if __name__ == "__main__":
    main()
