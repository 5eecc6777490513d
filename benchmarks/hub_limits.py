"""What one comparison of many models asks of the machine: planning, scanning, finishing.

    python benchmarks/hub_limits.py FOLDER [--models 1 16 64 256]

writes sparse checkpoints of Llama-3.1-8B's shapes into FOLDER (headers and holes, a few MB), and
measures, each in a process of its own: planning from headers with run.json, scanning one MLP matrix
beside so many others, and the tables of so many models with their statistics. Prints a table, and
a line through the last two rows as what 10,000 models in one comparison would take.
"""

import argparse
import json
import math
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import synthetic_results
from hub_family import SHARD, Kind, Llama, adapter
from synthetic_results import Method

from wdecomp.comparison import plan_comparison, record_of
from wdecomp.scan import Options, run_units
from wdecomp.table import open_folder
from wdecomp.table.files import canonical

MANY = 10_000


def write_sparse(folder: Path, kind: Kind, model: Llama) -> Path:
    """A checkpoint whose weights are holes in its files."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": "llama", "num_hidden_layers": model.layers}
    config |= {"hidden_size": model.hidden, "num_attention_heads": 32, "num_key_value_heads": 8}
    (folder / "config.json").write_text(json.dumps(config))
    dtype = "BF16" if kind.stored == 2 else "F32"
    if kind.rank is not None:
        write_file(folder / "adapter_model.safetensors", factors(kind, model), dtype, kind.stored)
        given = {"peft_type": "LORA", "r": kind.rank, "lora_alpha": kind.rank}
        given |= {"target_modules": [n.split(".")[1] for n in model.projections()]}
        (folder / "adapter_config.json").write_text(json.dumps(given))
        return folder
    files: list[dict[str, tuple[int, ...]]] = [{}]
    for name, shape in model.shapes().items():
        if sum(kind.stored * math.prod(s) for s in [*files[-1].values(), shape]) > SHARD:
            files.append({})
        files[-1][name] = shape
    weight_map = {}
    for i, shapes in enumerate(files):
        name = f"model-{i + 1:05d}-of-{len(files):05d}.safetensors"
        write_file(folder / name, shapes, dtype, kind.stored)
        weight_map |= dict.fromkeys(shapes, name)
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(index)
    return folder


def factors(kind: Kind, model: Llama) -> dict[str, tuple[int, ...]]:
    """The tensors of an adapter of all projections."""
    found = {}
    for layer in range(model.layers):
        for name, (outputs, inputs) in model.projections().items():
            key = f"base_model.model.model.layers.{layer}.{name}.lora_"
            found |= {f"{key}A.weight": (kind.rank, inputs), f"{key}B.weight": (outputs, kind.rank)}
    return found


def write_file(file: Path, shapes: dict[str, tuple[int, ...]], dtype: str, stored: int) -> None:
    """A safetensors file: its header, and holes."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + stored * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what it gives."""
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def plan(folder: Path, models: int, tuned: str) -> dict[str, float]:
    """Headers of so many models, and run.json."""
    named = [f"m{i}={folder / tuned}" for i in range(models)]
    seconds, made = timed(lambda: plan_comparison(folder / "base", *named))
    options = Options(("output", "input"), ())
    recording, record = timed(lambda: record_of(made, options))
    size = len(canonical(record))
    return {"seconds": seconds, "recording": recording, "run.json": size, "units": len(made.units)}


def scan(folder: Path, models: int, tuned: str) -> dict[str, float]:
    """One MLP matrix beside so many."""
    named = [f"m{i}={folder / tuned}" for i in range(models)]
    made = plan_comparison(folder / "base", *named, modules=["down"], layers=[0])
    options, out = Options(("output", "input"), ()), folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    with open_folder(out, record_of(made, options), False) as opened:
        seconds, _ = timed(lambda: run_units(made, options, opened, 2, lambda _: None))
    return {
        "seconds": seconds,
        "bytes": sum(made.nbytes(n) for u in made.units for n in u.parameters),
    }


def finish(folder: Path, models: int, columns: str) -> dict[str, float]:
    """The tables of so many models."""
    methods = tuple(Method(f"m{i}", "full", 0.018, 0.07, -0.8) for i in range(models))
    synthetic_results.STEPS = (1,)
    out = folder / "tables"
    shutil.rmtree(out, ignore_errors=True)
    made = synthetic_results.result_fits
    spent: list[float] = []

    def fits(results: Any) -> Any:
        seconds, found = timed(lambda: made(results))
        spent.append(seconds)
        return found

    synthetic_results.result_fits = fits
    results = synthetic_results.write_results(out, columns=columns == "columns", methods=methods)
    sizes = {file.name: file.stat().st_size for file in out.glob("*.parquet")}
    kept = sum(file.stat().st_size for file in out.glob("columns/**/*.parquet"))
    rows = {"rows": len(results.modules), "facts": len(results.facts), "columns": kept}
    shutil.rmtree(out)
    return sizes | rows | {"fits": spent[0]}


@contextmanager
def watched() -> Iterator[dict[str, float]]:
    """The most memory of its own that this process has meanwhile; mapped files are not counted."""
    found, ended = {"memory": 0.0}, Event()
    status = Path("/proc/self/status")

    def look() -> None:
        while not ended.wait(0.01):
            size = re.search(r"RssAnon:\s+(\d+) kB", status.read_text())
            found["memory"] = max(found["memory"], 1024.0 * int(size[1]) if size else 0.0)

    thread = Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


WORK = {work.__name__: work for work in (plan, scan, finish)}


def measured(folder: Path, work: str, models: int, which: str) -> dict[str, float]:
    """What a process of its own found, with its seconds and its peak."""
    command = [sys.executable, __file__, str(folder), "--one", work, str(models), which]
    found: dict[str, float] = json.loads(
        subprocess.run(command, capture_output=True, check=True, text=True).stdout
    )
    return found


def line(sizes: list[int], figures: list[float]) -> float:
    """The line through the last two points, at 10,000 models."""
    (x0, x1), (y0, y1) = sizes[-2:], figures[-2:]
    return y1 + (y1 - y0) / (x1 - x0) * (MANY - x1)


def main() -> None:
    """Prints a table for each part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--only", nargs="+", choices=WORK, default=list(WORK))
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        work, models, which = given.one
        with watched() as memory:
            found = WORK[work](given.folder, int(models), which)
        print(json.dumps(found | memory))
        return
    model = Llama()
    write_sparse(given.folder / "base", Kind("base", 1, 1.0), model)
    write_sparse(given.folder / "ft", Kind("full", 1, 1.0), model)
    write_sparse(given.folder / "lora", adapter(16, 1), model)
    cases = [("plan", "ft"), ("plan", "lora"), ("scan", "ft"), ("scan", "lora")]
    cases += [("finish", "tables"), ("finish", "columns")]
    for work, which in (case for case in cases if case[0] in given.only):
        sizes = [n for n in given.models if which != "columns" or n <= 16]
        table = [measured(given.folder, work, n, which) for n in sizes]
        print(f"\n{work} {which}\n  models  " + "  ".join(f"{key:>12}" for key in table[0]))
        rows = [(str(n), list(each.values())) for n, each in zip(sizes, table, strict=True)]
        if work != "scan":
            ends = [line(sizes, list(each)) for each in zip(*(f for _, f in rows), strict=True)]
            rows.append((f"{MANY}*", ends))
        for name, figures in rows:
            print(f"  {name:>6}  " + "  ".join(f"{figure:12.4g}" for figure in figures), flush=True)


if __name__ == "__main__":
    main()
