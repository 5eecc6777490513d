"""Ten thousand models of a hub beside their base: bytes, requests, workers, hours and money.

    python benchmarks/hub_scale.py [--write docs/hub-scale.md]

prints the tables of docs/hub-scale.md; with --write it puts them and the picture into the page.
Figures are of a simulation (`hub_queue.py`) of a family described by shapes (`hub_family.py`).
"""

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from hub_family import BF16, MIX, Job, Kind, Llama, Reading, jobs, units
from hub_queue import Fleet, Outcome, simulate

SHAPES = Llama().shapes()
FULL = MIX[0]
PLANS = {"free": 5000, "PRO": 12_000, "Team": 20_000, "Enterprise": 50_000}  # in 5 minutes
ALONE = Reading(full=1, adapters=1)
READINGS = {
    "one comparison per model": ALONE,
    "4 full or 16 adapters in one": Reading(4, 16),
    "16 full or 64 adapters in one": Reading(),
    "64 full or 256 adapters in one": Reading(64, 256),
    "16 or 64, base on each worker's disk": Reading(base_here=True),
}


@dataclass(frozen=True)
class Prices:
    """In dollars; assumptions of the order of list prices in 2025, to be replaced by your own.

    core: of a core for an hour.
    gb: to leave where the weights are.
    get, put: of a million requests.
    """

    core: float = 0.045
    gb: float = 0.0
    get: float = 0.0
    put: float = 5.0

    def of(self, outcome: Outcome, fleet: Fleet) -> float:
        """Of one run."""
        held = outcome.held / 3600 * fleet.cores * self.core
        asked = (outcome.requests * self.get + outcome.units * self.put) / 1e6
        return held + outcome.nbytes / 1e9 * self.gb + asked


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """As Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def mix(kinds: tuple[Kind, ...], adapters: int) -> tuple[Kind, ...]:
    """The same kinds with so many adapters among the same number of models."""
    many, some = sum(k.count for k in kinds), sum(k.count for k in kinds if k.rank)
    rest = (many - adapters) / (many - some)
    return tuple(
        replace(k, count=round(k.count * (adapters / some if k.rank else rest))) for k in kinds
    )


def family() -> str:
    """What there is."""
    rows = []
    for kind in MIX:
        size = kind.size(SHAPES)
        core = 2 * kind.times * FULL.size(SHAPES) / Reading().rate
        rows.append([kind.name, f"{kind.count:,}", _bytes(size), _bytes(size * kind.count)])
        rows[-1] += [f"{core:.1f} s"]
    every = sum(kind.count * kind.size(SHAPES) for kind in MIX)
    rows.append(["all", f"{sum(k.count for k in MIX):,}", "", _bytes(every), ""])
    return table(["models", "count", "bytes of one", "of all", "one core, one model"], rows)


def sharing() -> str:
    """What reading the base together saves."""
    rows = []
    for name, reading in READINGS.items():
        full, adapters = (_jobs(kinds, reading) for kinds in _halves())
        both = [*full, *adapters]
        asked = sum(work.requests for job in both for work in (job.opening, *job.units))
        row = [name, *(_bytes(_nbytes(part)) for part in (full, adapters, both))]
        rows.append([*row, f"{asked / 1e6:.1f} M", f"{len(both):,}"])
    head = ["", "5,000 full", "5,000 adapters", "together", "requests of 8 MiB", "comparisons"]
    return table(head, rows)


def granularity() -> str:
    """What a unit of work is where so many models stand beside a base."""
    rows = []
    for models in (1, 4, 16, 64, 256, 10_000):
        of = [sum(BF16 * _count(n) for n in unit) for unit in units(FULL, models, SHAPES)]
        sizes = sorted(nbytes * (1 + models) for nbytes in of)
        lost = sizes[-1] / Fleet().rate()
        row = [f"{models:,}", f"{len(sizes)}", _bytes(sizes[len(sizes) // 2]), _bytes(sizes[-1])]
        rows.append([*row, f"{lost:.0f} s" if lost < 3600 else f"{lost / 3600:.1f} h"])
    head = ["full models in one comparison", "units", "middle one", "largest"]
    return table([*head, "largest at 0.3 GB/s"], rows)


def quotas() -> str:
    """Hours by what the hub allows, and how many workers that keeps busy."""
    rows = []
    asking, keeping = Reading(every_range=True), Reading()
    for name, quota in [*PLANS.items(), ("no limit", None)]:
        row = [name, f"{quota:,}" if quota else ""]
        for reading in (asking, replace(asking, range_bytes=64 << 20)):
            fleet = Fleet(quota=quota, range_bytes=reading.range_bytes)
            busy = quota and quota / fleet.window * reading.range_bytes / fleet.rate()
            row += [_hours(_run(reading, fleet)), f"{busy:.1f}" if busy else "64"]
        rows.append([*row, _hours(_run(keeping, Fleet(quota=quota)))])
    head = ["plan", "requests in 5 min", "8 MiB ranges", "busy workers", "64 MiB ranges"]
    return table([*head, "busy workers", "only a file's first range counts"], rows)


def variations() -> Iterator[tuple[str, Reading, Fleet, tuple[Kind, ...]]]:
    """The plan, then one thing changed at a time."""
    reading, fleet = Reading(), Fleet()
    yield "the plan: 64 workers, no quota", reading, fleet, MIX
    for workers in (16, 256):
        yield f"{workers} workers", reading, replace(fleet, workers=workers), MIX
    for gb in (0.1, 1.0):
        yield f"{gb} GB/s for each worker", reading, replace(fleet, bandwidth=gb * 1e9), MIX
    yield "one comparison per model", ALONE, fleet, MIX
    yield "base on each worker's disk", replace(reading, base_here=True), fleet, MIX
    yield "64 full or 256 adapters in one", Reading(64, 256), fleet, MIX
    for part in (2000, 9000):
        yield f"{part:,} adapters of 10,000", reading, fleet, mix(MIX, part)
    yield "half the rate of a core", replace(reading, rate=4e9), fleet, MIX
    yield "latency 200 ms", reading, replace(fleet, latency=0.2), MIX
    yield "2 requests at a time, 100 ms", reading, replace(fleet, flying=2, latency=0.1), MIX
    yield "2 % of requests fail", reading, replace(fleet, failing=0.02), MIX
    for kills in (0.0, 0.5, 4.0):
        yield f"{kills:g} kills per worker and hour", reading, replace(fleet, kills=kills), MIX
    yield "no slow workers", reading, replace(fleet, slow=0.0), MIX
    yield "speeds twice as uneven", reading, replace(fleet, slow=0.4), MIX
    yield "shares fixed at the start", reading, replace(fleet, static=True), MIX
    uneven = replace(fleet, static=True, slow=0.4)
    yield "shares fixed, speeds twice as uneven", reading, uneven, MIX
    for size in (256 << 20, 1 << 30):
        yield f"units of {size >> 20} MiB", replace(reading, unit_bytes=size), fleet, MIX


def sensitivity() -> str:
    """What each assumption is worth."""
    rows = []
    for name, reading, fleet, kinds in variations():
        found = _run(reading, fleet, kinds)
        row = [name, _hours(found), f"{found.held / 3600:.0f}", f"{found.nbytes / 1e12:.0f} TB"]
        rows.append([*row, f"{found.lost}", f"{Prices().of(found, fleet):.0f}"])
    return table(["", "hours", "worker-hours", "fetched", "units lost", "$"], rows)


def money() -> str:
    """The plan at other prices."""
    fleet = Fleet()
    found, alone = _run(Reading(), fleet), _run(ALONE, fleet)
    rows = [
        [name, f"{prices.of(found, fleet):,.0f}", f"{prices.of(alone, fleet):,.0f}"]
        for name, prices in {
            "hub to cloud: a core 0.045 an hour, bytes in are free": Prices(),
            "a core 0.015 an hour (spot)": Prices(core=0.015),
            "a core 0.09 an hour": Prices(core=0.09),
            "a bucket in the same region: GET 0.4 a million": Prices(get=0.4),
            "a bucket in another region: 0.02 a GB": Prices(get=0.4, gb=0.02),
            "a bucket, to the outside: 0.09 a GB": Prices(get=0.4, gb=0.09),
        }.items()
    ]
    return table(["prices, $", "the plan, $", "one comparison per model, $"], rows)


def draw(file: Path) -> None:
    """Hours by workers and quota; bytes by models in a comparison."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "wdecomp"
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    counts = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    cases = [("no limit", None, 8), ("Enterprise, 64 MiB", 50_000, 64)]
    for name, quota, mib in [*cases, ("Enterprise, 8 MiB", 50_000, 8), ("PRO, 8 MiB", 12_000, 8)]:
        reading = Reading(range_bytes=mib << 20, every_range=True)
        fleets = [Fleet(n, quota=quota, range_bytes=mib << 20) for n in counts]
        hours = [_run(reading, fleet).seconds / 3600 for fleet in fleets]
        left.loglog(counts, hours, "o-", base=2, markersize=3, label=name)
    left.set(xlabel="workers of 0.3 GB/s", ylabel="hours for 10,000 models")
    left.legend(title="hub's quota, ranges", fontsize="small")
    sizes = (1, 2, 4, 8, 16, 32, 64)
    for name, kinds in zip(("5,000 full", "5,000 adapters"), _halves(), strict=True):
        read = [_nbytes(_jobs(kinds, Reading(k, k))) / 1e12 for k in sizes]
        right.loglog(sizes, read, "o-", base=2, markersize=3, label=name)
    right.set(xlabel="models in one comparison", ylabel="TB fetched")
    right.set_yticks([1, 2, 5, 10, 20, 50, 100, 200], minor=False)
    for axis in (left.xaxis, left.yaxis, right.xaxis, right.yaxis):
        axis.set_major_formatter("{x:g}")
    right.legend(fontsize="small")
    file.parent.mkdir(exist_ok=True)
    figure.savefig(file, metadata={"Date": None})


