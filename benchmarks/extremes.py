"""Checkpoints of extreme shapes: one tensor of 64 GiB, and 100,000 small ones.

    python benchmarks/extremes.py FOLDER [--gib 64] [--tensors 100000]

writes pairs of base and tuned BF16 checkpoints into FOLDER (the large ones are sparse files, zeros
but for some megabytes of the tuned one, so that they need next to no disk), compares each pair in a
process of its own, and prints the peak of its summed PSS, and its time.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from memory import peak_pss

WIDTH = 1 << 14  # inputs of the large one
SIDE = 16  # of a small one
CHANGED = 1 << 24  # numbers of the large one that are not zero


def one_large(file: Path, seed: int, gib: int) -> None:
    """A single tensor, of which only the tuned one (seed 1) has anything but zeros."""
    size = gib << 30
    _write_header(file, {"embed.weight": ([size // 2 // WIDTH, WIDTH], size)})
    start = file.stat().st_size
    with file.open("r+b") as stream:
        stream.truncate(start + size)
        if seed:
            stream.seek(start + size // 2)
            stream.write(_bits(CHANGED, seed))


def many_small(file: Path, seed: int, count: int) -> None:
    """Layers of one square matrix each."""
    size = 2 * SIDE * SIDE
    names = (f"model.layers.{i}.mlp.up_proj.weight" for i in range(count))
    _write_header(file, dict.fromkeys(names, ([SIDE, SIDE], size)))
    with file.open("ab") as stream:
        stream.write(_bits(count * SIDE * SIDE, seed))


def _write_header(file: Path, tensors: dict[str, tuple[list[int], int]]) -> None:
    header, end = {}, 0
    for name, (shape, size) in tensors.items():
        begin, end = end, end + size
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(len(text).to_bytes(8, "little") + text)


def _bits(count: int, seed: int) -> bytes:
    numbers = np.random.default_rng(seed).standard_normal(count, np.float32)
    return (numbers.view(np.uint32) >> 16).astype(np.uint16).tobytes()


def measure(folder: Path, what: str, write: Callable[[Path, int], None]) -> None:
    """Makes a pair, compares it, prints a row."""
    for seed, side in enumerate(("base", "ft")):
        (folder / side).mkdir(parents=True)
        write(folder / side / "model.safetensors", seed)
    command = [sys.executable, "-m", "wdecomp", "compare", str(folder / "base")]
    peak, seconds = peak_pss([*command, str(folder / "ft"), "-q", "-o", str(folder / "results")])
    print(f"{what:<24} {peak / 1e6:>8.0f} MB {seconds:>7.1f} s", flush=True)
    shutil.rmtree(folder)


def main() -> None:
    """Both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gib", type=int, default=64)
    parser.add_argument("--tensors", type=int, default=100_000)
    options = parser.parse_args()
    measure(
        options.folder / "large",
        f"one tensor of {options.gib} GiB",
        lambda file, seed: one_large(file, seed, options.gib),
    )
    measure(
        options.folder / "many",
        f"{options.tensors:,} tensors",
        lambda file, seed: many_small(file, seed, options.tensors),
    )


if __name__ == "__main__":
    main()
