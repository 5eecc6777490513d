"""What a checkpoint is understood to be, and what a comparison would read, from headers alone."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from wdecomp.adapter import Adapted, ModuleUpdate, OnOtherBase, read_adapter
from wdecomp.checkpoint import Checkpoint, Matrix, open_checkpoint, runs_under
from wdecomp.comparison import plan_comparison
from wdecomp.inputs import named_path
from wdecomp.names import place
from wdecomp.pairing import Pair
from wdecomp.scan import Run


def contents(path: str, allow_pickle: bool = False) -> dict[str, Any]:
    """Every checkpoint at a path: files, bytes, its tensors, and what an adapter does to a base.

    Raises:
        CheckpointError: there is none, or it is damaged.
        AdapterError: it is an adapter that cannot be read.
    """
    opened = (
        (step, open_checkpoint(child, allow_pickle))
        for steps in runs_under(named_path(path)).values()
        for step, child in steps
    )
    return {"checkpoints": [_checkpoint(step, checkpoint) for step, checkpoint in opened]}


def comparison_plan(base: str | None, *tuned: str, **selection: Any) -> dict[str, Any]:
    """What `compare` would do; arguments and errors as there."""
    plan = plan_comparison(base, *tuned, **selection)
    parameters = [name for unit in plan.units for name in unit.parameters]
    return {
        "base": str(plan.base.path),
        "bytes": plan.nbytes_of_all,
        "units": len(plan.units),
        "runs": [_run(run, set(parameters)) for run in plan.runs],
    }


def _checkpoint(step: int | None, checkpoint: Checkpoint) -> dict[str, Any]:
    return {
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
        "adapter": _adapter(checkpoint) if checkpoint.is_adapter else None,
        "left_out": [["tuned", *gone] for gone in checkpoint.left_out],
    }


def _adapter(checkpoint: Checkpoint) -> dict[str, Any]:
    """What an adapter says by itself, without its base."""
    adapter = read_adapter(checkpoint)
    return {
        "dialect": adapter.dialect,
        "method": adapter.method,
        "base": adapter.base,
        "notes": list(adapter.notes),
        "updates": [
            {"parameter": name, "from": each.tensors[0].name if each.tensors else ""} | _how(each)
            for name, each in adapter.updates.items()
        ],
        "replaced": list(adapter.replaced),
        "left_out": [["tuned", *gone] for gone in adapter.left_out],
    }


def _run(run: Run, wanted: set[str]) -> dict[str, Any]:
    pairing = run.pairing
    pairs = [pair for name, pair in pairing.matrices.items() if name in wanted]
    vectors = [pair for name, pair in pairing.vectors.items() if name in wanted]
    return {
        "run": run.name,
        "dialect": pairing.dialect or "full checkpoint",
        "method": run.method,
        "step": run.step,
        "path": str(run.checkpoint.path),
        "notes": list(pairing.notes),
        "matrices": _counted(
            (p.place.stack, p.place.module, _stored(p.base), p.why) for p in pairs
        ),
        "updates": [_pair(pair) for pair in (*pairs, *vectors) if run.checkpoint.is_adapter],
        "vectors": len(vectors),
        "left_out": [[g.side, g.tensor, g.reason] for g in pairing.left_out],
    }


def _pair(pair: Pair) -> dict[str, Any]:
    tuned = pair.tuned.adapted if isinstance(pair.tuned, OnOtherBase) else pair.tuned
    found = {"parameter": pair.parameter, "from": pair.tuned_name}
    if isinstance(tuned, Matrix):
        return found | {"formula": "replaced", "rank": None, "scaling": None}
    return found | _how(tuned)


def _how(each: Adapted | ModuleUpdate) -> dict[str, Any]:
    """The formula, rank and scaling of an update."""
    formula = each.update.formula
    if each.magnitude is not None:
        formula = f"m·V/‖V‖ per {each.magnitude.axis}, V = {formula}"
    return {"formula": formula, "rank": each.update.rank, "scaling": each.update.scaling}


def _stored(matrix: Matrix) -> str:
    return "(input, output)" if matrix.input_first else "(output, input)"


def _counted(keys: Iterable[tuple[str, ...]]) -> list[list[Any]]:
    return [[*key, count] for key, count in sorted(Counter(keys).items())]
