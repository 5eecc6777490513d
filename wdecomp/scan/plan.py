"""What is to be done, decided from headers alone: runs, pairs, units of work."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from wdecomp.checkpoint import Checkpoint
from wdecomp.names import Place
from wdecomp.pairing import Pair, Pairing

UNIT_BYTES = 512 << 20  # of input: what one commit to the results folder is worth
SMALLER = 8  # units that are left when they begin to be smaller, so that workers end together
SMALLEST = 4  # of them make one of the largest
UNIT_PAIRS = 4096  # so that the rows of a part stay far below what its footer may hold
DIGITS = re.compile(r"([0-9]{1,9})")


@dataclass(frozen=True)
class Run:
    """One run at one step, paired with the base."""

    name: str
    method: str
    step: int | None
    checkpoint: Checkpoint
    pairing: Pairing


@dataclass(frozen=True)
class Unit:
    """Some matrices of the base with everything that stands beside them."""

    number: int
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """All the work of one comparison, in order."""

    base: Checkpoint
    runs: tuple[Run, ...]
    units: tuple[Unit, ...]

    def beside(self, parameter: str) -> list[tuple[Run, Pair]]:
        """What stands beside one parameter of the base, run by run."""
        paired = (
            (run, run.pairing.matrices.get(parameter) or run.pairing.vectors.get(parameter))
            for run in self.runs
        )
        return [(run, pair) for run, pair in paired if pair]

    def nbytes(self, parameter: str) -> int:
        """Bytes to read for a parameter: the base's once, and every tuned one's."""
        pairs = [pair for _, pair in self.beside(parameter)]
        bases = {id(pair.base.tensor): pair.base for pair in pairs}.values()
        return sum(base.nbytes for base in bases) + sum(pair.nbytes for pair in pairs)

    @cached_property
    def nbytes_of_all(self) -> int:
        """Bytes to read for all units."""
        return sum(self.nbytes(name) for unit in self.units for name in unit.parameters)


def make_plan(
    base: Checkpoint,
    runs: list[Run],
    wanted: Callable[[Place], bool],
    unit_bytes: int | None = None,
) -> Plan:
    """Units of about so many bytes, the last ones smaller, in natural order of the parameter names.

    Args:
        base: the base checkpoint.
        runs: every run at every step.
        wanted: which places of the model are to be compared.
        unit_bytes: of input; `UNIT_BYTES` if None.
    """
    unit_bytes = UNIT_BYTES if unit_bytes is None else unit_bytes
    plan = Plan(base, tuple(runs), ())
    places = {
        name: pair.place
        for run in runs
        for name, pair in (run.pairing.matrices | run.pairing.vectors).items()
    }
    names = sorted((n for n, at in places.items() if wanted(at)), key=_natural)
    units = cut_into_units(
        [(name, plan.nbytes(name), len(plan.beside(name))) for name in names], unit_bytes
    )
    return replace(plan, units=tuple(Unit(i, tuple(names)) for i, names in enumerate(units)))


def cut_into_units(
    parameters: list[tuple[str, int, int]], unit_bytes: int = UNIT_BYTES
) -> list[list[str]]:
    """Parameters in units, in order.

    They do not depend on how many workers there are: whoever goes on with a run may have others.

    Args:
        parameters: the name of each, bytes of input, pairs.
        unit_bytes: of input to a unit, about; of the last ones down to a quarter of it.
    """
    left = sum(nbytes for _, nbytes, _ in parameters)
    units: list[list[str]] = []
    size = most = pairs = 0
    for name, nbytes, count in parameters:
        if size >= most or pairs >= UNIT_PAIRS:
            units.append([])
            size = pairs = 0
            most = min(unit_bytes, max(left // SMALLER, unit_bytes // SMALLEST))
        units[-1].append(name)
        size, pairs, left = size + nbytes, pairs + count, left - nbytes
    return units


def _natural(name: str) -> list[tuple[int, str]]:
    """A sort key by which layer 10 comes after layer 9."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in DIGITS.split(name)]
