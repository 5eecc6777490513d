"""From folders to tables: the same figures however the work is cut, and the right ones."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from builders import low_rank, moved, tiny_llama, write_adapter, write_full
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from pandas.testing import assert_frame_equal
from scipy import stats

import wdecomp
from wdecomp import scan
from wdecomp.comparison import asked
from wdecomp.table import Results

SUMS = {"rtol": 1e-6, "atol": 1e-10}  # float32 sums of other pieces, divided: 2e-8 is reached
FITS = {"rtol": 1e-5, "atol": 1e-7}  # of such figures; where layers are few, residuals cancel
CLOSE = {"check_exact": False}
Q = "model.layers.1.self_attn.q_proj.weight"


def _two_steps(folder: Path) -> tuple[Path, Path]:
    base = tiny_llama()
    for step in (20, 100):
        write_full(folder / f"ft/checkpoint-{step}", moved(base, 1e-4 * step, seed=step))
    return write_full(folder / "base", base), folder / "ft"


def test_figures_are_those_of_the_two_tensors(tmp_path: Path) -> None:
    base = tiny_llama()
    tuned = moved(base)
    results = wdecomp.compare(write_full(tmp_path / "a", base), write_full(tmp_path / "b", tuned))
    assert len(results.modules) == 2 * (1 + 3 * 3)
    for row in results.modules.itertuples():
        sides = [side[row.parameter] for side in (base, tuned)]
        if row.module == "embedding":  # its output is its dim, stored second
            sides = [side.T for side in sides]
        delta = wdecomp.column_delta(*sides, axis=row.axis)
        assert row.n_columns == delta.n_columns
        assert_allclose(row.delta_magnitude, np.abs(delta.delta_magnitude).mean(), **SUMS)
        assert_allclose(row.signed_delta_magnitude, delta.delta_magnitude.mean(), **SUMS)
        assert_allclose(row.delta_direction, delta.delta_direction.mean(), **SUMS)
        relative = np.abs(delta.delta_magnitude) / delta.magnitude_base
        assert_allclose(row.relative_delta_magnitude, relative.mean(), **SUMS)


@given(
    shards=st.integers(1, 4),
    block_bytes=st.sampled_from([1, 7, 100, 1000, 1 << 20]),
    workers=st.integers(1, 4),
    seed=st.integers(0, 3),
    window=st.sampled_from([1, 300, 1 << 20]),
    mapped_from=st.sampled_from([0, 1 << 40]),
)
@settings(max_examples=25, deadline=None)
def test_no_way_of_cutting_the_work_changes_a_table(
    tmp_path_factory: pytest.TempPathFactory,
    shards: int,
    block_bytes: int,
    workers: int,
    seed: int,
    window: int,
    mapped_from: int,
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    random = torch.Generator().manual_seed(9)
    base = tiny_llama(2) | {
        f"model.layers.{i}.self_attn.q_proj.weight": torch.randn(130, 37, generator=random)
        for i in range(2)
    }
    tuned = moved(base)
    plain = wdecomp.compare(write_full(folder / "a", base), write_full(folder / "b", tuned))
    order = np.random.default_rng(seed).permutation(list(base))
    cut = [
        write_full(folder / f"{name}-cut", {key: side[key] for key in order}, shards)
        for name, side in (("a", base), ("b", tuned))
    ]
    patch = pytest.MonkeyPatch()
    with patch.context() as patched:
        patched.setattr(
            asked, "Options", lambda *a, **k: scan.Options(*a, **k, block_bytes=block_bytes)
        )
        patched.setattr("wdecomp.scan.plan.UNIT_BYTES", 3000)
        patched.setattr("wdecomp.scan.plan.UNIT_PAIRS", 2)
        patched.setattr("wdecomp.checkpoint.mapping.WIDEST", window)
        patched.setattr("wdecomp.checkpoint.elements.LEAST", mapped_from)
        other = wdecomp.compare(cut[0], f"b={cut[1]}", workers=workers)
    assert_same_modules(plain.modules, other.modules)
    assert_frame_equal(plain.facts, other.facts, check_exact=False, **SUMS)
    assert_same_fits(plain.fits, other.fits)


def assert_same_modules(left: pd.DataFrame, right: pd.DataFrame) -> None:
    """To 1e-6; growth to 1e-6 of what its numerator, a sum of both signs, would be without them."""
    signed = ["signed_delta_magnitude", "growth_ratio"]
    assert_frame_equal(left.drop(columns=signed), right.drop(columns=signed), **CLOSE, **SUMS)
    cancelled = left["delta_magnitude"] / left["signed_delta_magnitude"].abs()
    for name in signed:
        off = (left[name] - right[name]).abs()
        assert (off <= SUMS["rtol"] * left[name].abs() * cancelled).all()


def assert_same_fits(left: pd.DataFrame, right: pd.DataFrame) -> None:
    """Theil and Sen's slope is that of one pair of points, so to a part of its interval."""
    pairs = left["estimator"] == "theil_sen"
    assert_frame_equal(left[~pairs], right[~pairs], check_exact=False, **FITS)
    width = left["high"] - left["low"]
    for name in ("value", "low", "high", "cluster_low", "cluster_high"):
        off = (left[name] - right[name])[pairs].abs()
        assert not (off > FITS["rtol"] * width[pairs]).any()
        assert (left[name].isna() == right[name].isna()).all()


