"""PEFT's own merge as the oracle of what an adapter does to its base.

A folder holds base/, adapter/ and merged/: the base reloaded in float32, merged by the library and
saved in float32. Errors are measured in units of a column's length, because both sides round W'.
"""

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal, assert_array_less
from oracle import check_sound

from wdecomp.adapter import Adapted, ChangeReader
from wdecomp.checkpoint import Matrix, MatrixReader, open_checkpoint, read_matrix
from wdecomp.comparison import plan_comparison
from wdecomp.decomposition import AXES
from wdecomp.dtypes import Floats, widen
from wdecomp.pairing import Pair, Pairing, pair
from wdecomp.scan.unit import Options, scan_unit
from wdecomp.table import ColumnGroup

BLOCKS = (100, 300, 1 << 20)
# A few units in the last place of float32, in which the library merges and saves.
FLOAT32 = 4e-7
MOVED = 1e-3  # of ‖W0‖: every case is far from its initialisation


def dense(matrix: Matrix) -> Floats:
    """All of a matrix, (output, input), in float64."""
    return widen(read_matrix(matrix)).astype(np.float64)


def tuned_weight(each: Pair, block_bytes: int = 1 << 20) -> Floats:
    """The tuned weight, W0 + ΔW of an adapted one, gathered block by block."""
    if isinstance(each.tuned, Matrix):
        return dense(each.tuned)
    whole = np.full(each.base.shape, np.nan)
    with MatrixReader(each.base) as reader, ChangeReader(each.tuned, each.base) as change:
        for at in each.base.rectangles(each.base.shape, block_bytes):
            w0 = reader.read(at)
            whole[at.outputs, at.inputs] = widen(w0) + change.beside(w0, at).astype(np.float64)
    return whole


def everything(pairing: Pairing) -> dict[str, Pair]:
    """Matrices and vectors."""
    return {**pairing.matrices, **pairing.vectors}


def pairings(folder: Path, adapter: str = "adapter") -> tuple[Pairing, Pairing]:
    """The base with the adapter, and with the merged copy."""
    base, mine, merged = (open_checkpoint(folder / n) for n in ("base", adapter, "merged"))
    return pair(base, mine), pair(base, merged)


def check_merge(folder: Path, adapter: str = "adapter", error: float = FLOAT32) -> Pairing:
    """Asserts that adapter and merged copy are the same change of the same tensors, and sound.

    Args:
        folder: with base/, adapter/ and merged/.
        adapter: where the adapter is.
        error: of W', in units of its longest entry or column.
    """
    found, theirs = pairings(folder, adapter)
    adapted = {n: e for n, e in everything(found).items() if isinstance(e.tuned, Adapted)}
    for name, each in adapted.items():
        _check_weight(name, each, everything(theirs)[name], error)
    _check_nothing_skipped(found, theirs)
    _check_tables(folder, adapter, set(found.matrices), error)
    check_sound(folder / "base", f"mine={folder / adapter}", f"copy={folder / 'merged'}")
    return found


def merged_of(folder: Path, name: str) -> Floats:
    """What the library made of a tensor (or of a part, `name[q]`)."""
    return tuned_weight(everything(pairings(folder)[1])[name])


def base_of(folder: Path, name: str) -> Floats:
    """The base's own."""
    return dense(everything(pairings(folder)[1])[name].base)


def _check_weight(name: str, mine: Pair, theirs: Pair, error: float) -> None:
    want, w0 = tuned_weight(theirs), dense(mine.base)
    assert np.linalg.norm(want - w0) > MOVED * np.linalg.norm(w0), f"{name} hardly moved"
    for norms_bytes in (300, 1 << 20):  # of the blocks in which ‖V‖ is summed
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("wdecomp.adapter.updates.BLOCK_BYTES", norms_bytes)
            for block_bytes in BLOCKS:
                got = tuned_weight(mine, block_bytes)
                atol = error * np.abs(want).max()
                assert_allclose(got, want, rtol=error, atol=atol, err_msg=name)


def _check_nothing_skipped(found: Pairing, theirs: Pairing) -> None:
    """What the merge changed is paired, or left out with its reason; the rest is as it was."""
    mine = everything(found)
    left_out = [gone.tensor for gone in found.left_out]
    for name, each in everything(theirs).items():
        want = tuned_weight(each)
        if name in mine:
            if isinstance(mine[name].tuned, Matrix):
                assert_allclose(tuned_weight(mine[name]), want, rtol=1e-7, err_msg=name)
        elif not any(name in key for key in left_out):
            assert_array_equal(want, dense(each.base), err_msg=f"{name} was changed by the merge")
    for gone in theirs.left_out:
        assert any(gone.tensor.removesuffix(".weight") in key for key in left_out), gone


def _check_tables(folder: Path, adapter: str, names: set[str], error: float) -> None:
    """ΔM and ΔD of every column, along both axes, as `compare` writes them into its tables."""
    plan = plan_comparison(folder / "base", f"mine={folder / adapter}", f"copy={folder / 'merged'}")
    parts = [scan_unit(plan, unit, Options(AXES, AXES), lambda _: None) for unit in plan.units]
    groups = {(g.run, g.parameter, g.axis): g for part in parts for g in part.columns}
    moved = {run: {key[1:] for key in groups if key[0] == run} for run in ("mine", "copy")}
    assert moved["mine"] == moved["copy"]
    assert {name for name, _ in moved["mine"]} <= names
    for key in moved["mine"]:
        _check_columns(groups["mine", *key], groups["copy", *key], error)


def _check_columns(mine: ColumnGroup, copy: ColumnGroup, error: float) -> None:
    which = f"{mine.parameter}, {mine.axis}"
    assert_array_equal(mine.column, copy.column, err_msg=which)
    m0, m = copy.magnitude_base, copy.magnitude_base + copy.delta_magnitude
    gap = np.abs(mine.delta_magnitude - copy.delta_magnitude)
    assert_array_less(gap, error * (m0 + m) + 1e-30, err_msg=f"ΔM of {which}")
    # 1 − cos = 2·sin²(θ/2): a column that is off by `error` of its length turns by as much.
    angle = np.sqrt(2 * copy.delta_direction)
    gap = np.abs(mine.delta_direction - copy.delta_direction)
    worst = 2 * error * angle * np.maximum(m0 / m, 1) + 4 * error**2
    assert_array_less(gap, worst + 1e-30, err_msg=f"ΔD of {which}")
