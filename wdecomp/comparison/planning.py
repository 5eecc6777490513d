"""Which checkpoints are compared with which base, decided from headers alone."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from wdecomp.checkpoint import Checkpoint, open_checkpoint
from wdecomp.errors import CheckpointError, PairingError
from wdecomp.inputs import Tuned, base_path, joined, named_path, parse_tuned, place_filter
from wdecomp.pairing import LeftOut, pair, through_other_base
from wdecomp.scan import Plan, Run, make_plan

QUANTIZATION = "quantization"  # the run that shows what quantising the base did


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
        found = base_path(named) if isinstance(named, str) and named else None
        if found is not None:
            return open_checkpoint(found, allow_pickle)
    raise CheckpointError(
        f"{tuned[0].path}: no base is given, and the one that its config names is not on this "
        "disk, nor by that name on the hub. Name the base first: wdecomp compare BASE TUNED…"
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
