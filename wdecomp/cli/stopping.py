"""SIGINT and SIGTERM end a command; one that only scans within seconds, whatever it is at.

Nothing is lost by that: what is finished is on the disk, and what is not was never named.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType

from wdecomp.cli.console import say_error

GRACE = 3.0  # seconds for threads to come to an end by themselves
SCANS = ("compare", "audit", "verify", "inspect", "check")  # has nothing to clear away at its end
OTHERS = ("train", "view")  # torch's launcher and streamlit have handlers of their own


class Stopped(KeyboardInterrupt):
    """A signal came.

    code: what the process is to exit with, 128 and the signal's number.
    """

    def __init__(self, number: int) -> None:
        self.code = 128 + number
        super().__init__(number)


@contextmanager
def stoppable(command: str) -> Iterator[None]:
    """Raises `Stopped` where a signal comes, and ends the process where that does not."""
    if command in OTHERS or threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    grace = GRACE if command in SCANS else None
    before = [signal.signal(number, partial(_stop, grace)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler or signal.SIG_DFL)


def tell(error: BaseException) -> int:
    """Says that the command was interrupted; the code to exit with."""
    say_error("interrupted. Give the same command again to continue.")
    while error.__cause__ is not None:
        error = error.__cause__
    return error.code if isinstance(error, Stopped) else 128 + signal.SIGINT


def _stop(grace: float | None, number: int, _: FrameType | None) -> None:
    stopped = Stopped(number)
    for again in (signal.SIGINT, signal.SIGTERM):
        signal.signal(again, lambda *_: os._exit(stopped.code))  # who asks twice is in a hurry
    if grace is not None:
        timer = threading.Timer(grace, _leave, [stopped])
        timer.daemon = True
        timer.start()
    raise stopped


def _leave(stopped: Stopped) -> None:
    os._exit(tell(stopped))
