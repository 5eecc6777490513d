"""What a server was asked for, how much at a time, and what it is to do wrong."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock


@dataclass(frozen=True)
class Asked:
    """One request: `GET /model.safetensors` from `start` to before `stop`, or of all of it."""

    method: str
    path: str
    span: tuple[int, int] | None = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Tally:
    """Counters of one server; `fault` says what is to go wrong with a request, "" for nothing."""

    latency: float = 0.0
    rate: float = 0.0  # bytes a second for each range, where that is limited
    fault: Callable[[Asked], str] = lambda asked: ""
    asked: list[Asked] = field(default_factory=list)
    sent: int = 0  # bytes of files, not of errors or listings
    flying: int = 0
    most: int = 0  # GETs of ranges that were under way together
    lock: Lock = field(default_factory=Lock)

    @contextmanager
    def serving(self, asked: Asked) -> Iterator[str]:
        """One request, after the latency; what is to go wrong with it."""
        ranged = asked.method == "GET" and asked.span is not None
        with self.lock:
            self.asked.append(asked)
            self.flying += ranged
            self.most = max(self.most, self.flying)
        time.sleep(self.latency)
        try:
            yield self.fault(asked)
        finally:
            with self.lock:
                self.flying -= ranged

    def gave(self, count: int) -> None:
        """So many bytes of files more."""
        with self.lock:
            self.sent += count

    def forget(self) -> None:
        """Starts to count anew."""
        with self.lock:
            self.asked, self.sent, self.most = [], 0, 0

    def ranges(self, end: str = ".safetensors") -> list[Asked]:
        """The ranges of files whose names end like this."""
        return [a for a in self.asked if a.method == "GET" and a.path.endswith(end) and a.span]


def times(count: int, what: str, end: str = ".safetensors") -> Callable[[Asked], str]:
    """The first so many ranges of such files go wrong."""
    left, lock = [count], Lock()

    def fault(asked: Asked) -> str:
        if asked.method != "GET" or not asked.path.endswith(end):
            return ""
        with lock:
            left[0] -= 1
            return what if left[0] >= 0 else ""

    return fault


def always(what: str, end: str = ".safetensors") -> Callable[[Asked], str]:
    """Every GET of such files goes wrong."""
    return times(1 << 60, what, end)