TABLES = {
    each.__name__: each for each in (family, sharing, granularity, quotas, sensitivity, money)
}


def filled(page: str) -> str:
    """The page with its tables made anew."""
    for name, make in TABLES.items():
        mark = f"<!-- {name} -->"
        found = re.compile(rf"{mark}\n.*?<!-- / -->", re.DOTALL)
        page, times = found.subn(f"{mark}\n{make()}\n<!-- / -->".replace("\\", r"\\"), page)
        if times != 1:
            raise ValueError(f"{mark} is {times} times in the page")
    return page


def _halves() -> tuple[tuple[Kind, ...], tuple[Kind, ...]]:
    return tuple(k for k in MIX if not k.rank), tuple(k for k in MIX if k.rank)


@cache
def _jobs(kinds: tuple[Kind, ...], reading: Reading) -> list[Job]:
    return jobs(kinds, SHAPES, reading)


@cache
def _run(reading: Reading, fleet: Fleet, kinds: tuple[Kind, ...] = MIX) -> Outcome:
    return simulate(_jobs(kinds, reading), fleet)


def _nbytes(made: list[Job]) -> float:
    return sum(work.nbytes for job in made for work in job.units)


def _count(name: str) -> int:
    shape = SHAPES[name]
    return shape[0] * (shape[1] if len(shape) > 1 else 1)


def _hours(outcome: Outcome) -> str:
    hours = outcome.seconds / 3600
    return f"{hours:.1f}" if hours < 10 else f"{hours:.0f}"


def _bytes(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def main() -> None:
    """Prints the tables, or writes them into the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", type=Path, help="the page whose tables are to be made anew")
    page = parser.parse_args().write
    if page is None:
        for name, make in TABLES.items():
            print(f"\n{name}: {make.__doc__}\n{make()}")
        return
    page.write_text(filled(page.read_text()))
    draw(page.parent / page.stem / "plan.svg")


if __name__ == "__main__":
    main()
