"""What is to be done, decided from headers alone: runs, pairs, units of work."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from wdecomp.checkpoint import Checkpoint
from wdecomp.names import Place
from wdecomp.pairing import Pair, Pairing

UNIT_BYTES = 512 << 20  # of input: what one commit to the results folder is worth
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


def make_plan(
    base: Checkpoint,
    runs: list[Run],
    wanted: Callable[[Place], bool],
    unit_bytes: int | None = None,
) -> Plan:
    """Units of about so many bytes, in natural order of the parameter names.

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
    units: list[list[str]] = []
    size, pairs = unit_bytes, 0
    for name in sorted((n for n, at in places.items() if wanted(at)), key=_natural):
        if size >= unit_bytes or pairs >= UNIT_PAIRS:
            units.append([])
            size, pairs = 0, 0
        units[-1].append(name)
        size, pairs = size + plan.nbytes(name), pairs + len(plan.beside(name))
    return replace(plan, units=tuple(Unit(i, tuple(names)) for i, names in enumerate(units)))


def _natural(name: str) -> list[tuple[int, str]]:
    """A sort key by which layer 10 comes after layer 9."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in DIGITS.split(name)]