def test_checkpoints_become_steps_in_order(tmp_path: Path) -> None:
    base, run = _two_steps(tmp_path)
    modules = wdecomp.compare(base, run).modules
    assert modules["step"].unique().tolist() == [20, 100]
    assert modules["step"].is_monotonic_increasing
    by_step = modules.groupby("step")["delta_direction"].mean()
    assert by_step[100] > by_step[20]
    alone = wdecomp.compare(base, run / "checkpoint-20").modules
    assert alone[["run", "step"]].drop_duplicates().values.tolist() == [["ft", 20]]


def test_method_is_the_adapters_or_what_the_user_says(tmp_path: Path) -> None:
    tensors = tiny_llama()
    base, ft = write_full(tmp_path / "base", tensors), write_full(tmp_path / "ft", moved(tensors))
    factors = low_rank(tensors)
    lora = write_adapter(tmp_path / "lora", factors)
    norms = {module: tensors[f"{module}.weight"].norm(dim=1) * 1.1 for module in factors}
    dora = write_adapter(tmp_path / "dora", factors, norms)
    modules = wdecomp.compare(base, ft, lora, dora, f"other:vera={ft}").modules
    methods = modules.drop_duplicates("run").set_index("run")["method"]
    assert dict(methods) == {"ft": "full", "lora": "lora", "dora": "dora", "other": "vera"}


def test_filters_choose_modules_layers_axes_and_columns(tmp_path: Path) -> None:
    base, run = _two_steps(tmp_path)
    results = wdecomp.compare(base, run, modules=["q", "v"], layers=[0, 2], axis="input")
    found = results.modules[["layer", "module", "axis"]].drop_duplicates().values.tolist()
    assert found == [[0, "q", "input"], [0, "v", "input"], [2, "q", "input"], [2, "v", "input"]]
    with pytest.raises(wdecomp.WdecompError, match="there is none"):
        results.columns("ft")
    both = wdecomp.compare(base, run, columns="both")
    for axis, n in (("output", 32), ("input", 24)):
        assert len(both.columns("ft", 20, [Q], axis)) == n
    assert both.columns("ft", 20)["parameter"].nunique() == 10
    none = wdecomp.compare(base, run, columns="none")
    assert not (none.path / "columns").exists()
    assert "per_column" not in set(none.fits["grouping"])


def test_an_unchanged_matrix_is_a_fact_and_no_point(tmp_path: Path) -> None:
    base = tiny_llama()
    tuned = moved(base) | {Q: base[Q].clone()}
    results = wdecomp.compare(write_full(tmp_path / "a", base), write_full(tmp_path / "b", tuned))
    assert Q not in set(results.modules["parameter"])
    assert results.facts.set_index("parameter")["unchanged"][Q]
    assert results.facts["unchanged"].sum() == 1


