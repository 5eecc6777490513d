"""The main job: base and tuned checkpoints in, tables out."""

import atexit
import os
import platform
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from wdecomp.checkpoint import Checkpoint, is_there, open_checkpoint, sample_sha256
from wdecomp.decomposition import AXES, Axis, compilation_told, require_device
from wdecomp.decomposition.spectral import Settings
from wdecomp.errors import CheckpointError, PairingError
from wdecomp.inputs import Tuned, joined, named_path, parse_tuned, place_filter
from wdecomp.pairing import LeftOut, pair, through_other_base
from wdecomp.progress import aside, byte_progress
from wdecomp.scan import Options, Plan, Run, Spectral, make_plan, run_units
from wdecomp.table import VERSION, Results, open_folder, refuse_busy

Axes = Literal["output", "input", "both"]
Columns = Literal["none", "output", "input", "both"]
QUANTIZATION = "quantization"  # the run that shows what quantising the base did
COMPILING = "Compiling the kernel for these dtypes: some seconds, once; it is kept."
SPECTRAL_UNIT_BYTES = 16 << 20  # of input: decomposing takes much longer than reading
LIBRARIES = ("wdecomp", "numba", "numpy", "pandas", "pyarrow", "scipy")


def compare(
    base: str | Path | None,
    *tuned: str | Path,
    out: str | Path | None = None,
    axis: Axes = "both",
    columns: Columns = "output",
    modules: Iterable[str] | None = None,
    layers: Iterable[int] | None = None,
    workers: int | None = None,
    base_dequantized: str | Path | None = None,
    restart: bool = False,
    progress: bool = False,
    allow_pickle: bool = False,
    device: str = "cpu",
    spectral: bool = False,
    checksums: bool = False,
) -> Results:
    """The tables of ΔM and ΔD of every tuned checkpoint against its base.

        ΔM = mean |m − m0|        ΔD = mean (1 − cos(w, w0))      over the columns of a matrix

    DoRA section 3.2, Eqs. (3) and (4). Everything is read from disk in blocks; memory does not
    grow with the model.

    Args:
        base: folder or safetensors file of the base model; None takes it from the config of an
            adapter among `tuned`.
        tuned: folders or files, each `PATH`, `NAME=PATH` or `NAME:METHOD=PATH`; full checkpoints,
            PEFT LoRA or DoRA adapters, or folders of `checkpoint-N/`.
        out: the results folder; a temporary one that lives as long as the process if None.
        axis: which axes have rows in the tables.
        columns: for which axes every single column is kept.
        modules: module kinds to compare ("q", "v", "down", …); all if None.
        layers: layers to compare; all if None.
        workers: threads; one for each core if None.
        base_dequantized: the quantised base on which the adapters were trained (QLoRA, QDoRA), to
            be dequantised. They are then compared with it; what quantisation did to `base` is a
            run `quantization`, and what both did together `NAME+quantization`.
        restart: replace the results of another run in `out`.
        progress: show bytes, rate and time left on stderr.
        allow_pickle: open pickled files (`.bin`, `.pt`, …) too, as tensors alone; needs torch.
        device: "cpu", or "numpy" (the same, slowly, without compiled sums), or "cuda" or
            "cuda:N" for sums on a GPU; that needs torch.
        spectral: make `spectra`, too: what the singular values of each change say, and where it
            lies beside its base. One whole pair of matrices is held at a time, in float32; it
            takes much longer than all else.
        checksums: make `inputs`, too: the CRC-32 of every byte that is read, by which
            `wdecomp check --inputs` finds what has changed since.

    Raises:
        WdecompError: a path, a file, a pair of checkpoints or the folder is not what it must be.
    """
    require_device(device)
    folder_path = _temporary_folder() if out is None else Path(out)
    refuse_busy(folder_path)  # before headers are read, which may take a while
    plan = plan_comparison(
        base,
        *tuned,
        modules=modules,
        layers=layers,
        base_dequantized=base_dequantized,
        allow_pickle=allow_pickle,
        unit_bytes=SPECTRAL_UNIT_BYTES if spectral else None,
    )
    axes = _axes(axis, ("output", "input", "both"))
    kept = _axes(columns, ("none", "output", "input", "both"))
    spectra = Spectral(Settings(), workers or os.cpu_count() or 1) if spectral else None
    axes_kept = tuple(a for a in kept if a in axes)
    options = Options(axes, axes_kept, device=device, spectral=spectra, checksums=checksums)
    with open_folder(folder_path, _record(plan, options), restart) as folder:
        if folder.is_done():
            folder.discard_parts()
            return Results(folder_path)
        todo = sum(
            plan.nbytes(name) for unit in folder.pending() for name in plan.units[unit].parameters
        ) * (1 + spectral + checksums)
        with (
            compilation_told(lambda: aside(COMPILING, progress)),
            byte_progress(todo, "reading", progress) as on_bytes,
        ):
            run_units(plan, options, folder, workers, on_bytes)
        from wdecomp.stats import result_fits  # with pandas: half a second that inspect has not

        return folder.finish(result_fits)


