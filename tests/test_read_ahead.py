"""What the disk is asked for before it is wanted."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from wdecomp.scan import ahead

pytestmark = pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="no posix_fadvise here")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What the disk is asked for: from where, and how many bytes."""
    found: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, at, count, __: found.append((at, count)))
    return found


def test_a_piece_is_asked_for_in_steps_that_linux_reads_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[tuple[int, int]]
) -> None:
    """Of one call it reads read_ahead_kb, 128 unless somebody changed it, and drops the rest."""
    file = tmp_path / "weights"
    file.write_bytes(bytes(10))
    monkeypatch.setattr(ahead, "is_cached", lambda *_: False)
    with ahead._Disk() as disk:
        disk.advise(ahead.Piece(file, 5000, 1_000_000))
    assert max(count for _, count in asked) <= 128 << 10
    wanted = set(range(5000, 1_005_000, 1000))
    assert wanted <= {at for start, count in asked for at in range(start, start + count)}


def test_a_page_that_pieces_share_does_not_speak_for_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[tuple[int, int]]
) -> None:
    """Tensors begin anywhere in a page: what is behind one may be there before it is."""
    file = tmp_path / "weights"
    file.write_bytes(bytes(9_000_000))
    ahead_of, behind = ahead.Piece(file, 100, 4_000_000), ahead.Piece(file, 4_000_100, 4_000_000)
    monkeypatch.setattr(os, "preadv", _only_from(behind.start - behind.start % 4096))
    with ahead._Disk() as disk:
        disk.advise(behind)
        assert not asked
        disk.advise(ahead_of)
    starts = [at for at, _ in asked]
    assert min(starts) == ahead_of.start
    assert max(starts) > behind.start - ahead.ASKED


def _only_from(first: int) -> Callable[..., int]:
    """A page cache that has what is behind a byte of a file."""

    def preadv(_: int, into: list[bytearray], at: int, __: int) -> int:
        if at < first:
            raise BlockingIOError
        return len(into[0])

    return preadv
