"""Compilation at first use: kept on disk where there is a place for it, and told to the user.

numba keeps one by the name of its function and by the file where that is. Functions of this package
are made of others, of files beside theirs: so what these files say is part of their names. Else an
upgrade, or a change of a constant, would leave machine code that no longer goes with its callers.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from numba import njit
from numba.core import event

from wdecomp.decomposition.stored import FAST

HERE = Path(__file__).parent
SOURCES = sha256(b"".join(file.read_bytes() for file in sorted(HERE.glob("*.py")))).hexdigest()[:8]


def compiled(function: Any) -> Any:
    """The function, compiled at its first call with each kind of arguments; it frees the GIL."""
    return _compiled(function, fastmath=set(FAST))


def compiled_to_the_letter(function: Any) -> Any:
    """Likewise, for a formula: nothing is reordered, and a division by zero is none of Python's."""
    return _compiled(function, error_model="numpy")


def _compiled(function: Any, **options: Any) -> Any:
    function.__qualname__ += f"_{SOURCES}"
    try:
        return njit(cache=True, nogil=True, **options)(function)
    except RuntimeError:  # numba finds no folder that it may write to
        return njit(nogil=True, **options)(function)


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
