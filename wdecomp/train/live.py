"""ΔM and ΔD of a model while it is trained, without checkpoints, into the tables of `compare`.

What is trained is shown to `wdecomp.pairing` as the checkpoint that it would be, so that names,
layers and modules are those that `wdecomp compare` gives. With u the rows of s·BA, and of DoRA the
gain g = m/‖w0 + u‖ (else g = 1), an output's weights move by w − w0 = (g − 1) w0 + g u. So the sums
of all outputs follow from the factors, in float64, and W0 is only read:

    a = Σ w0²      p = Σ u·w0 = Σ_r (W0 Aᵀ ∘ sB)      q = Σ u² = Σ_r (sB AAᵀ ∘ sB)
    Σ (w − w0)·w0 = (g − 1) a + g p
    Σ (w − w0)²   = (g − 1)² a + 2 (g − 1) g p + g² q

Inputs likewise without g. The rest (inputs of DoRA, whose g stand inside the sums; other adapters;
full fine-tuning) goes through `wdecomp.scan` by blocks. ΔM and ΔD come from one place for all.
"""

import json
import platform
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import nn

from wdecomp.adapter import Adapted, Vera
from wdecomp.adapter.low_rank import AdaLora, LowRank
from wdecomp.checkpoint import BLOCK_BYTES, Checkpoint, is_there, open_checkpoint
from wdecomp.decomposition import AXES, Axis
from wdecomp.dtypes import Floats
from wdecomp.pairing import Pair, Pairing, pair
from wdecomp.scan import Options, Run
from wdecomp.scan.measure import Measured, measure
from wdecomp.scan.unit import add_rows
from wdecomp.stats import result_fits
from wdecomp.table import VERSION, Part, Results, files, open_folder
from wdecomp.table.folder import TABLES
from wdecomp.table.parts import SUFFIX, read_rows, write_part
from wdecomp.table.schema import FACTS, FITS, MODULES
from wdecomp.train.distributed import full, rank
from wdecomp.train.live_model import (
    DTYPES,
    MEMORY,
    Trained,
    base_in_memory,
    config_of,
    held,
    live_base,
    trained,
)
from wdecomp.train.live_sums import from_factors, squares

PRODUCTS = (LowRank, AdaLora, Vera)  # updates that are a product added to W0, as it is in memory
LIBRARIES = ("wdecomp", "numpy", "pandas", "pyarrow", "scipy", "torch")


