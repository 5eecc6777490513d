"""Compilation at first use: kept on disk where there is a place for it, and told to the user."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from numba import njit
from numba.core import event

from wdecomp.decomposition.stored import FAST


def compiled(function: Any) -> Any:
    """The function, compiled at its first call with each kind of arguments; it frees the GIL."""
    try:
        return njit(cache=True, nogil=True, fastmath=set(FAST))(function)
    except RuntimeError:  # numba finds no folder that it may write to
        return njit(nogil=True, fastmath=set(FAST))(function)


@contextmanager
def compilation_told(tell: Callable[[], None]) -> Iterator[None]:
    """Calls `tell` once if anything must be compiled, which takes seconds, before it is."""

    class Listener(event.Listener):  # type: ignore[misc]
        told = False

        def on_start(self, _: Any) -> None:
            if not self.told:
                self.told = True
                tell()

        def on_end(self, _: Any) -> None:
            return None

    with event.install_listener("numba:compile", Listener()):
        yield
