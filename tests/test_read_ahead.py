"""What the disk is asked for before it is wanted."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from wdecomp.scan import ahead


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="no posix_fadvise here")
def test_a_piece_is_asked_for_in_steps_that_linux_reads_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one call it reads read_ahead_kb, 128 unless somebody changed it, and drops the rest."""
    file, asked = tmp_path / "weights", []
    file.write_bytes(bytes(10))
    monkeypatch.setattr(ahead, "is_cached", lambda *_: False)
    monkeypatch.setattr(os, "posix_fadvise", lambda _, at, count, __: asked.append((at, count)))
    with ahead._Disk() as disk:
        disk.advise(ahead.Piece(file, 5000, 1_000_000))
    assert max(count for _, count in asked) <= 128 << 10
    wanted = set(range(5000, 1_005_000, 1000))
    assert wanted <= {at for start, count in asked for at in range(start, start + count)}


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="no posix_fadvise here")
def test_a_page_that_pieces_share_does_not_speak_for_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors begin anywhere in a page: what is behind one may be there before it is."""
    file, asked = tmp_path / "weights", []
    file.write_bytes(bytes(9_000_000))
    ahead_of, behind = ahead.Piece(file, 100, 4_000_000), ahead.Piece(file, 4_000_100, 4_000_000)
    monkeypatch.setattr(os, "posix_fadvise", lambda _, at, count, __: asked.append(at))
    monkeypatch.setattr(os, "preadv", _only_from(behind.start - behind.start % 4096))
    with ahead._Disk() as disk:
        disk.advise(behind)
        assert not asked
        disk.advise(ahead_of)
    assert min(asked) == ahead_of.start
    assert max(asked) > behind.start - ahead.ASKED


def _only_from(first: int) -> Callable[..., int]:
    """A page cache that has what is behind a byte of a file."""

    def preadv(_: int, into: list[bytearray], at: int, __: int) -> int:
        if at < first:
            raise BlockingIOError
        return len(into[0])

    return preadv
