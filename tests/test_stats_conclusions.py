"""The sentences say what the points were made to show, and nothing that they do not."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from builders import Tensors, moved, tiny_llama, write_full
from numpy.testing import assert_allclose

import wdecomp
from wdecomp import report
from wdecomp.stats import Conclusion, conclusions, module_fits, null_points

KEYS = {"run": "a", "method": "full", "stack": "encoder", "module": "q", "axis": "output"}
DECAY = 0.0025


@dataclass(frozen=True)
class Points:
    """ΔD and ΔM of every step (row) and layer (column), and the layers' norms."""

    turned: np.ndarray
    grown: np.ndarray
    norms: np.ndarray


def a_run(layers: int = 12, steps: int = 4, seed: int = 0, shared: float = 0.0) -> Points:
    """Adam's steps of equal length, ΔD ∝ time/m0²; ΔM of layers is unrelated, or shared with ΔD."""
    rng = np.random.default_rng(seed)
    norms = np.linspace(1.2, 1.9, layers) * rng.lognormal(0, 0.02, layers)
    time = np.arange(1, steps + 1)[:, None] / steps
    turned = 1e-3 * time / norms**2 * rng.lognormal(0, 0.01, (steps, layers))
    grown = 1e-3 * rng.lognormal(0, 0.2, layers) * np.ones((steps, 1))
    return Points(turned, grown * (1 - shared) + shared * 3 * turned, norms)


def the_table(points: Points, signed: float = 0.1, **columns: object) -> pd.DataFrame:
    """Rows of `modules`; of ΔM `signed` is the mean of m − m0."""
    steps, layers = points.turned.shape
    grown = points.grown.ravel()
    rows = pd.DataFrame(
        KEYS
        | {
            "step": pd.array(np.repeat(10 * np.arange(1, steps + 1), layers), "Int64"),
            "layer": pd.array(np.tile(np.arange(layers), steps), "Int64"),
            "delta_magnitude": grown,
            "delta_direction": points.turned.ravel(),
            "signed_delta_magnitude": signed * grown,
            "relative_delta_magnitude": (points.grown / points.norms).ravel(),
            "growth_ratio": 0.5,
            "null_delta_magnitude": grown / 4,
            "null_delta_direction": points.turned.ravel(),
            "floor_delta_magnitude": 1e-16,
            "floor_delta_direction": 1e-16,
            "dtype_tuned": "F32",
        }
    )
    return rows.assign(**columns)


def said(*tables: pd.DataFrame) -> list[Conclusion]:
    modules = pd.concat(tables)
    return conclusions(modules, module_fits(modules))


def the_one(table: pd.DataFrame) -> Conclusion:
    (found,) = said(table)
    assert found.text.isascii()
    return found


def decayed(steps: int = 4) -> pd.DataFrame:
    """ΔM = λ·m0, ΔD ∝ 1/m0², both growing in time: full fine-tuning, evenly spaced checkpoints."""
    points = a_run(steps=steps)
    time = np.arange(1, steps + 1)[:, None] / steps
    shrunk = DECAY * time * points.norms * np.random.default_rng(1).lognormal(0, 0.01, (steps, 12))
    return the_table(Points(points.turned, shrunk, points.norms), signed=-1.0)


def test_decay_and_simpsons_paradox_are_named_unprompted() -> None:
    found = the_one(decayed())
    assert found.findings == ("decay", "reversal")
    assert "shrink in proportion to their size (0.24" in found.text
    assert "as weight decay makes them" in found.text
    fits = module_fits(decayed()).query("estimator == 'pearson'").set_index("grouping")
    fits = fits[fits["response"] == "delta_magnitude"]
    pooled, within = fits.loc["pooled"], fits.loc["within_step"]
    assert pooled["value"] > 0.2 > -0.9 > within["value"]
    for row in (pooled, within):
        figures = f"{row['value']:+.2f} [{row['cluster_low']:+.2f},{row['cluster_high']:+.2f}]"
        assert figures in found.text
    assert "Simpson's paradox, because both grow in time" in found.text
    assert found.text.endswith("12 layers settle both.")


def test_one_step_of_decay_is_no_paradox() -> None:
    table = decayed()
    found = the_one(table[table["step"] == 40])
    assert found.findings == ("decay", "falls")
    assert "dM falls with dD: r = -0.9" in found.text


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param({"signed_delta_magnitude": 0.0}, id="as many columns grow"),
        pytest.param({"relative_delta_magnitude": np.tile([1e-3, 2e-3], 24)}, id="unlike shares"),
    ],
)
def test_what_does_not_shrink_alike_is_not_laid_to_decay(spoil: dict[str, object]) -> None:
    assert "decay" not in the_one(decayed().assign(**spoil)).findings


def test_a_sign_is_settled_where_it_holds_within_steps_too() -> None:
    found = the_one(the_table(a_run(shared=0.9)))
    assert found.findings == ("rises",)
    assert "a sign that 12 layers settle" in found.text


