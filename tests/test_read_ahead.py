"""What the disk is asked for before it is wanted."""

import os
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
    monkeypatch.setattr(ahead, "_is_cached", lambda *_: False)
    monkeypatch.setattr(os, "posix_fadvise", lambda _, at, count, __: asked.append((at, count)))
    with ahead._Disk() as disk:
        disk.advise(ahead.Piece(file, 5000, 1_000_000))
    assert max(count for _, count in asked) <= 128 << 10
    wanted = set(range(5000, 1_005_000, 1000))
    assert wanted <= {at for start, count in asked for at in range(start, start + count)}
