"""A file that shrinks or fails under a mapping ends in a sentence, not in a dead process."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import write_full

from wdecomp.checkpoint import Matrix, MatrixReader, open_checkpoint, surviving, whole
from wdecomp.checkpoint.mapping import LEAST
from wdecomp.errors import CheckpointError

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="windows are mapped on Linux only"
)
NAME = "model.layers.0.self_attn.q_proj.weight"
SHAPE = (512, 1024)


def _written(folder: Path) -> tuple[Path, Matrix]:
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    path = write_full(folder / "a", {NAME: weight})
    matrix = Matrix(open_checkpoint(path).tensors[NAME], input_first=False)
    assert matrix.nbytes > LEAST
    return next(path.glob("*.safetensors")), matrix


def test_what_is_mapped_is_what_is_copied(tmp_path: Path) -> None:
    _, matrix = _written(tmp_path)
    with MatrixReader(matrix) as reader:
        assert reader.sight == 0
        copied = reader.read(whole(SHAPE)).copy()
    with surviving(), MatrixReader(matrix) as reader:
        assert reader.sight > 0
        seen = reader.read(whole(SHAPE))
        assert not seen.flags.writeable
        np.testing.assert_array_equal(seen, copied)


def test_a_file_cut_while_it_is_mapped_is_an_error_that_names_it(tmp_path: Path) -> None:
    file, matrix = _written(tmp_path)

    def read_and_cut() -> None:
        with MatrixReader(matrix) as reader:
            block = reader.read(whole(SHAPE))
            os.truncate(file, file.stat().st_size // 2)
            assert block[-1].sum() == 0  # zeros take the place of what is gone
            assert block[0].any()

    with (
        surviving(),
        pytest.raises(CheckpointError, match=f"{file.name}: ended while '{NAME}'"),
    ):
        read_and_cut()


def test_the_handler_that_was_there_is_there_again() -> None:
    """In a process of its own: without a window of ours, a lost page still ends it."""
    program = """
import mmap, os, sys, tempfile
from wdecomp.checkpoint import surviving
file = tempfile.TemporaryFile()
file.truncate(8192)
other = mmap.mmap(file.fileno(), 8192)
with surviving():
    print("inside", flush=True)
    if sys.argv[1] == "inside":
        os.truncate(file.fileno(), 0)
        other[5000]
print("outside", flush=True)
os.truncate(file.fileno(), 0)
other[5000]
print("alive")
"""
    for where, said in (("inside", ["inside"]), ("outside", ["inside", "outside"])):
        ran = subprocess.run(
            [sys.executable, "-c", program, where], capture_output=True, text=True, timeout=60
        )
        assert ran.returncode == -7  # SIGBUS
        assert ran.stdout.split() == said


def test_a_run_over_a_file_that_is_cut_leaves_one_line(tmp_path: Path) -> None:
    """The command itself, with the file cut at the first block that its kernel sees."""
    random = torch.Generator().manual_seed(0)
    base = {NAME: torch.randn(SHAPE, generator=random)}
    write_full(tmp_path / "a", base)
    write_full(tmp_path / "b", {NAME: base[NAME] + 0.01})
    program = """
import os, sys
from pathlib import Path
from wdecomp.decomposition.sums import SharedSums
from wdecomp.cli import main
add = SharedSums.add
def cut(self, *a):
    [file] = Path("b").glob("*.safetensors")
    os.truncate(file, 4096)
    add(self, *a)
SharedSums.add = cut
main(["compare", "a", "b", "-q", "-o", "r"])
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert ran.returncode == 1
    assert ran.stdout == ""
    [line] = ran.stderr.splitlines()
    assert "ended while" in line
    assert NAME in line
    assert not (tmp_path / "r" / "modules.parquet").exists()
