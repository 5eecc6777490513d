"""One unit of work: its matrices measured and turned into rows."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from wdecomp.adapter import Adapted, OnOtherBase
from wdecomp.checkpoint import BLOCK_BYTES, Matrix, core_shape
from wdecomp.decomposition import Axis, ColumnDelta, Sums, by_chance, summarise
from wdecomp.pairing import Pair
from wdecomp.scan.diagnosis import (
    factor_facts,
    growth_facts,
    magnitude_facts,
    nonfinite_facts,
)
from wdecomp.scan.measure import Measured, measure
from wdecomp.scan.plan import Plan, Run, Unit
from wdecomp.scan.spectra import Spectral, spectra
from wdecomp.table import ColumnGroup, Part


@dataclass(frozen=True)
class Options:
    """What to keep of the columns.

    axes: which axes have rows in modules.
    columns: for which of them every column is kept.
    block_bytes: of the base, to be held at a time.
    device: where the sums are formed.
    spectral: how spectra are found; None for none.
    checksums: whether those of every byte that is read are kept.
    """

    axes: tuple[Axis, ...]
    columns: tuple[Axis, ...]
    block_bytes: int = BLOCK_BYTES
    device: str = "cpu"
    spectral: Spectral | None = None
    checksums: bool = False


def scan_unit(
    plan: Plan,
    unit: Unit,
    options: Options,
    on_bytes: Callable[[int], None],
    on_decomposed: Callable[[int], None] = lambda _: None,
) -> Part:
    """The part of one unit: rows of modules, facts, columns and spectra, run by run.

    A matrix that did not change at all has a row in facts and none in modules: it is no point of
    the relation between ΔM and ΔD.

    Args:
        plan: all the work.
        unit: the part of it.
        options: what to keep.
        on_bytes: told how many bytes more have been gone through.
        on_decomposed: told how many bytes more have been gone through once more, for spectra.
    """
    part = Part()
    for parameter in unit.parameters:
        beside = plan.beside(parameter)
        measured = measure(
            [pair for _, pair in beside], options.block_bytes, on_bytes, options.device
        )
        for (run, pair), found in zip(beside, measured, strict=True):
            add_rows(part, run, pair, found, options)
        if options.spectral is not None:
            changed = [
                (run, pair)
                for (run, pair), found in zip(beside, measured, strict=True)
                if not pair.base.is_vector and float(found.sums.output[2].sum()) != 0
            ]
            figures = spectra([pair for _, pair in changed], options.spectral, on_decomposed)
            for (run, pair), row in zip(changed, figures, strict=True):
                part.spectra.append(_where(run, pair) | row)
    return part


def add_rows(part: Part, run: Run, pair: Pair, found: Measured, options: Options) -> None:
    where, along = _where(run, pair), cache(found.columns)
    facts = _facts(pair, found.sums, along)
    part.facts.append(where | facts)
    if facts["unchanged"] or pair.base.is_vector:
        return
    dtypes = {"dtype_base": pair.base.dtype, "dtype_tuned": pair.dtype_tuned}
    rounding, (outputs, inputs) = found.rounding(pair), pair.shape
    for axis in options.axes:
        delta, length = along(axis), inputs if axis == "output" else outputs
        means = vars(summarise(delta, rounding.delta_direction))
        figures = means | vars(by_chance(delta, length, rounding))
        part.modules.append(where | {"axis": axis} | figures | dtypes)
        if axis in options.columns:
            part.columns.append(
                ColumnGroup(
                    run.name,
                    run.step,
                    pair.parameter,
                    axis,
                    delta.column,
                    delta.magnitude_base,
                    delta.delta_magnitude,
                    delta.delta_direction,
                )
            )


def _where(run: Run, pair: Pair) -> dict[str, Any]:
    return {
        "run": run.name,
        "method": run.method,
        "step": run.step,
        "stack": pair.place.stack,
        "layer": pair.place.layer,
        "module": pair.place.module,
        "parameter": pair.parameter,
    }


def _facts(pair: Pair, sums: Sums, along: Callable[[Axis], ColumnDelta]) -> dict[str, Any]:
    (a_out, _, c_out), (a_in, _, _) = sums.output, sums.input
    base, change = float(a_out.sum()), float(c_out.sum())
    tuned = pair.tuned.adapted if isinstance(pair.tuned, OnOtherBase) else pair.tuned
    update = tuned.update if isinstance(tuned, Adapted) else None
    return {
        "shape": _shape(pair),
        "dtype_base": pair.base.dtype,
        "dtype_tuned": pair.dtype_tuned,
        "unchanged": change == 0,
        "norm_base": math.sqrt(base),
        "norm_delta": math.sqrt(change),
        "relative_change": math.sqrt(change / base) if base else math.nan,
        "zero_outputs": int(np.count_nonzero(a_out == 0)),
        "zero_inputs": int(np.count_nonzero(a_in == 0)),
        "rank": update and update.rank,
        "scaling": update and update.scaling,
        **nonfinite_facts(sums),
        **_adapter_facts(pair, tuned, sums),
        **({} if pair.base.is_vector else growth_facts(along(_axis(tuned)))),
    }


def _adapter_facts(pair: Pair, tuned: Matrix | Adapted, sums: Sums) -> dict[str, Any]:
    if not isinstance(tuned, Adapted):
        return {}
    update = tuned.update
    factors = factor_facts(update, tuned.module)
    return {"formula": update.formula} | factors | magnitude_facts(pair, sums)


def _axis(tuned: Matrix | Adapted) -> Axis:
    """Which columns have a magnitude of their own; outputs where none have."""
    magnitude = tuned.magnitude if isinstance(tuned, Adapted) else None
    return "output" if magnitude is None else magnitude.axis


def _shape(pair: Pair) -> list[int]:
    """As it is stored; of a part of a tensor, as (output, input)."""
    whole = pair.base.plane is None and pair.base.picked is None
    return list(core_shape(pair.base.tensor.shape) if whole else pair.base.shape)
