"""Progress of long work on stderr: bytes, rate and time left."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock

from tqdm import tqdm


@contextmanager
def byte_progress(total: int, label: str, shown: bool) -> Iterator[Callable[[int], None]]:
    """A function that any thread may call with the number of bytes it has gone through."""
    lock = Lock()
    interval = 0.1 if sys.stderr.isatty() else 10.0
    with tqdm(
        total=total,
        desc=label,
        unit="B",
        unit_scale=True,
        mininterval=interval,
        disable=not shown,
        leave=False,
        file=sys.stderr,
    ) as bar:

        def advance(count: int) -> None:
            with lock:
                bar.update(count)

        yield advance


def aside(text: str, shown: bool) -> None:
    """A line on stderr, above the progress bar."""
    if shown:
        tqdm.write(text, file=sys.stderr)
