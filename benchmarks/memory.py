"""Peak memory of `wdecomp compare` beside the size of the model.

    python benchmarks/memory.py FOLDER [--gb 4] [--tensor-gb 2]

writes synthetic sharded BF16 pairs of base and tuned checkpoints into FOLDER, of one size and of
twice that, each with one more tensor of --tensor-gb, compares them in a process of its own, and
prints the peak of the summed PSS of that process and its children, sampled every 20 ms.
"""

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
from synthetic import write_index, write_shard

ROWS, WIDTH = 11008, 4096  # of one matrix, as in a 7B model: 90 MB
EMBEDDING_WIDTH = 8192
SHARD_MATRICES = 8


def write_model(folder: Path, gb: float, tensor_gb: float, seed: int) -> None:
    """A sharded BF16 checkpoint of random weights with its index."""
    folder.mkdir(parents=True)
    bits = np.random.default_rng(seed).normal(0, 0.02, (ROWS, WIDTH)).astype(np.float32)
    row = (bits.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    count = round(gb * 1e9 / len(row))

    def content(nbytes: int) -> Iterator[bytes]:
        for start in range(0, nbytes, len(row)):
            yield row[: nbytes - start]

    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(count)]
    shards = [names[i : i + SHARD_MATRICES] for i in range(0, count, SHARD_MATRICES)]
    weight_map = {}
    for i, shard in enumerate(shards):
        file = f"model-{i:05d}.safetensors"
        write_shard(folder / file, dict.fromkeys(shard, (ROWS, WIDTH)), content)
        weight_map |= dict.fromkeys(shard, file)
    if tensor_gb:
        words = round(tensor_gb * 1e9 / 2 / EMBEDDING_WIDTH)
        name = "model.embed_tokens.weight"
        write_shard(folder / "embedding.safetensors", {name: (words, EMBEDDING_WIDTH)}, content)
        weight_map[name] = "embedding.safetensors"
    write_index(folder, weight_map)


def peak_pss(command: list[str]) -> tuple[int, float]:
    """(bytes, seconds): the highest summed PSS of a process and its children, and its time."""
    start, peak = time.perf_counter(), 0
    process = psutil.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, sum(_pss(p) for p in [process, *process.children(recursive=True)]))
        time.sleep(0.02)
    if process.returncode:
        sys.exit(f"{command}: exit code {process.returncode}")
    return peak, time.perf_counter() - start


def _pss(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0


def main() -> None:
    """Makes the models, compares them, prints a row for each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gb", type=float, default=4)
    parser.add_argument("--tensor-gb", type=float, default=2)
    options = parser.parse_args()
    print(f"{'model':>8} {'tensor':>8} {'peak PSS':>10} {'time':>7}")
    for gb in (options.gb, 2 * options.gb):
        work = options.folder / f"memory-{gb:g}"
        for seed, side in enumerate(("base", "ft")):
            write_model(work / side, gb, options.tensor_gb, seed)
        command = [sys.executable, "-m", "wdecomp", "compare", str(work / "base")]
        command += [str(work / "ft"), "-q", "-o", str(work / "results")]
        peak, seconds = peak_pss(command)
        print(f"{gb:>6g}GB {options.tensor_gb:>6g}GB {peak / 1e6:>8.0f}MB {seconds:>6.1f}s")
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
