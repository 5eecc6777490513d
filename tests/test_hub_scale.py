"""The plan for a hub's family: its shapes, its queue beside closed forms, and the page about it."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wdecomp.comparison import plan_comparison
from wdecomp.scan import make_plan

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))

import hub_family  # noqa: E402
import hub_limits  # noqa: E402
import hub_scale  # noqa: E402
from hub_family import MIX, Job, Kind, Llama, Reading, Work, adapter, jobs  # noqa: E402
from hub_queue import Fleet, Quota, simulate  # noqa: E402

SMOOTH = Fleet(1, 1e9, 2, 0.0, failing=0.0, kills=0.0, slow=0.0)
NOTHING = Work(0, 0, 0)


def _queue(count: int, work: Work, each: int = 1) -> list[Job]:
    return [Job(1, NOTHING, (work,) * each)] * (count // each)


def test_the_shapes_are_those_of_llama_3_1_8b() -> None:
    shapes = Llama().shapes()
    assert len(shapes) == 291
    assert hub_family.weights(shapes) == 8_030_261_248
    assert hub_family.shards(shapes) == 4
    assert sum(kind.count for kind in MIX) == 10_000


@pytest.mark.parametrize("kind", [Kind("full", 1, 1.0), adapter(4, 1)], ids=["full", "adapter"])
@pytest.mark.parametrize("models", [1, 3])
def test_units_are_those_of_make_plan(kind: Kind, models: int, tmp_path: Path) -> None:
    model = Llama(64, 160, 11, 32, 500)
    base = hub_limits.write_sparse(tmp_path / "base", Kind("base", 1, 1.0), model)
    tuned = hub_limits.write_sparse(tmp_path / "tuned", kind, model)
    named = [f"m{i}={tuned}" for i in range(models)]
    planned = plan_comparison(base, *named, unit_bytes=300_000)
    expected = [list(unit.parameters) for unit in planned.units]
    found = hub_family.units(kind, models, model.shapes(), 300_000)
    assert len(found) > 2
    assert found == expected
    for unit in planned.units:
        work = hub_family._work(kind, models, list(unit.parameters), model.shapes(), Reading())
        assert work.nbytes == sum(planned.nbytes(name) for name in unit.parameters)
    assert make_plan(planned.base, list(planned.runs), lambda _: True, 300_000) == planned


def test_bytes_are_n_and_n_over_k() -> None:
    shapes, kinds = Llama().shapes(), (Kind("full", 96, 1.0),)
    size = kinds[0].size(shapes)
    for together in (1, 4, 32):
        made = jobs(kinds, shapes, Reading(full=together))
        assert sum(w.nbytes for job in made for w in job.units) == 96 * size + 96 // together * size
    here = jobs(kinds, shapes, Reading(full=4, base_here=True))
    assert sum(w.nbytes for job in here for w in job.units) == 96 * size


@pytest.mark.parametrize(("core", "seconds"), [(0.0, 100.0), (1.0, 100.0), (6.0, 300.0)])
def test_one_worker_takes_the_slower_of_bytes_and_sums(core: float, seconds: float) -> None:
    found = simulate(_queue(100, Work(1e9, 8, core), each=10), SMOOTH)
    assert found.seconds == pytest.approx(seconds)
    assert (found.units, found.lost, found.nbytes) == (100, 0, pytest.approx(1e11))


def test_equal_workers_share_equal_units() -> None:
    found = simulate(_queue(120, Work(1e9, 8, 0)), replace(SMOOTH, workers=8))
    assert found.seconds == pytest.approx(15)
    assert found.held == pytest.approx(120)


def test_a_worker_with_latency_is_as_fast_as_its_ranges_in_flight() -> None:
    fleet = replace(SMOOTH, latency=0.1, flying=4, range_bytes=1 << 20)
    assert fleet.rate() == pytest.approx(4 * (1 << 20) / 0.1)
    assert replace(fleet, flying=400).rate() == pytest.approx(1e9)
    work = Work(1000 << 20, 1000, 0)
    assert simulate(_queue(1, work), fleet).seconds == pytest.approx(0.1 + 1000 / 4 * 0.1)
    small = Work(1000, 1000, 0)  # a thousand ranges of a byte: only latency
    assert simulate(_queue(1, small), fleet).seconds == pytest.approx(1000 / 4 * 0.1)


def test_a_quota_is_so_many_requests_in_a_window() -> None:
    fleet = replace(SMOOTH, workers=50, quota=1000, window=300)
    found = simulate(_queue(500, Work(1e6, 10, 0, counted=10)), fleet)
    assert found.seconds == pytest.approx((5000 / 1000 - 1) * 300, abs=1)
    assert found.waited > 0
    not_counted = simulate(_queue(500, Work(1e6, 10, 0)), fleet)
    assert not_counted.seconds == pytest.approx(500 * 1e-3 / 50)
    quota = Quota(100, 10)
    assert [quota.take(0, 60), quota.take(1, 60), quota.take(2, 250)] == [0, 10, 30]
    assert quota.take(77, 100) == 77


def test_requests_that_fail_are_sent_again() -> None:
    fleet = replace(SMOOTH, failing=0.1, backoff=2, flying=10)
    found = simulate(_queue(1, Work(1e9, 100, 0)), fleet)
    assert found.nbytes == pytest.approx(1.1e9)
    assert found.requests == pytest.approx(110)
    assert found.seconds == pytest.approx(1.1 + 0.1 * 100 * 2 / 10)


def test_killed_workers_take_as_long_as_renewal_theory_says() -> None:
    kills, seconds, restart, count = 6.0, 300.0, 60.0, 6000
    fleet = replace(SMOOTH, kills=kills, restart=restart)
    found = simulate(_queue(count, Work(seconds * 1e9, 1, 0), each=100), fleet)
    rate = kills / 3600
    expected = (1 / rate + restart) * math.expm1(rate * seconds)
    # The standard error of the mean of 6,000 is 1 %.
    assert found.seconds / count == pytest.approx(expected, rel=0.035)
    assert found.lost / count == pytest.approx(math.expm1(rate * seconds), rel=0.05)
    assert found.units == count


def test_every_unit_is_done_once_however_many_workers_are_killed() -> None:
    made = [Job(1, Work(0, 4, 0.1), (Work(2e9, 8, 0),) * n) for n in range(1, 40)]
    for static in (False, True):
        fleet = replace(SMOOTH, workers=7, kills=400.0, restart=5, slow=0.5, static=static)
        found = simulate(made, fleet)
        assert found.units == sum(range(1, 40))
        assert found.lost > 50
        assert found.nbytes > 2e9 * found.units


def test_fixed_shares_wait_for_the_slowest() -> None:
    fleet = replace(SMOOTH, workers=16, slow=0.4)
    work = _queue(1600, Work(1e9, 8, 0))
    speed = np.exp(np.random.default_rng(0).normal(0, 1, 16) * 0.4)
    found = simulate(work, replace(fleet, static=True))
    assert found.seconds == pytest.approx(100 / speed.min())
    assert simulate(work, fleet).seconds == pytest.approx(1600 / speed.sum(), rel=0.03)


def test_an_outcome_is_a_function_of_the_seed() -> None:
    made, fleet = jobs(MIX[3:], Llama().shapes(), Reading()), Fleet(8, kills=2.0)
    assert simulate(made, fleet) == simulate(made, fleet)
    assert simulate(made, fleet) != simulate(made, replace(fleet, seed=1))


def test_the_page_has_what_the_simulation_says() -> None:
    page = (ROOT / "docs" / "hub-scale.md").read_text()
    assert hub_scale.filled(page) == page
    with pytest.raises(ValueError, match="0 times"):
        hub_scale.filled(page.replace("<!-- money -->", ""))
