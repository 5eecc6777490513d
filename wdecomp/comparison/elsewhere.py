"""What a worker of a cluster does: it comes to the same plan, and completes units of it.

A worker is told what was asked, in words, and makes the plan itself, once, from the files that it
sees. Where that is not the plan of whoever asked, it refuses: its parts would be of another run.
"""

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from wdecomp.comparison.asked import Asked, Prepared, digests, prepare
from wdecomp.decomposition import require_device
from wdecomp.errors import ClusterError, WdecompError, some
from wdecomp.remote.urls import is_url
from wdecomp.scan import FailedError, Inputs, Work, complete, reading
from wdecomp.table import join_results

KEPT = 2  # plans, of comparisons that one worker serves at the same time


@dataclass(frozen=True)
class Sent:
    """What goes to a worker with every unit.

    digests: of what run.json has to say.
    out: the results folder.
    here: the folder to which paths are relative, if any are.
    session: of one call of `compare`: in another one files may have changed.
    """

    asked: Asked
    digests: tuple[tuple[str, str], ...]
    out: str
    here: str
    session: str


_sessions: dict[str, Work] = {}
_planning = threading.Lock()


def sent(asked: Asked, ready: Prepared, out: str) -> Sent:
    """What a worker has to be told."""
    checkpoints = [ready.plan.base, *(run.checkpoint for run in ready.plan.runs)]
    paths = [each.path for each in checkpoints if not is_url(str(each.path))]
    is_relative = not all(path.is_absolute() for path in paths)
    return Sent(
        asked,
        tuple(digests(ready.record).items()),
        out,
        str(Path.cwd()) if is_relative else "",
        os.urandom(8).hex(),
    )


def complete_there(told: Sent, number: int) -> None:
    """Completes one unit on a Dask worker, unless it has a part already.

    Raises:
        WdecompError: the worker does not see what whoever asked has seen, or the unit's files are
            not what they must be; it says on which worker.
    """
    from distributed import get_worker

    worker: Any = get_worker()
    failed: Exception | None = None
    try:
        _complete(told, number, worker.state.nthreads)
    except WdecompError as error:
        failed = type(error)(f"On {worker.address}: {error}")
    except Exception as error:  # noqa: BLE001  its words go on alone: not all can be pickled
        said = f"on {worker.address} {type(error).__name__}: {str(error)[:200]}"
        failed = FailedError(" ".join(said.split()))
    if failed is not None:  # and not above: there it would take the other with it
        raise failed


def _complete(told: Sent, number: int, threads: int) -> None:
    work = _session(told, threads)
    if not work.folder.has(number):
        unit = work.plan.units[number]
        with reading(work.plan, work.options, [unit], 1, threads) as gone_through:
            complete(work, unit, gone_through)


def _session(told: Sent, threads: int) -> Work:
    """The plan that was asked for, made once, whichever thread comes first."""
    with _planning:
        if told.session not in _sessions:
            work = _begin(told, threads)
            while len(_sessions) >= KEPT:
                del _sessions[next(iter(_sessions))]
            _sessions[told.session] = work
        return _sessions[told.session]


def _begin(told: Sent, threads: int) -> Work:
    if told.here and Path.cwd() != Path(told.here):
        raise ClusterError(
            f"paths are relative to {told.here}, the worker is in {Path.cwd()}. Give absolute "
            "paths, or start workers there."
        )
    require_device(told.asked.device)
    ready = prepare(told.asked, threads)
    mine = digests(ready.record)
    other = [key for key, digest in told.digests if mine.get(key) != digest]
    if other:
        raise ClusterError(
            f"{some(other, 6)} differ from those of the run. Workers need the same files at the "
            "same paths, with the same times, and the same versions of all packages."
        )
    threadpool_limits(limits=1)  # for good: a worker's threads are all the threads it is to use
    folder = join_results(told.out, ready.record)
    return Work(ready.plan, ready.options, folder, Inputs(ready.plan, told.asked.checksums))
