"""The units of a prepared comparison, by one engine or another, and the tables of them."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from threading import Thread

from wdecomp.comparison.asked import Asked, Prepared
from wdecomp.comparison.elsewhere import complete_there, sent
from wdecomp.decomposition import compilation_told
from wdecomp.progress import aside, byte_progress
from wdecomp.scan import Cluster, effort, run_on_cluster, run_units
from wdecomp.table import Results, ResultsFolder

STATISTICS = "wdecomp.stats"  # imports pandas, half a second that inspect has not
COMPILING = "Compiling the kernel for these dtypes: some seconds, once; it is kept."


def run_here(
    ready: Prepared,
    folder: ResultsFolder,
    numbers: Sequence[int],
    workers: int | None,
    progress: bool,
) -> None:
    """Units by threads of this process."""
    plan, options = ready.plan, ready.options
    total = sum(effort(plan, options, number) for number in numbers)
    with (
        compilation_told(lambda: aside(COMPILING, progress)),
        byte_progress(total, "reading", progress) as on_bytes,
    ):
        run_units(plan, options, folder, workers, _importing_meanwhile(on_bytes), numbers)


def _importing_meanwhile(on_bytes: Callable[[int], None]) -> Callable[[int], None]:
    """`on_bytes`, which has the statistics imported as soon as there are any bytes.

    Not before: until then the kernel is loaded, and either needs the interpreter.
    """
    waiting = [Thread(target=import_module, args=(STATISTICS,), daemon=True)]

    def told(count: int) -> None:
        with suppress(IndexError):  # it has been started
            waiting.pop().start()
        on_bytes(count)

    return told


def run_there(
    ready: Prepared, asked: Asked, folder: ResultsFolder, cluster: Cluster, progress: bool
) -> None:
    """All units that are left, by the workers of a cluster."""
    plan, options = ready.plan, ready.options
    total = sum(effort(plan, options, number) for number in folder.pending())
    work = partial(complete_there, sent(asked, ready, folder.place))
    with byte_progress(total, "reading", progress) as on_bytes:
        run_on_cluster(plan, options, folder, cluster, work, on_bytes)


def make_tables(folder: ResultsFolder) -> Results:
    """The results, once there is a part of every unit."""
    from wdecomp.stats import result_fits

    return folder.finish(result_fits)
