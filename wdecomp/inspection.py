"""What a comparison would read, pair and leave out, from headers alone."""

from collections import Counter
from typing import Any

from wdecomp.checkpoint import open_checkpoint, runs_under
from wdecomp.comparison import plan_comparison
from wdecomp.inputs import named_path
from wdecomp.names import place
from wdecomp.scan import Run

MOST_SHOWN = 20


def contents(path: str, allow_pickle: bool = False) -> dict[str, Any]:
    """Every checkpoint at a path: files, bytes, and its tensors by stack, module and dtype.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    return {
        "checkpoints": [
            {
                "path": str(checkpoint.path),
                "step": step,
                "kind": "adapter" if checkpoint.is_adapter else "full",
                "model_type": checkpoint.model_type,
                "files": len(checkpoint.shards),
                "bytes": sum(shard.size for shard in checkpoint.shards),
                "tensors": _counted(
                    (place(t.name).stack, place(t.name).module, f"{len(t.shape)}-D", t.dtype)
                    for t in checkpoint.tensors.values()
                ),
            }
            for steps in runs_under(named_path(path)).values()
            for step, child in steps
            for checkpoint in [open_checkpoint(child, allow_pickle)]
        ]
    }


def comparison_plan(base: str | None, *tuned: str, **selection: Any) -> dict[str, Any]:
    """What `compare` would do; arguments and errors as there."""
    plan = plan_comparison(base, *tuned, **selection)
    parameters = [name for unit in plan.units for name in unit.parameters]
    return {
        "base": str(plan.base.path),
        "bytes": sum(plan.nbytes(name) for name in parameters),
        "units": len(plan.units),
        "runs": [_run(run, set(parameters)) for run in plan.runs],
    }


def as_text(found: dict[str, Any]) -> str:
    """Either of the two for a terminal."""
    lines = _plan_lines(found) if "runs" in found else _contents_lines(found)
    return "\n".join(lines)


def _run(run: Run, wanted: set[str]) -> dict[str, Any]:
    pairs = [pair for name, pair in run.pairing.matrices.items() if name in wanted]
    return {
        "run": run.name,
        "method": run.method,
        "step": run.step,
        "path": str(run.checkpoint.path),
        "matrices": _counted((p.place.stack, p.place.module, _stored(p.base)) for p in pairs),
        "vectors": sum(name in wanted for name in run.pairing.vectors),
        "left_out": [[g.side, g.tensor, g.reason] for g in run.pairing.left_out],
    }


def _stored(matrix: Any) -> str:
    return "(input, output)" if matrix.input_first else "(output, input)"


def _counted(keys: Any) -> list[list[Any]]:
    return [[*key, count] for key, count in sorted(Counter(keys).items())]


def _contents_lines(found: dict[str, Any]) -> list[str]:
    lines = []
    for each in found["checkpoints"]:
        step = "" if each["step"] is None else f", step {each['step']}"
        lines.append(
            f"{each['path']}: {each['kind']}{step}, model type {each['model_type'] or 'not known'},"
            f" {_size(each['bytes'])}, files: {each['files']}"
        )
        lines += [f"  {count:>6} × {stack}.{module} {rank} {dtype}"
                  for stack, module, rank, dtype, count in each["tensors"]]  # fmt: skip
    return lines


def _plan_lines(found: dict[str, Any]) -> list[str]:
    lines = [f"base {found['base']}", f"to read: {_size(found['bytes'])}, {found['units']} units"]
    for run in found["runs"]:
        step = "" if run["step"] is None else f" step {run['step']}"
        lines.append(f"{run['run']}{step} ({run['method']}) {run['path']}")
        lines += [f"  {count:>6} × {stack}.{module}, stored {stored}"
                  for stack, module, stored, count in run["matrices"]]  # fmt: skip
        lines.append(f"  {run['vectors']:>6} × 1-D, relative change only")
        gone = run["left_out"]
        lines += [f"  left out, {side}: {tensor}: {reason}" for side, tensor, reason in
                  gone[:MOST_SHOWN]]  # fmt: skip
        if len(gone) > MOST_SHOWN:
            lines.append(f"  and {len(gone) - MOST_SHOWN} more: --json lists them all")
    return lines


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"
