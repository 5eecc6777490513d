"""What an adapter's update makes of one stored tensor, read in rectangles."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file
from torch import Tensor

from wdecomp.adapter import Adapted, ChangeReader, ModuleUpdate
from wdecomp.adapter.change import Nothing
from wdecomp.checkpoint import Matrix, MatrixReader, StoredTensor, read_header
from wdecomp.dtypes import Floats, widen

BLOCKS = (100, 300, 1 << 20)


def stored(file: Path, tensors: dict[str, Tensor]) -> dict[str, StoredTensor]:
    """The tensors, once they are in a safetensors file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, file)
    return read_header(file).tensors


def tuned(update: ModuleUpdate, base: StoredTensor, block: int, input_first: bool) -> Floats:
    """W0 + ΔW, (output, input)."""
    matrix = Matrix(base, input_first)
    adapted = Adapted(update.update, update.magnitude, matrix)
    found = np.zeros(matrix.shape)
    with MatrixReader(matrix) as reader, ChangeReader(adapted, matrix) as change:
        for at in matrix.rectangles(matrix.shape, block):
            w0 = reader.read(at)
            found[at.outputs, at.inputs] = widen(w0) + change.beside(w0, at).astype(np.float64)
    return found


def check(
    update: ModuleUpdate,
    base: StoredTensor,
    want: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    input_first: bool = False,
) -> None:
    """That W0 + ΔW is the wanted weight, however it is cut, and that anything was wanted at all."""
    start = tuned(ModuleUpdate(Nothing()), base, 1 << 20, input_first)
    assert np.abs(want - start).max() > 1e-3 * np.abs(want).max()
    for block in BLOCKS:
        monkeypatch.setattr("wdecomp.adapter.updates.BLOCK_BYTES", block)
        off = np.abs(tuned(update, base, block, input_first) - want).max()
        assert off <= 1e-5 * np.abs(want).max(), (block, off)
