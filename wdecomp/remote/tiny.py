"""Tensors of a few bytes, of which a file may have hundreds: all are fetched with the second one.

An adapter's alphas or a quantised weight's notes lie far from one another and are read one by one,
before any plan: a request for each would take as long as a gigabyte.
"""

from threading import Lock

from wdecomp.remote.path import RemotePath
from wdecomp.remote.store import at_once

TINY = 512  # bytes of a tensor
MOST = 10_000  # of a file

_lock = Lock()
_there: dict[RemotePath, list[tuple[int, int]]] = {}
_asked: dict[RemotePath, int] = {}
_held: dict[RemotePath, dict[int, bytes]] = {}


def remember(file: RemotePath, spans: list[tuple[int, int]]) -> None:
    """Says where the tensors of a file are; the tiny ones among them are kept in mind."""
    found = [(start, stop) for start, stop in spans if 0 < stop - start <= TINY]
    with _lock:
        _there[file] = found if len(found) <= MOST else []
        _asked.pop(file, None)
        _held.pop(file, None)


def take(file: RemotePath, start: int, into: memoryview) -> int:
    """Copies a tiny tensor that is there, or is fetched now with all others; how many bytes.

    Raises:
        OSError: they cannot be had.
    """
    if len(into) > TINY:
        return 0
    with _lock:
        held = _held.get(file)
        _asked[file] = _asked.get(file, 0) + 1
        if held is None and _asked[file] < 2:
            return 0
        spans = _there.get(file, [])
    if held is None:
        fetched = at_once(lambda span: file.fetch(*span), spans)
        held = {span[0]: data for span, data in zip(spans, fetched, strict=True)}
        with _lock:
            _held[file] = held
    data = held.get(start, b"")
    count = min(len(data), len(into))
    into[:count] = data[:count]
    return count


def forget() -> None:
    """Drops what was fetched: a file may have become another one."""
    with _lock:
        _held.clear()
        _asked.clear()