def test_resized_embeddings_are_compared_on_their_common_rows(tmp_path: Path) -> None:
    name = "model.embed_tokens.weight"
    base = tiny_llama()
    tuned = moved(base)
    longer = tuned | {name: torch.cat([tuned[name], torch.randn(6, 24)])}
    a, b = write_full(tmp_path / "a", base), write_full(tmp_path / "b", tuned)
    c = write_full(tmp_path / "c", longer)
    results = wdecomp.compare(a, b, c)
    same, cut = (results.modules[results.modules["run"] == run] for run in "bc")
    assert_frame_equal(
        same.drop(columns="run").reset_index(drop=True),
        cut.drop(columns="run").reset_index(drop=True),
    )
    assert "56 tuned; 50 are compared" in results.left_out["reason"].item()


def test_facts_hold_norms_changes_ranks_and_scalings(tmp_path: Path) -> None:
    tensors = tiny_llama(1)
    tensors[Q.replace("1", "0")][3] = 0
    base = write_full(tmp_path / "base", tensors)
    factors = low_rank(tensors)
    lora = write_adapter(tmp_path / "lora", factors, lora_alpha=7)
    row = wdecomp.compare(base, lora).facts.iloc[0]
    a, b = factors[row["parameter"].removesuffix(".weight")]
    change = (3.5 * b @ a).double().norm().item()
    assert (row["rank"], row["scaling"], row["zero_outputs"]) == (2, 3.5, 1)
    assert_allclose(row["norm_delta"], change, rtol=1e-6)
    weight = tensors[row["parameter"]].double().norm().item()
    assert_allclose(
        [row["norm_base"], row["relative_change"]], [weight, change / weight], rtol=1e-6
    )


def test_fits_are_scipys_on_the_rows_of_modules(tmp_path: Path) -> None:
    base, run = _two_steps(tmp_path)
    results = wdecomp.compare(base, run)
    modules, fits = results.modules, results.fits
    rows = modules[(modules["module"] == "down") & (modules["axis"] == "output")]
    mine = fits[
        (fits["module"] == "down")
        & (fits["axis"] == "output")
        & (fits["response"] == "delta_magnitude")
        & (fits["grouping"] == "pooled")
    ].set_index("estimator")["value"]
    x, y = rows["delta_direction"], rows["delta_magnitude"]
    line = stats.linregress(x, y)
    theirs = [stats.pearsonr(x, y)[0], stats.spearmanr(x, y)[0], line.slope, line.intercept]
    assert_allclose(mine[["pearson", "spearman", "slope", "intercept"]], theirs, rtol=1e-10)


def test_column_fits_take_every_column_of_the_last_step(tmp_path: Path) -> None:
    base, run = _two_steps(tmp_path)
    results = wdecomp.compare(base, run)
    names = [f"model.layers.{i}.self_attn.q_proj.weight" for i in range(3)]
    points = results.columns("ft", 100, names)
    fit = results.fits.query(
        "module == 'q' and grouping == 'per_column' and estimator == 'pearson'"
    )
    fit = fit[fit["response"] == "delta_magnitude"].iloc[0]
    want = stats.pearsonr(points["delta_direction"], points["delta_magnitude"].abs())[0]
    assert fit["n"] == 96
    assert_allclose(fit["value"], want, rtol=1e-8)


def test_results_read_back_are_the_results(tmp_path: Path) -> None:
    base, run = _two_steps(tmp_path)
    made = wdecomp.compare(base, run, out=tmp_path / "out")
    read = wdecomp.read_results(tmp_path / "out")
    for table in ("modules", "fits", "facts", "left_out"):
        assert_frame_equal(getattr(made, table), getattr(read, table))
    assert isinstance(read, Results)
    with pytest.raises(wdecomp.WdecompError, match="holds no results"):
        wdecomp.read_results(tmp_path)