class Recorder:
    """Records a training, step by step, into a results folder that `read_results` opens.

    The folder is complete after every step but for `fits`, which `finish` adds. Where it holds
    steps of the same run, it goes on from there; what was recorded from the step on that comes
    next is replaced. In a group of processes every one must record; the first one writes.

    Args:
        out: the results folder.
        base: the base model's folder, which gives parameters their names; or any name of it, and
            they are the model's own.
        method: how it is tuned; as the adapter says if None.
        run: the run's name in the tables.
        axes: which axes have rows. The inputs of DoRA take a pass over all weights.
        copy: full fine-tuning needs the base's numbers. They are read from the base's folder at
            every step, which takes no memory; or `keep` holds them in main memory in this dtype
            (torch.float32: 4 bytes a parameter; torch.bfloat16: 2, exact for a base stored so).
        restart: replace what the folder holds of other runs.

    Raises:
        ResultsError: the folder holds something else, or is being written to.
    """

    def __init__(
        self,
        out: str | Path,
        base: str | Path,
        method: str | None = None,
        run: str = "live",
        axes: tuple[Axis, ...] = ("output",),
        copy: torch.dtype | None = None,
        restart: bool = False,
    ) -> None:
        self.out, self.run, self.method, self.copy = Path(out), run, method, copy
        self._options = Options(tuple(axis for axis in AXES if axis in axes), ())
        self._base = open_checkpoint(Path(base)) if is_there(Path(base)) else None
        self._paired: tuple[Checkpoint, Pairing] | None = None
        self._squares: dict[str, tuple[Floats, Floats]] = {}
        self._open = ExitStack()
        self._steps: dict[int, tuple[pa.Table, pa.Table]] = {}
        if rank() == 0:
            self._plan = _plan(self.out, str(base), self._base, run, method, self._options)
            self._folder = self._open.enter_context(open_folder(self.out, self._plan, restart))
            self._steps = _recorded(self.out)

    def keep(self, model: nn.Module) -> None:
        """Holds the base's numbers for full fine-tuning; to be called before the first step."""
        dtype, found = self.copy or torch.float32, trained(model)
        copies = {n: full(t).detach().to(dtype, copy=True) for n, t in found.tensors.items()}
        weights = {name: held(name, tensor) for name, tensor in copies.items()}
        self._base = Checkpoint(MEMORY, dict(weights), (), config_of(model))

    @torch.no_grad()
    def record(self, model: nn.Module, step: int) -> list[dict[str, Any]]:
        """The rows of `modules` at a step, which are in the folder when this returns.

        Draws no random number and changes nothing of the model.

        Raises:
            TrainingError: the base's numbers are not to be had, or the adapters have no one W.
            PairingError: the base is of another model.
        """
        found, part = trained(model), Part()
        tuned, pairing = self._pairing(model, found)
        run = Run(self.run, self.method or pairing.method, step, tuned, pairing)
        for each in (pairing.matrices | pairing.vectors).values():
            measured = self._measured(each, found)
            add_rows(part, run, each, measured, self._options)
        if rank() == 0:
            self._commit(step, part, pairing)
        return part.modules

    def finish(self) -> Results:
        """The results, with `fits`; nothing can be recorded afterwards."""
        results = Results(self.out)
        if rank() == 0:
            if self._steps:
                fits = result_fits(results)
                self._publish(pa.Table.from_pandas(fits, FITS, preserve_index=False), True)
            self._folder.discard_parts()
            self._open.close()
        return Results(self.out)

    def _pairing(self, model: nn.Module, found: Trained) -> tuple[Checkpoint, Pairing]:
        """What is trained, paired with its base; of adapters once, into tensors of our own."""
        fresh = {n: held(n, t) for n, t in found.tensors.items() if t.dtype in DTYPES}
        if self._paired is not None and found.config is not None:
            tuned, _ = self._paired
            if tuned.tensors.keys() == fresh.keys():
                for name, tensor in fresh.items():
                    np.copyto(tuned.tensors[name].numbers, tensor.numbers)  # type: ignore[union-attr]
                return self._paired
        if found.config is not None:
            fresh = {n: replace(t, numbers=t.numbers.copy()) for n, t in fresh.items()}
        adapter = found.config is not None
        tuned = Checkpoint(MEMORY, dict(fresh), (), adapter_config=found.config, is_adapter=adapter)
        self._base = self._base or base_in_memory(model, found)
        pairing = pair(self._base, tuned)
        trained_only = [gone for gone in pairing.left_out if gone.side == "tuned"]
        self._paired = tuned, replace(pairing, left_out=trained_only)
        return self._paired

    def _measured(self, each: Pair, found: Trained) -> Measured:
        """The sums of a pair: from the factors where that is all it takes."""
        if isinstance(each.tuned, Adapted) and isinstance(each.tuned.update, PRODUCTS):
            magnitude, axes = each.tuned.magnitude, self._options.axes
            if magnitude is None or (magnitude.axis == "output" and "input" not in axes):
                w0 = live_base(each, each.tuned, found)
                if w0 is not None:
                    if each.parameter not in self._squares:
                        self._squares[each.parameter] = squares(w0)
                    return from_factors(w0, each.tuned, self._squares[each.parameter], axes)
        return measure([each], BLOCK_BYTES, lambda _: None)[0]

    def _commit(self, step: int, part: Part, pairing: Pairing) -> None:
        for later in [n for n in self._steps if n >= step]:
            del self._steps[later]
            _part(self.out, later).unlink(missing_ok=True)
        path = _part(self.out, step)
        files.commit(path, lambda draft: write_part(draft, part))
        self._steps[step] = _tables(path)
        left = [gone for gone in self._plan["left_out"] if gone[1] < step]
        more = [[self.run, step, gone.side, gone.tensor, gone.reason] for gone in pairing.left_out]
        self._plan["left_out"] = left + more
        self._plan["notes"] = [[self.run, note] for note in pairing.notes]
        self._plan["live"]["method"] = self.method or pairing.method
        self._publish(pa.Table.from_pylist([], FITS), False)

    def _publish(self, fits: pa.Table, finished: bool) -> None:
        """Every table of the steps so far; each file is replaced as a whole."""
        modules, facts = zip(*self._steps.values(), strict=True)
        tables = (pa.concat_tables(modules), pa.concat_tables(facts), fits)
        for name, table in zip(TABLES, tables, strict=True):
            files.commit_table(self.out / name, table)
        live = self._plan["live"] | {"finished": finished}
        which = {"run": self.run, "method": live["method"], "path": str(MEMORY)}
        runs = [which | {"step": step} for step in self._steps]
        self._plan |= {"runs": runs, "live": live}
        files.commit_json(self.out / "run.json", self._plan)
        digests = {name: files.sha256(self.out / name) for name in ("run.json", *TABLES)}
        files.commit_json(self.out / "DONE.json", {"sha256": digests})


def _plan(
    out: Path, base: str, opened: Checkpoint | None, run: str, method: str | None, options: Options
) -> dict[str, Any]:
    """run.json: what is there, if it is of the same run; else a new one, without steps."""
    model_type = None if opened is None else opened.model_type
    source: dict[str, Any] = {
        "path": base,
        "model_type": model_type,
        "adapter_config": None,
        "shards": [],
    }
    plan = {
        "wdecomp": version("wdecomp"),
        "schema": VERSION,
        "versions": {"python": platform.python_version()} | {n: version(n) for n in LIBRARIES},
        "options": {"axes": list(options.axes), "columns": []},
        "base": source,
        **{key: [] for key in ("runs", "units", "notes", "left_out")},
        "live": {"run": run, "method": method, "finished": False},
    }
    try:
        before = json.loads((out / "run.json").read_bytes())
        same = all(before[key] == plan[key] for key in ("schema", "options", "base"))
        return before if same and before["live"]["run"] == run else plan
    except (OSError, ValueError, LookupError, TypeError):
        return plan


def _recorded(out: Path) -> dict[int, tuple[pa.Table, pa.Table]]:
    """The rows of modules and facts of every step that is there, in tables or in a part."""
    found, tables = {}, [out / name for name in TABLES[:2]]
    if all(file.exists() for file in tables):
        with files.reading(out):
            modules, facts = (pq.read_table(file) for file in tables)
        for step in facts["step"].unique().to_pylist():
            of_step = pc.field("step") == step
            found[step] = modules.filter(of_step), facts.filter(of_step)
    parts = (out / "parts").glob(f"[0-9]*{SUFFIX}")
    return dict(sorted((found | {int(path.stem): _tables(path) for path in parts}).items()))


def _tables(part: Path) -> tuple[pa.Table, pa.Table]:
    modules, facts = read_rows(part)
    return pa.Table.from_pylist(modules, MODULES), pa.Table.from_pylist(facts, FACTS)


def _part(out: Path, step: int) -> Path:
    return out / "parts" / f"{step:09d}{SUFFIX}"