def test_growth_in_time_alone_is_told_apart() -> None:
    points = a_run()
    time = np.arange(1, 5)[:, None]
    unrelated = np.random.default_rng(3).lognormal(0, 0.1, (1, 12))
    found = the_one(the_table(Points(points.turned, 1e-3 * time * unrelated, points.norms)))
    assert found.findings == ("time",)
    assert "growth in time alone may be the cause" in found.text


def test_six_unlike_layers_leave_a_sign_open() -> None:
    found = the_one(the_table(a_run(layers=6, steps=1, seed=4)))
    assert found.findings == ("open",)
    assert found.text.endswith("6 layers leave its sign open.")


def test_two_points_admit_no_correlation() -> None:
    found = the_one(the_table(a_run(layers=2, steps=1)))
    assert found.findings == ("few",)
    assert "2 layers, 2 points" in found.text


def test_a_change_as_of_random_updates_is_called_that() -> None:
    points = a_run(shared=0.9)
    for ratio, finding in ((1.02, "null"), (0.05, "held"), (1.5, None)):
        null = {"null_delta_magnitude": points.grown.ravel() / ratio}
        found = the_one(the_table(points, **null))
        assert found.findings == ("rises", *([finding] if finding else []))
        if finding:
            assert f"dM is {ratio:.2f} times that of random updates" in found.text
    assert "whose r would be +1.00" in the_one(
        the_table(points, null_delta_magnitude=points.turned.ravel() / 3 + points.grown.ravel())
    ).text.replace("+0.99", "+1.00")


def test_rounding_is_all_that_is_said_of_rounding() -> None:
    points = a_run()
    floored = the_table(points, floor_delta_direction=0.9 * points.turned.ravel(), growth_ratio=1)
    found = the_one(floored.assign(dtype_tuned="BF16"))
    assert found.findings == ("floor",)
    assert "what rounding to BF16 gives by itself" in found.text
    of_magnitudes = the_table(points, floor_delta_magnitude=0.9 * points.grown.ravel())
    assert the_one(of_magnitudes).text.startswith("dM (0.0011) is what rounding to F32 gives")
    unknown = the_table(points, floor_delta_direction=np.nan)
    assert "floor" not in the_one(unknown).findings
    unturned = {"delta_direction": 0.0, "growth_ratio": np.nan}
    for floor in (0.0, 1e-16):
        scaled = the_table(points, floor_delta_direction=floor, **unturned)
        assert the_one(scaled).findings == ("floor" if floor else "scaled",)


def test_runs_keep_their_order_and_queries_come_first() -> None:
    table = the_table(a_run())
    others = (table.assign(module="v"), table, table.assign(run="b"), table.assign(axis="input"))
    single = table.assign(module="embedding", layer=pd.array([pd.NA] * 48, "Int64"))
    found = said(single, *others)
    assert [(each.run, each.module) for each in found] == [("a", "q"), ("a", "v"), ("b", "q")]
    assert said(single) == []


def test_the_null_line_is_in_order() -> None:
    table = the_table(a_run())
    table.loc[5, "null_delta_direction"] = np.nan
    points = null_points(table)
    assert len(points) == 47
    assert points["delta_direction"].is_monotonic_increasing
    known = table.drop(index=5).sort_values("null_delta_direction")
    assert_allclose(points["delta_magnitude"], known["null_delta_magnitude"])


def shrunk(tensors: Tensors, share: float, seed: int) -> Tensors:
    return {name: (1 - share) * t for name, t in moved(tensors, 2e-4, seed=seed).items()}


def test_the_printed_table_ends_with_what_can_be_said_of_each_run(tmp_path: Path) -> None:
    base = {k: v.to(torch.float32) for k, v in tiny_llama(4).items()}
    for step, share in ((10, 0.01), (20, 0.02)):
        write_full(tmp_path / f"decayed/checkpoint-{step}", shrunk(base, share, step))
        write_full(tmp_path / f"noisy/checkpoint-{step}", moved(base, 1e-4 * step, seed=step))
    results = wdecomp.compare(
        write_full(tmp_path / "base", base), tmp_path / "decayed", tmp_path / "noisy"
    )
    text = report.as_text(report.summary(results), "output")
    first, second = text.split("\n\n")[1:]
    assert first.startswith("decayed, q")
    assert "as weight decay makes them" in " ".join(first.split())
    assert second.startswith("noisy, q")
    assert "random updates of the same size" in " ".join(second.split())
    assert text.isascii()
    assert max(len(line) for line in text.splitlines()) <= 100
    assert len(first.splitlines()) <= 7
    found = report.as_json(results, "output")
    assert {"findings", "conclusion"}.isdisjoint(found["summary"][0])
    assert found["conclusions"][0]["module"] == "q"
    assert found["conclusions"][0]["findings"][0] == "decay"
    assert all(each["text"] for each in found["conclusions"])
