"""What a power cut leaves of a results folder; the long run is `python tests/power_cuts.py`."""

from pathlib import Path

import pytest
from disk import CHANGES, Change, watched
from power_cuts import WITHOUT, contents, cut_power, without, work


@pytest.mark.parametrize("before", [None, "old"], ids=["new", "restart"])
def test_after_a_power_cut_nothing_is_wrong_and_nothing_acknowledged_is_lost(
    before: str | None, tmp_path: Path
) -> None:
    found = cut_power(tmp_path, cuts=40, seed=1, before=before)
    assert found.cuts >= 40
    assert found.wrong == []


@pytest.mark.parametrize("step", WITHOUT)
def test_without_any_of_its_three_steps_a_commit_is_not_safe(step: str, tmp_path: Path) -> None:
    with without(step):
        assert cut_power(tmp_path, cuts=40, seed=1).wrong


def test_all_that_is_written_is_seen(tmp_path: Path) -> None:
    """Else nothing would be proved: replaying every change gives the folder that was made."""
    changes: list[Change] = []
    with watched(tmp_path / "out", changes.append):
        work(tmp_path / "out")
    assert {change.kind for change in changes} == {*CHANGES}
    written: dict[str, bytes] = {}
    for change in changes:
        if change.kind == "create":
            written[change.name] = b""
        elif change.kind == "write":
            written[change.name] += change.content
        elif change.kind == "rename":
            written[change.to] = written.pop(change.name)
        elif change.kind == "unlink":
            written.pop(change.name, None)  # a temporary name may be gone by now
    assert written == contents(tmp_path / "out")
