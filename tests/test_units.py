"""Units of work: every parameter in one, and none so large at the end that workers wait for it."""

from hypothesis import given
from hypothesis import strategies as st

from wdecomp.scan import plan
from wdecomp.scan.plan import cut_into_units

sizes = st.lists(st.integers(0, 60), max_size=60)


def _cut(nbytes: list[int], unit_bytes: int) -> list[list[int]]:
    """The sizes of the parameters in each unit."""
    named = [(str(i), size, 1) for i, size in enumerate(nbytes)]
    units = cut_into_units(named, unit_bytes)
    assert [name for unit in units for name in unit] == [name for name, _, _ in named]
    return [[nbytes[int(name)] for name in unit] for unit in units]


@given(sizes, st.integers(1, 400))
def test_every_parameter_is_in_one_unit_in_order(nbytes: list[int], unit_bytes: int) -> None:
    for unit in _cut(nbytes, unit_bytes):
        assert unit
        assert sum(unit[:-1]) < unit_bytes  # it ends with the parameter that fills it


def test_a_unit_has_not_too_many_pairs() -> None:
    parameters = [(str(i), 0, plan.UNIT_PAIRS // 2) for i in range(5)]
    assert [len(unit) for unit in cut_into_units(parameters, 100)] == [2, 2, 1]


@given(st.lists(st.integers(1, 10), min_size=100, max_size=300), st.integers(2, 4))
def test_workers_end_together(nbytes: list[int], workers: int) -> None:
    """Units are taken in order by whoever is free; their time is that of their bytes."""
    unit_bytes = 80
    busy = [0] * workers
    for unit in _cut(nbytes, unit_bytes):
        busy[busy.index(min(busy))] += sum(unit)
    assert max(busy) - min(busy) <= unit_bytes // 4 + max(nbytes)
