"""Files that change while they are merged or verified are noticed at the end, whichever it was."""

from pathlib import Path
from typing import Any

import pytest
from builders import low_rank, tiny_llama, write_adapter, write_full

from wdecomp.errors import CheckpointError
from wdecomp.merging import folder as merging
from wdecomp.merging import merge
from wdecomp.verifying import verification, verify

FILES = {"base": "model", "adapter": "adapter_model", "merged": "model", "other": "model"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tensors = tiny_llama(1)
    write_full(tmp_path / "base", tensors)
    write_full(tmp_path / "other", tiny_llama(1, seed=5))
    write_adapter(tmp_path / "adapter", low_rank(tensors))
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    return tmp_path


def _rewrite(file: Path) -> None:
    """As it was: only the time of change tells."""
    file.write_bytes(file.read_bytes())


@pytest.mark.parametrize("changed", ["base", "adapter"])
def test_a_merge_of_what_has_changed_meanwhile_is_not_kept(
    changed: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, write = folder / changed / f"{FILES[changed]}.safetensors", merging.write_beside

    def late(*rest: Any) -> None:
        write(*rest)
        _rewrite(file)

    monkeypatch.setattr(merging, "write_beside", late)
    with pytest.raises(CheckpointError, match=f"{file}: was changed or replaced while it was read"):
        merge(folder / "base", folder / "adapter", folder / "out")
    assert not list(folder.glob("*out*"))


@pytest.mark.parametrize("changed", FILES)
def test_there_is_no_verdict_on_what_has_changed_meanwhile(
    changed: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, found = folder / changed / f"{FILES[changed]}.safetensors", verification.findings_of
    calls: list[object] = []

    def late(*rest: Any) -> Any:
        calls.append(rest)
        if len(calls) == 2:  # of both bases
            _rewrite(file)
        return found(*rest)

    paths = folder / "merged", folder / "base", folder / "adapter"
    assert verify(*paths, candidates=[folder / "other"]).is_right
    monkeypatch.setattr(verification, "findings_of", late)
    with pytest.raises(CheckpointError, match=f"{file}: was changed or replaced while it was read"):
        verify(*paths, candidates=[folder / "other"])
