"""What is read past the page cache is what is mapped, and leaves nothing there."""

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import write_full

import wdecomp
from wdecomp.checkpoint import (
    Matrix,
    MatrixReader,
    Rectangle,
    direct,
    is_cached,
    open_checkpoint,
    past_the_cache,
    surviving,
)
from wdecomp.errors import CheckpointError
from wdecomp.scan import engine

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="pages are read past the cache on Linux only"
)
NAME = "model.layers.0.self_attn.q_proj.weight"
SHAPE = (6000, 1024)
WIDTH = 3 << 20  # bytes of a window: there are several, and the last is smaller
BLOCK = 500  # rows


def _written(folder: Path) -> tuple[Path, Matrix]:
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    path = write_full(folder / "a", {NAME: weight})
    matrix = Matrix(open_checkpoint(path).tensors[NAME], input_first=False)
    return next(path.glob("*.safetensors")), matrix


def _forget(*files: Path) -> None:
    for file in files:
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _cached(file: Path) -> bool | None:
    with file.open("rb") as stream:
        return is_cached(stream.fileno(), 1 << 20, 20 << 20)


def _read(matrix: Matrix, at_block: Callable[[int], None] = lambda _: None) -> np.ndarray:
    blocks = []
    with surviving(WIDTH), past_the_cache(), MatrixReader(matrix) as reader:
        for top in range(0, SHAPE[0], BLOCK):
            rows = slice(top, min(top + BLOCK, SHAPE[0]))
            blocks.append(reader.read(Rectangle(rows, slice(0, SHAPE[1]))).copy())
            at_block(top)
    return np.concatenate(blocks)


@pytest.fixture
def filled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of each read past the cache."""
    fill, found = direct._fill, []

    def noting(descriptor: int, start: int, buffer: np.ndarray) -> int:
        found.append(fill(descriptor, start, buffer))
        return found[-1]

    monkeypatch.setattr(direct, "_fill", noting)
    return found


def test_what_is_not_cached_is_read_and_stays_so(tmp_path: Path, filled: list[int]) -> None:
    file, matrix = _written(tmp_path)
    assert matrix.tensor.offset % direct.SECTOR  # so that the first page is shared
    _forget(file)
    if _cached(file) is not False:
        pytest.skip("the page cache of this file system cannot be emptied or looked into")
    found = _read(matrix)
    assert _cached(file) is False
    if not filled:
        pytest.skip("this file system has no O_DIRECT")
    assert sum(filled) >= matrix.nbytes
    assert max(filled) <= WIDTH + 2 * direct.SECTOR
    with MatrixReader(matrix, copied=True) as reader:
        np.testing.assert_array_equal(
            found, reader.read(Rectangle(slice(0, SHAPE[0]), slice(0, SHAPE[1])))
        )


def test_what_is_cached_is_mapped(tmp_path: Path, filled: list[int]) -> None:
    file, matrix = _written(tmp_path)
    file.read_bytes()
    assert np.isfinite(_read(matrix)).all()
    assert not filled


def test_buffers_have_large_pages() -> None:
    """With small ones a disk is asked for less at a time: half as fast, as measured."""
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.is_file() or "[never]" in setting.read_text():
        pytest.skip("this system has no large pages")
    buffer = direct._buffer_of(8 << 20)
    buffer[:] = 1
    assert buffer.ctypes.data % (2 << 20) == 0
    assert _large_pages_at(buffer.ctypes.data) > 0


def _large_pages_at(address: int) -> int:
    """Bytes of large pages in the mapping that an address lies in."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *words = line.split()
        if not name.endswith(":"):
            first, last = (int(each, 16) for each in name.split("-"))
            inside = first <= address < last
        elif inside and name == "AnonHugePages:":
            return int(words[0]) << 10
    return 0


def test_a_file_system_without_it_has_its_files_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, matrix = _written(tmp_path)
    expected = _read(matrix)
    _forget(file)
    opened = os.open

    def refusing(path: str, flags: int, *rest: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no O_DIRECT")
        return opened(path, flags, *rest)

    monkeypatch.setattr(os, "open", refusing)
    np.testing.assert_array_equal(_read(matrix), expected)


def test_a_file_that_is_cut_is_an_error_that_names_it(tmp_path: Path) -> None:
    file, matrix = _written(tmp_path)
    _forget(file)

    def cut(top: int) -> None:
        if top == BLOCK:
            os.truncate(file, 8 << 20)

    with pytest.raises(CheckpointError, match=f"{file.name}: ended while '{NAME}'"):
        _read(matrix, cut)


@pytest.mark.parametrize("workers", [1, 3])
def test_tables_are_the_same(
    tmp_path: Path, filled: list[int], monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """Of a comparison that is larger than a share of the memory."""
    random = torch.Generator().manual_seed(1)
    base = {NAME: torch.randn(SHAPE, generator=random)}
    a = write_full(tmp_path / "a", base)
    b = write_full(tmp_path / "b", {NAME: base[NAME] + 0.01 * torch.randn(SHAPE, generator=random)})
    files = [next(path.glob("*.safetensors")) for path in (a, b)]
    mapped = wdecomp.compare(a, b, out=tmp_path / "mapped").modules
    assert not filled
    _forget(*files)
    cold = all(_cached(file) is False for file in files)
    monkeypatch.setattr(engine, "CACHED", 0)
    seen = wdecomp.compare(a, b, out=tmp_path / "read", workers=workers).modules
    assert seen.equals(mapped)
    if cold:
        assert filled
        assert max(filled) <= direct.WIDEST_READ + 2 * direct.SECTOR
