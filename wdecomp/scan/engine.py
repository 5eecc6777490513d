"""Runs units of work on local threads; one more waits for the disk to have their parts.

The kernel, the reads and the products of an adapter's factors all release the interpreter, so
threads use every core. Whoever waits trusts only what is in the results folder. A worker writes
what it has found before it takes another unit, so that a process that is killed loses one for each
of its workers. `scan/cluster.py` runs the same units on other machines.
"""

import os
import resource
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from threading import Event

from threadpoolctl import threadpool_limits

from wdecomp.checkpoint import past_the_cache, surviving, witnessed
from wdecomp.scan.ahead import AHEAD, pieces, read_ahead
from wdecomp.scan.inputs import Inputs
from wdecomp.scan.plan import Plan, Unit
from wdecomp.scan.unit import Options, scan_unit
from wdecomp.table import ResultsFolder

MAPPED_BYTES = 192 << 20  # by all workers together
CACHED = 1 / 4  # of the memory: what a scan may bring into the page cache
FILES_EACH, OTHER_FILES = 3, 128  # open: of each checkpoint for each worker, and of all else


class _StoppedError(Exception):
    """Another unit failed or the user interrupted: not worth a word of its own."""


@dataclass(frozen=True)
class Work:
    """What completing a unit takes.

    plan: all the work.
    options: what to keep.
    folder: where the parts go.
    inputs: the files of the plan.
    """

    plan: Plan
    options: Options
    folder: ResultsFolder
    inputs: Inputs


def complete(
    work: Work,
    unit: Unit,
    on_bytes: Callable[[int], None],
    on_more_bytes: Callable[[int], None] = lambda _: None,
    settle: Callable[[Callable[[], None]], object] = lambda rest: rest(),
) -> None:
    """One unit from its tensors to its part in the folder; every engine ends here.

    Args:
        work: what it takes.
        unit: what is to be done.
        on_bytes: told how many bytes more have been gone through.
        on_more_bytes: told how many of them have been gone through once more.
        settle: does what makes the part durable, at once or beside what comes next.
    """
    with witnessed() as seen:
        part = scan_unit(work.plan, unit, work.options, on_bytes, on_more_bytes)
    work.inputs.vouch(part, seen, on_more_bytes)
    settle(work.folder.draft(unit.number, part))


def effort(plan: Plan, options: Options, number: int) -> int:
    """Bytes that a unit goes through, those twice that are gone through twice."""
    nbytes = sum(map(plan.nbytes, plan.units[number].parameters))
    return nbytes * (1 + (options.spectral is not None) + options.checksums)


@contextmanager
def reading(
    plan: Plan, options: Options, units: list[Unit], count: int, threads: int
) -> Iterator[Callable[[int], None]]:
    """Where these units are read, so many at a time; to be told how many bytes have been.

    threads: all of the process that read units, these and others.
    """
    checkpoints = len(plan.runs) + 1
    width = MAPPED_BYTES // (threads * checkpoints)
    _allow_open_files(threads * checkpoints * FILES_EACH + OTHER_FILES)
    direct = not _is_cache_worth_while(plan, options)
    ahead = read_ahead(pieces(plan, units, count), count * AHEAD, direct)
    with surviving(width), past_the_cache() if direct else nullcontext(), ahead as gone_through:
        yield gone_through


def _is_cache_worth_while(plan: Plan, options: Options) -> bool:
    """Whether what is read will be read again: in this scan, or in another that finds it there."""
    if options.spectral is not None or options.checksums:
        return True
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return plan.nbytes_of_all <= memory * CACHED


def _allow_open_files(count: int) -> None:
    """Raises the process' own limit of open files, as far as it may: macOS begins with 256."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft not in (resource.RLIM_INFINITY, hard) and soft < allowed:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def run_units(
    plan: Plan,
    options: Options,
    folder: ResultsFolder,
    workers: int | None,
    on_bytes: Callable[[int], None],
    numbers: Sequence[int] | None = None,
) -> None:
    """Every unit that the folder has no part of, scanned and committed.

    Args:
        plan: all the work.
        options: what to keep.
        folder: where the parts go.
        workers: threads; one for each core if None.
        on_bytes: told, from any thread, how many more bytes have been gone through.
        numbers: which units; all that the folder has no part of if None.
    """
    stop, count = Event(), workers or os.cpu_count() or 1
    units = [plan.units[number] for number in (folder.pending() if numbers is None else numbers)]
    work = Work(plan, options, folder, Inputs(plan, options.checksums))
    settled: list[Future[None]] = []

    def settle(rest: Callable[[], None]) -> None:
        settled.append(disk.submit(stopping, rest))

    def stopping(rest: Callable[[], None]) -> None:
        try:
            rest()
        except BaseException:
            stop.set()
            raise

    def report(nbytes: int) -> None:
        report_again(nbytes)
        gone_through(nbytes)

    def report_again(nbytes: int) -> None:
        if stop.is_set():
            raise _StoppedError
        on_bytes(nbytes)

    with (
        threadpool_limits(limits=1),
        reading(plan, options, units, count, count) as gone_through,
        ThreadPoolExecutor(1) as disk,
        ThreadPoolExecutor(count) as pool,
    ):
        futures = [
            pool.submit(complete, work, unit, report, report_again, settle) for unit in units
        ]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
    _raise_first(futures + settled)
    work.inputs.check()


def _raise_first(futures: list[Future[None]]) -> None:
    """The error that stopped the work, not the ones that it made others raise."""
    errors = [f.exception() for f in futures if f.done() and not f.cancelled()]
    real = [error for error in errors if error and not isinstance(error, _StoppedError)]
    if real:
        raise real[0]
