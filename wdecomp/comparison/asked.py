"""What is asked of a comparison, and all that follows from it: plan, options, run.json.

It is words and numbers alone, so that another process can be told and has to come to the same.
"""

import hashlib
import os
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from wdecomp.checkpoint import Checkpoint, sample_sha256
from wdecomp.comparison.planning import plan_comparison
from wdecomp.decomposition import AXES, Axis
from wdecomp.decomposition.spectral import Settings
from wdecomp.scan import Options, Plan, Spectral
from wdecomp.scan import plan as units
from wdecomp.table import VERSION
from wdecomp.table.files import canonical

Axes = Literal["output", "input", "both"]
Columns = Literal["none", "output", "input", "both"]
SPECTRAL_UNIT_BYTES = 16 << 20  # of input: decomposing takes much longer than reading
LIBRARIES = ("wdecomp", "numba", "numpy", "pandas", "pyarrow", "scipy")


@dataclass(frozen=True)
class Asked:
    """The arguments of `compare` that decide its tables, and where its sums are formed."""

    base: str | None
    tuned: tuple[str, ...]
    axis: Axes = "both"
    columns: Columns = "output"
    modules: tuple[str, ...] | None = None
    layers: tuple[int, ...] | None = None
    base_dequantized: str | None = None
    allow_pickle: bool = False
    device: str = "cpu"
    spectral: bool = False
    checksums: bool = False
    unit_bytes: int = 0


@dataclass(frozen=True)
class Prepared:
    """The work, and the record of it that run.json is."""

    plan: Plan
    options: Options
    record: dict[str, Any]


def asking(
    base: str | Path | None,
    *tuned: str | Path,
    axis: Axes = "both",
    columns: Columns = "output",
    modules: Iterable[str] | None = None,
    layers: Iterable[int] | None = None,
    base_dequantized: str | Path | None = None,
    allow_pickle: bool = False,
    device: str = "cpu",
    spectral: bool = False,
    checksums: bool = False,
) -> Asked:
    """What is asked by arguments of `compare`, as words that another process can be told."""
    return Asked(
        None if base is None else str(base),
        tuple(map(str, tuned)),
        axis,
        columns,
        None if modules is None else tuple(modules),
        None if layers is None else tuple(sorted(layers)),
        None if base_dequantized is None else str(base_dequantized),
        allow_pickle,
        device,
        spectral,
        checksums,
        SPECTRAL_UNIT_BYTES if spectral else units.UNIT_BYTES,
    )


def prepare(asked: Asked, threads: int | None) -> Prepared:
    """The work that is asked for, from headers alone.

    Args:
        asked: what is asked.
        threads: that a unit of work may use for linear algebra; one for each core if None.

    Raises:
        WdecompError: a path, a file or a pair of checkpoints is not what it must be.
    """
    plan = plan_comparison(
        asked.base,
        *asked.tuned,
        modules=asked.modules,
        layers=asked.layers,
        base_dequantized=asked.base_dequantized,
        allow_pickle=asked.allow_pickle,
        unit_bytes=asked.unit_bytes,
    )
    axes = _axes(asked.axis, ("output", "input", "both"))
    kept = _axes(asked.columns, ("none", "output", "input", "both"))
    spectra = Spectral(Settings(), threads or os.cpu_count() or 1) if asked.spectral else None
    options = Options(
        axes,
        tuple(axis for axis in kept if axis in axes),
        device=asked.device,
        spectral=spectra,
        checksums=asked.checksums,
    )
    return Prepared(plan, options, record_of(plan, options))


def _axes(choice: str, known: tuple[str, ...]) -> tuple[Axis, ...]:
    if choice not in known:
        raise ValueError(f"{choice!r} is no axis, expected one of {', '.join(known)}.")
    return tuple(axis for axis in AXES if choice in (axis, "both"))


def record_of(plan: Plan, options: Options) -> dict[str, Any]:
    """run.json: all that decides the tables, so that equal records have equal tables."""
    return {
        "wdecomp": version("wdecomp"),
        "schema": VERSION,
        "versions": versions(),
        "options": {"axes": list(options.axes), "columns": list(options.columns)}
        | ({"spectral": asdict(options.spectral.settings)} if options.spectral else {})
        | ({"checksums": "crc32"} if options.checksums else {}),
        "base": _source(plan.base),
        "runs": [
            {"run": run.name, "method": run.method, "step": run.step} | _source(run.checkpoint)
            for run in plan.runs
        ],
        "units": [list(unit.parameters) for unit in plan.units],
        "notes": [[run.name, note] for run in plan.runs for note in run.pairing.notes],
        "left_out": [
            [run.name, run.step, gone.side, gone.tensor, gone.reason]
            for run in plan.runs
            for gone in run.pairing.left_out
        ],
    }


def _source(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "path": str(checkpoint.path),
        "model_type": checkpoint.model_type,
        "adapter_config": checkpoint.adapter_config,
        "shards": [
            {
                "file": str(shard.path),
                "bytes": shard.size,
                "mtime_ns": shard.mtime_ns,
                "header_sha256": shard.header_sha256,
                "sample_sha256": sample_sha256(shard.path, shard.size),
            }
            for shard in checkpoint.shards
        ],
    }


def versions() -> dict[str, str]:
    """Of all that has a hand in the figures."""
    return {"python": platform.python_version()} | {n: version(n) for n in LIBRARIES}


def digests(record: dict[str, Any]) -> dict[str, str]:
    """A digest of each thing that run.json says: short, and it tells which of them differ.

    >>> list(digests({"schema": 1, "versions": {"numpy": "2.0", "python": "3.12"}}))
    ['schema', 'versions.numpy', 'versions.python']
    """
    flat = {
        f"{key}.{name}" if name else key: part
        for key, value in record.items()
        for name, part in (value.items() if isinstance(value, dict) else [("", value)])
    }
    return {key: hashlib.sha256(canonical(part)).hexdigest() for key, part in flat.items()}
