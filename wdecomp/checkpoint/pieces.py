"""Indices along one axis in pieces: what a fused tensor has of one kind."""

from collections.abc import Sequence

Ranges = tuple[range, ...]  # ascending


def count(pieces: Sequence[range]) -> int:
    """How many indices the pieces have together."""
    return sum(len(piece) for piece in pieces)


def cut(pieces: Sequence[range], wanted: slice) -> Ranges:
    """The indices from `wanted.start` to `wanted.stop` of all that the pieces have.

    >>> cut([range(0, 4), range(8, 12)], slice(2, 6))
    (range(2, 4), range(8, 10))
    """
    found, first = [], 0
    for piece in pieces:
        low, high = max(wanted.start - first, 0), min(wanted.stop - first, len(piece))
        if low < high:
            found.append(piece[low:high])
        first += len(piece)
    return tuple(found)
