"""Runs units of work on local threads; each commits what it has found before it takes another.

The kernel, the reads and the products of an adapter's factors all release the interpreter, so
threads use every core. Whoever waits trusts only what is in the results folder, and a process
that is killed loses one unit for each of its workers.
"""

import os
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from threading import Event

from threadpoolctl import threadpool_limits

from wdecomp.checkpoint import surviving, witnessed
from wdecomp.scan.ahead import AHEAD, pieces, read_ahead
from wdecomp.scan.inputs import Inputs
from wdecomp.scan.plan import Plan, Unit
from wdecomp.scan.unit import Options, scan_unit
from wdecomp.table import ResultsFolder

MAPPED_BYTES = 192 << 20  # by all workers together


class _StoppedError(Exception):
    """Another unit failed or the user interrupted: not worth a word of its own."""


def run_units(
    plan: Plan,
    options: Options,
    folder: ResultsFolder,
    workers: int | None,
    on_bytes: Callable[[int], None],
) -> None:
    """Every unit that the folder has no part of, scanned and committed.

    Args:
        plan: all the work.
        options: what to keep.
        folder: where the parts go.
        workers: threads; one for each core if None.
        on_bytes: told, from any thread, how many more bytes have been gone through.
    """
    stop, count = Event(), workers or os.cpu_count() or 1
    units = [plan.units[number] for number in folder.pending()]
    inputs = Inputs(plan, options.checksums)

    def report(nbytes: int) -> None:
        report_again(nbytes)
        gone_through(nbytes)

    def report_again(nbytes: int) -> None:
        if stop.is_set():
            raise _StoppedError
        on_bytes(nbytes)

    def work(unit: Unit) -> None:
        with witnessed() as seen:
            part = scan_unit(plan, unit, options, report, report_again)
        inputs.vouch(part, seen, report_again)
        folder.commit(unit.number, part)

    with (
        surviving(MAPPED_BYTES // (count * (len(plan.runs) + 1))),
        threadpool_limits(limits=1),
        read_ahead(pieces(plan, units, count), count * AHEAD) as gone_through,
        ThreadPoolExecutor(count) as pool,
    ):
        futures = [pool.submit(work, unit) for unit in units]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
    _raise_first(futures)
    inputs.check()


def _raise_first(futures: list[Future[None]]) -> None:
    """The error that stopped the work, not the ones that it made others raise."""
    errors = [f.exception() for f in futures if f.done() and not f.cancelled()]
    real = [error for error in errors if error and not isinstance(error, _StoppedError)]
    if real:
        raise real[0]