def plan_comparison(
    base: str | Path | None,
    *tuned: str | Path,
    modules: Iterable[str] | None = None,
    layers: Iterable[int] | None = None,
    base_dequantized: str | Path | None = None,
    allow_pickle: bool = False,
    unit_bytes: int | None = None,
) -> Plan:
    """What `compare` would do, from headers alone; arguments and errors as there.

    unit_bytes: of input to a unit of work; see `make_plan`.
    """
    if not tuned:
        raise PairingError("There is a base and nothing to compare with it: name a tuned one too.")
    named = joined(run for path in tuned for run in parse_tuned(str(path)))
    opened = [
        (run, step, _open_step(run, path, allow_pickle))
        for run in named
        for step, path in run.steps
    ]
    base_checkpoint = _base(base, [checkpoint for _, _, checkpoint in opened], allow_pickle)
    if base_dequantized is None:
        runs = [_run(base_checkpoint, *each) for each in opened]
    else:
        quantized = open_checkpoint(named_path(str(base_dequantized)), allow_pickle)
        runs = _runs_on_quantized(base_checkpoint, quantized, opened)
    plan = make_plan(base_checkpoint, runs, place_filter(modules, layers), unit_bytes)
    if not plan.units:
        kinds = sorted({p.place.module for run in runs for p in run.pairing.matrices.values()})
        raise PairingError(
            f"{base_checkpoint.path}: no matrix is of the modules and layers asked for. "
            f"Its modules are {', '.join(kinds)}."
        )
    return plan


def _open_step(run: Tuned, path: Path, allow_pickle: bool) -> Checkpoint:
    try:
        return open_checkpoint(path, allow_pickle)
    except CheckpointError as error:
        if len(run.steps) < 2 or path != run.steps[-1][1]:
            raise
        raise CheckpointError(
            f"{error} If {path.name} is only half written, remove it or name the steps that are "
            "meant."
        ) from None


def _base(base: str | Path | None, tuned: list[Checkpoint], allow_pickle: bool) -> Checkpoint:
    """The base that was given, or the one that an adapter's config names."""
    if base is not None:
        return open_checkpoint(named_path(str(base)), allow_pickle)
    for checkpoint in tuned:
        named = (checkpoint.adapter_config or {}).get("base_model_name_or_path")
        if isinstance(named, str) and named and is_there(Path(named)):
            return open_checkpoint(Path(named), allow_pickle)
    raise CheckpointError(
        f"{tuned[0].path}: no base is given, and the one that its config names is not on this "
        "disk. Name the base first: wdecomp compare BASE TUNED…"
    )


def _run(base: Checkpoint, named: Tuned, step: int | None, checkpoint: Checkpoint) -> Run:
    pairing = pair(base, checkpoint)
    reason = "a weights file beside the checkpoint-N folders, of no known step"
    pairing.left_out.extend(LeftOut(file, "tuned", reason) for file in named.unread)
    return Run(named.name, named.method or pairing.method, step, checkpoint, pairing)


def _runs_on_quantized(
    base: Checkpoint, quantized: Checkpoint, opened: list[tuple[Tuned, int | None, Checkpoint]]
) -> list[Run]:
    """What quantisation did, what training did after it, and both together."""
    displaced = pair(base, quantized)
    runs = [Run(QUANTIZATION, QUANTIZATION, None, quantized, displaced)]
    for named, step, checkpoint in opened:
        if not checkpoint.is_adapter:
            runs.append(_run(base, named, step, checkpoint))
            continue
        run = _run(quantized, named, step, checkpoint)
        together = through_other_base(displaced, run.pairing)
        name = f"{run.name}+{QUANTIZATION}"
        runs += [run, replace(run, name=name, pairing=together)]
    return runs


def _axes(choice: str, known: tuple[str, ...]) -> tuple[Axis, ...]:
    if choice not in known:
        raise ValueError(f"{choice!r} is no axis, expected one of {', '.join(known)}.")
    return tuple(axis for axis in AXES if choice in (axis, "both"))


def _temporary_folder() -> Path:
    """A folder that is removed when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="wdecomp-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _record(plan: Plan, options: Options) -> dict[str, Any]:
    """run.json: all that decides the tables, so that equal records have equal tables."""
    return {
        "wdecomp": version("wdecomp"),
        "schema": VERSION,
        "versions": {"python": platform.python_version()} | {n: version(n) for n in LIBRARIES},
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
