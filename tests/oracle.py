"""What wdecomp makes of an adapter, held beside another library's merge of it."""

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.testing import assert_allclose, assert_array_equal
from pandas.testing import assert_frame_equal

import wdecomp
from wdecomp.adapter import Adapted, ChangeReader
from wdecomp.audit import findings
from wdecomp.checkpoint import Matrix, MatrixReader, open_checkpoint, read_matrix
from wdecomp.decomposition import AXES
from wdecomp.dtypes import Floats, widen
from wdecomp.pairing import Pair, Pairing, pair
from wdecomp.scan.measure import measure

BLOCKS = (100, 300, 1 << 20)  # bytes: within a row, some rows, all
# Of the largest weight: float32 products summed in another order, and a library's own float32
# solvers; its float32 decompositions differ more, from one machine's linear algebra to another's.
MERGED, DECOMPOSED = 5e-6, 2e-5
COLUMN = 1e-5  # of a column's length, and of a turn
# The merged copy was rounded to float32 once more than the change that we form: by 6e-8 of a
# weight, where changes are about a hundredth of it, signed ones cancel, and some are 0.
TABLE = {"rtol": 1e-5, "atol": 1e-7}
RATIO = {"rtol": 1e-4, "atol": 1e-5}  # growth is a difference of sums over columns: digits cancel


def adapted_weight(each: Pair, block_bytes: int) -> Floats:
    """W0 + ΔW, (output, input), gathered block by block."""
    assert isinstance(each.tuned, Adapted)
    gathered = np.zeros(each.base.shape)
    with MatrixReader(each.base) as reader, ChangeReader(each.tuned, each.base) as change:
        for at in each.base.rectangles(each.base.shape, block_bytes):
            w0 = reader.read(at)
            gathered[at.outputs, at.inputs] = widen(w0) + change.beside(w0, at).astype(np.float64)
    return gathered


def check_columns(each: Pair, want: Floats) -> None:
    """Holds m − m0 and 1 − cos of every column, along both axes, beside those of the wanted weight.

    The wanted weight is a library's float32: each of its columns is off by that much.
    """
    [measured] = measure([each], BLOCKS[1], lambda _: None)
    base = widen(read_matrix(each.base)).astype(np.float64)
    for axis in AXES:
        mine, theirs = measured.columns(axis), wdecomp.column_delta(base, want, axis)
        assert_array_equal(mine.column, theirs.column)
        size = theirs.magnitude_base + np.abs(theirs.delta_magnitude)
        off = np.abs(mine.delta_magnitude - theirs.delta_magnitude) / size
        assert off.max(initial=0) < COLUMN
        assert_allclose(mine.delta_direction, theirs.delta_direction, rtol=1e-5, atol=COLUMN)


def check_sound(base: Path, *tuned: Path | str) -> None:
    """That the audit finds nothing wrong with what is sound, whatever else it may have to say."""
    _check_no_error(wdecomp.compare(base, *tuned, columns="none"))


def _check_no_error(*results: wdecomp.Results) -> None:
    found = [each for result in results for each in findings(result)]
    errors = [f"{each.run}: {each.message}" for each in found if each.severity == "error"]
    assert errors == []


def check_merged(
    folder: Path, tables: bool = True, ratios: bool = True, error: float = MERGED
) -> Pairing:
    """Holds folder/adapter on folder/base beside folder/merged, the library's float32 merge.

    Every weight and bias that the merge changed has to be in the pairing, and no other; every
    matrix has to be the same whatever the block size; and every row of the tables that the adapter
    gives the same as the merged checkpoint's. The audit may call neither of them wrong.
    """
    base = open_checkpoint(folder / "base")
    mine = pair(base, open_checkpoint(folder / "adapter"))
    theirs = pair(base, open_checkpoint(folder / "merged"))
    found, merged = mine.matrices | mine.vectors, theirs.matrices | theirs.vectors
    changed = {name for name, each in merged.items() if _differs(each)}
    assert changed
    assert changed <= found.keys(), f"not seen: {sorted(changed - found.keys())}"
    for name, each in found.items():
        right = merged[name].tuned
        assert isinstance(right, Matrix)
        want = read_matrix(right)
        if not isinstance(each.tuned, Adapted):
            continue
        for block_bytes in BLOCKS:
            got = adapted_weight(each, block_bytes)
            assert_allclose(got, want, rtol=0, atol=error * np.abs(want).max(), err_msg=name)
        check_columns(each, widen(want).astype(np.float64))
    if tables:
        _check_tables(folder, ratios)
    else:
        check_sound(folder / "base", folder / "adapter", folder / "merged")
    return mine


def _differs(each: Pair) -> bool:
    assert isinstance(each.tuned, Matrix)
    left, right = (widen(read_matrix(m)).copy() for m in (each.base, each.tuned))
    return left.shape != right.shape or not np.array_equal(left, right)


def _check_tables(folder: Path, ratios: bool) -> None:
    """ΔM and ΔD per output and per input column: the means of all matrices, and every column."""
    mine, theirs = (
        wdecomp.compare(folder / "base", folder / side, columns="both")
        for side in ("adapter", "merged")
    )
    _check_no_error(mine, theirs)
    left, right = _plain(mine.modules), _plain(theirs.modules)
    growth = left.pop("growth_ratio"), right.pop("growth_ratio")
    if ratios:
        assert_allclose(*growth, **RATIO)
    assert_frame_equal(left, right, check_exact=False, **TABLE)
    for axis in ("output", "input"):
        mine_all = mine.columns("adapter", axis=axis)
        theirs_all = theirs.columns("merged", axis=axis)
        assert_frame_equal(
            mine_all.reset_index(drop=True), theirs_all.reset_index(drop=True),
            check_exact=False, rtol=1e-5, atol=1e-5,  # 1e-6 of ‖ΔW‖, and some are 5
        )  # fmt: skip


def _plain(modules: pd.DataFrame) -> pd.DataFrame:
    """Without the columns that say how a run was stored."""
    floors = ["floor_delta_magnitude", "floor_delta_direction"]
    told_apart = ["run", "method", "dtype_tuned", *floors]
    return modules.drop(columns=told_apart).reset_index(drop=True)