def test_the_base_is_taken_from_the_adapters_config(tmp_path: Path) -> None:
    tensors = tiny_llama()
    base = write_full(tmp_path / "base", tensors)
    factors = low_rank(tensors)
    named = write_adapter(tmp_path / "lora", factors, base_model_name_or_path=str(base))
    got, want = wdecomp.compare(None, named), wdecomp.compare(base, named)
    assert_frame_equal(got.modules, want.modules)
    unnamed = write_adapter(tmp_path / "other", factors, base_model_name_or_path="gone")
    with pytest.raises(wdecomp.WdecompError, match="Name the base first"):
        wdecomp.compare(None, unnamed)


def test_a_conv1d_of_gpt2_is_turned_to_output_by_input(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    name = "transformer.h.0.attn.c_attn.weight"
    base = {name: torch.randn(16, 48, generator=random)}
    tuned = moved(base)
    config = {"model_type": "gpt2"}
    a = write_full(tmp_path / "a", base, config=config)
    modules = wdecomp.compare(a, write_full(tmp_path / "b", tuned, config=config)).modules
    row = modules[(modules["axis"] == "output") & (modules["module"] == "k")].iloc[0]
    delta = wdecomp.column_delta(base[name].T[16:32], tuned[name].T[16:32])
    assert (row["n_columns"], row["parameter"]) == (16, f"{name}[k]")
    assert_allclose(row["delta_direction"], delta.delta_direction.mean(), **SUMS)


def test_figures_missing_for_lack_of_columns_are_missing_not_zero(tmp_path: Path) -> None:
    base = {"layers.0.q_proj.weight": torch.zeros(3, 5)}
    tuned = {"layers.0.q_proj.weight": torch.ones(3, 5)}
    modules = wdecomp.compare(
        write_full(tmp_path / "a", base), write_full(tmp_path / "b", tuned)
    ).modules
    assert modules["n_zero"].tolist() == [3, 5]
    assert pd.isna(modules[["delta_magnitude", "delta_direction", "growth_ratio"]]).all(axis=None)


def test_weights_beside_the_checkpoints_of_a_run_are_left_out_with_the_reason(
    tmp_path: Path,
) -> None:
    base, run = _two_steps(tmp_path)
    write_full(run, tiny_llama())
    left_out = wdecomp.compare(base, run).left_out
    assert left_out["tensor"].unique().tolist() == ["model.safetensors"]
    assert left_out["reason"].str.contains("of no known step").all()


def test_an_axis_that_is_none_is_a_value_error(tmp_path: Path) -> None:
    base, run = _two_steps(tmp_path)
    with pytest.raises(ValueError, match="'rows' is no axis"):
        wdecomp.compare(base, run, axis="rows")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'none' is no axis"):
        wdecomp.compare(base, run, axis="none")  # type: ignore[arg-type]


def test_an_adapter_that_nearly_cancels_its_base_is_measured_directly(tmp_path: Path) -> None:
    a, b = torch.rand(1, 12) + 0.5, torch.rand(9, 1) + 0.5
    name = "layers.0.q_proj"
    base = write_full(tmp_path / "base", {f"{name}.weight": b @ a})
    lora = write_adapter(tmp_path / "lora", {name: (a, -b * (1 - 2**-12))}, lora_alpha=1)
    results = wdecomp.compare(base, lora, columns="both")
    weight = (b @ a).double()
    left = weight + ((-b * (1 - 2**-12)) @ a).double()
    for axis in ("output", "input"):
        want = wdecomp.column_delta(weight, left, axis=axis)
        got = results.columns("lora", axis=axis)
        assert_allclose(got["delta_direction"], want.delta_direction, rtol=1e-3, atol=1e-12)
        assert_allclose(got["delta_magnitude"], want.delta_magnitude, rtol=1e-6)


def test_many_checkpoints_at_a_low_limit_of_open_files(tmp_path: Path) -> None:
    base = tiny_llama()
    write_full(tmp_path / "base", base)
    for i in range(30):
        write_full(tmp_path / f"ft-{i}", moved(base))
    lowered = (
        "import resource, sys; from wdecomp.cli import main;"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1];"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (28, hard)); main(sys.argv[1:])"
    )
    tuned = [f"ft-{i}" for i in range(30)]
    command = [sys.executable, "-c", lowered, "compare", "base", *tuned, "-j", "2", "-q"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
