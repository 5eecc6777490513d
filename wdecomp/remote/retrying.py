"""Another try, after a while, at what another try may mend."""

import random
import time
from collections.abc import Callable
from threading import Event
from typing import TypeVar

from wdecomp.remote.transport import PassingError

TRIES = 7
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds; each is twice the one before it: 25 in all

Found = TypeVar("Found")


def persistently(
    once: Callable[[], Found], stopped: Event | None = None, tries: int | None = None
) -> Found:
    """What `once` returns at the first try that brings anything.

    Args:
        once: one try.
        stopped: set when nobody wants the result any more; no further try is then made.
        tries: how often at most; `TRIES` if None.

    Raises:
        OSError: as `once` raised it; what passes only after the last try.
    """
    for number in range(1, TRIES if tries is None else tries):
        try:
            return once()
        except PassingError as error:
            wait = min(FIRST_WAIT * 2 ** (number - 1), LONGEST_WAIT) * random.uniform(0.5, 1)
            wait = max(wait, min(error.wait, LONGEST_WAIT))
            if stopped is None:
                time.sleep(wait)
            elif stopped.wait(wait):
                raise
    return once()
