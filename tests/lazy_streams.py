"""CUDA's streams and events on the CPU, each queue as late as the waits allow.

What is queued runs only when the host waits for it, or in `drain`; there the streams take turns by
chance, or the one that was made last goes first. An order that no event enforces is thus broken.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


class Stream:
    def __init__(self, all_: list["Stream"]) -> None:
        self.queue: list[Callable[[], Any] | Event] = []
        self.done = 0
        all_.append(self)

    def wait_event(self, event: "Event") -> None:
        if event.at is not None:
            self.queue.append(Event(*event.at))

    @property
    def ready(self) -> bool:
        if self.done == len(self.queue):
            return False
        task = self.queue[self.done]
        return not isinstance(task, Event) or task.is_done

    def step(self) -> None:
        task = self.queue[self.done]
        task.synchronize() if isinstance(task, Event) else task()
        self.done += 1


class Event:
    def __init__(self, *at: Any, blocking: bool = False) -> None:
        self.at = at or None  # (stream, how much of its queue)

    @property
    def is_done(self) -> bool:
        return self.at is None or self.at[0].done >= self.at[1]

    def record(self, stream: Stream) -> None:
        self.at = stream, len(stream.queue)

    def synchronize(self) -> None:
        while not self.is_done:
            self.at[0].step()


class _Unpinned(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {k: v for k, v in (kwargs or {}).items() if k != "pin_memory"}
        made = func(*args, **kwargs)
        if func is torch.empty:
            made.numpy().fill(0xFF)  # NaN in every dtype
        return made


class LazyStreams(TorchDispatchMode):
    """Puts every operation on the stream that is current."""

    def __init__(self, seed: int | None) -> None:
        super().__init__()
        self.streams: list[Stream] = []
        self._current: Stream | None = None
        self._random = None if seed is None else random.Random(seed)

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self._current = self._current, stream
        yield
        self._current = before

    def drain(self) -> None:
        """Runs all that is queued."""
        while ready := [stream for stream in self.streams if stream.ready]:
            (self._random.choice(ready) if self._random else ready[-1]).step()
        assert all(stream.done == len(stream.queue) for stream in self.streams)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        written = any(a.alias_info and a.alias_info.is_write for a in func._schema.arguments)
        if self._current is None or not (written or self._computes(func)):
            return func(*args, **kwargs)
        if written:
            self._current.queue.append(lambda: func(*args, **kwargs))
            return kwargs.get("out", args[0])
        made = func(*args, **kwargs).fill_(float("nan"))
        self._current.queue.append(lambda: made.copy_(func(*args, **kwargs)))
        return made

    @staticmethod
    def _computes(func: Any) -> bool:
        """Neither a view nor memory alone."""
        return not any(r.alias_info for r in func._schema.returns) and "empty" not in str(func)


@contextmanager
def lazy_streams(monkeypatch: pytest.MonkeyPatch, seed: int | None) -> Iterator[LazyStreams]:
    """In which torch.cuda's streams are these."""
    lazy = LazyStreams(seed)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(lazy.streams))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", lazy.stream)
    with _Unpinned(), lazy:
        yield lazy
