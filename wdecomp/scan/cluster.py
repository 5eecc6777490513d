"""Runs units of work on Dask, whose workers commit their parts themselves.

What a worker says only drives the progress bar. After each pass the folder is looked at, and what
it has no part of is asked for again; a worker or a scheduler that is gone is no error but a unit
that was not acknowledged. Futures are let go as soon as they have said so: else the results on a
worker that dies would be made once more.
"""

import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from wdecomp.errors import ClusterError, MissingExtraError, UnfinishedError, WdecompError
from wdecomp.scan.engine import effort
from wdecomp.scan.inputs import Inputs
from wdecomp.scan.plan import Plan
from wdecomp.scan.unit import Options
from wdecomp.table import ResultsFolder

PASSES = 5
CONNECT = 30.0  # seconds for a scheduler to answer
LOOK, COUNT = 0.02, 1.0  # seconds between looks at what is done, and at who is there
IDLE = 30.0  # seconds of workers that are there and do nothing: what was asked for was lost
ADDRESS = re.compile(r"(tcp|tls)://[^/@\s]+:[0-9]{1,5}")


class FailedError(Exception):
    """A unit failed on a worker by no error of ours: its words alone, which travel always."""


@dataclass(frozen=True)
class Cluster:
    """A Dask scheduler, and how long to wait for its workers.

    address: tcp://HOST:PORT or tls://HOST:PORT.
    patience: seconds without any worker after which the run stops.
    """

    address: str
    patience: float


def require_dask(cluster: Cluster) -> None:
    """Says in one line why there can be no such cluster.

    Raises:
        ClusterError: the address is none.
        MissingExtraError: Dask is not installed.
    """
    if not ADDRESS.fullmatch(cluster.address):
        raise ClusterError(
            f"--scheduler {cluster.address}: is no address of a Dask scheduler, expected "
            "tcp://HOST:PORT or tls://HOST:PORT. `dask scheduler` prints its own."
        )
    if find_spec("distributed") is None:
        raise MissingExtraError(
            f"--scheduler {cluster.address}: Dask is not installed. "
            "Install it: pip install 'wdecomp[dask]'."
        )


def run_on_cluster(
    plan: Plan,
    options: Options,
    folder: ResultsFolder,
    cluster: Cluster,
    work: Callable[[int], None],
    on_bytes: Callable[[int], None],
) -> None:
    """Every unit that the folder has no part of, scanned and committed by Dask's workers.

    Args:
        plan: all the work.
        options: what to keep.
        folder: where the workers' parts are looked for.
        cluster: where the workers are.
        work: completes the unit of a number, on a worker, to which it is sent.
        on_bytes: told how many more bytes have been gone through.

    Raises:
        UnfinishedError: there is no scheduler, or no worker, or after five passes there are units
            without a part.
        ClusterError: there are no certificates for TLS.
        WdecompError: what a worker could not do.
    """
    told, reasons = set[int](), list[str]()

    def tell(number: int) -> None:
        if number not in told:
            told.add(number)
            on_bytes(effort(plan, options, number))

    for _ in range(PASSES):
        missing = folder.pending()
        if not missing:
            break
        with _quiet(), _connected(cluster, len(missing)) as client:
            reasons = _one_pass(client, cluster, missing, work, tell) or reasons
        folder.look()
        for number in set(missing) - set(folder.pending()):
            tell(number)
    left = folder.pending()
    if left:
        why = (reasons or ["their parts are not to be seen here"])[-1]
        first = plan.units[left[0]].parameters[0]
        raise UnfinishedError(
            f"{cluster.address}: units of work left after {PASSES} passes: {len(left)}, the first "
            f"with {first} ({why}). Give the same command again to continue."
        )
    Inputs(plan, options.checksums).check()


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing of what Dask and tornado log: what came to nothing is said in a line of ours."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def _connected(cluster: Cluster, missing: int) -> Iterator[Any]:
    import distributed

    connect: Any = distributed.Client
    try:
        timeout = min(CONNECT, cluster.patience)
        client = connect(cluster.address, timeout=timeout, set_as_default=False)
    except TypeError as error:
        raise ClusterError(
            f"{cluster.address}: needs certificates ({_reason(error)}). "
            "Set distributed.comm.tls in Dask's configuration."
        ) from None
    except OSError as error:
        raise UnfinishedError(
            f"{cluster.address}: no scheduler answers ({_reason(error)}); units of work left: "
            f"{missing}. Start one and give the same command again to continue."
        ) from None
    try:
        yield client
    finally:
        with suppress(OSError, AssertionError):
            client.close(timeout=2)


def _one_pass(
    client: Any,
    cluster: Cluster,
    numbers: list[int],
    work: Callable[[int], None],
    tell: Callable[[int], None],
) -> list[str]:
    """Asks for every unit once; why some have come to nothing, when each has or is done."""
    import distributed

    as_completed: Any = distributed.as_completed
    mark, watch = os.urandom(8).hex(), _Watch(client, cluster)
    futures, reasons = as_completed(loop=client.loop), list[str]()
    try:
        for number in numbers:
            key = f"wdecomp-{mark}-{number}"
            futures.add(client.submit(work, number, key=key, pure=False))
        while not futures.is_empty():
            ready = futures.next_batch(block=False)
            for future in ready:
                reasons += _taken(future, tell)
            if not ready:
                time.sleep(LOOK)
            if watch.is_idle(futures.count()):
                return [*reasons, "its workers took no work"]
        return reasons
    finally:
        with suppress(OSError):
            client.cancel(list(futures.futures), force=True)


class _Watch:
    """Looks, now and then, at who is there and whether anything is done."""

    def __init__(self, client: Any, cluster: Cluster) -> None:
        self._client, self._cluster = client, cluster
        self._looked = self._manned = self._busy = time.monotonic()

    def is_idle(self, left: int) -> bool:
        """Whether there are workers, and none of them has done anything for long.

        Dask can lose what it should have told, as of an error that cannot be pickled.

        Raises:
            UnfinishedError: for longer than one has patience there was no worker.
        """
        now = time.monotonic()
        if now < self._looked + COUNT:
            return False
        self._looked, processing = now, self._processing()
        self._manned = now if processing else self._manned
        self._busy = now if any(processing.values()) or not processing else self._busy
        if now - self._manned > self._cluster.patience:
            raise UnfinishedError(
                f"{self._cluster.address}: no worker for {self._cluster.patience:g} seconds; "
                f"units of work left: {left}. Start workers and give the same command again to "
                "continue."
            )
        return now - self._busy > IDLE

    def _processing(self) -> dict[str, Any]:
        """What each worker is at; nothing where the scheduler is gone, as will be seen."""
        try:
            return dict(self._client.processing())
        except Exception:  # noqa: BLE001  which one depends on the moment
            return {}


def _taken(future: Any, tell: Callable[[int], None]) -> list[str]:
    """Why a unit that was asked for is not done; nothing where it is.

    Raises:
        WdecompError: it is what the worker says.
    """
    if future.status == "finished":
        tell(int(future.key.rpartition("-")[2]))
        return []
    try:
        error = future.exception() if future.status == "error" else None
    except Exception as lost:  # noqa: BLE001  also what cannot be unpickled here
        error = lost
    if isinstance(error, WdecompError):
        raise error
    return ["its scheduler went away" if error is None else _reason(error)]


def _reason(error: BaseException) -> str:
    if isinstance(error, FailedError):
        return str(error)
    if type(error).__name__ == "KilledWorker":
        return "each worker that tried it died: too little memory?"
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{type(error).__name__}: {said[:200]}"
