"""The sample of a base that its rounding is told from: the same whatever blocks it comes in."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from wdecomp.checkpoint import Matrix, open_checkpoint, read_matrix
from wdecomp.dtypes import widen
from wdecomp.pairing import pair
from wdecomp.scan import measure as module
from wdecomp.scan.measure import Sample, measure


@pytest.mark.parametrize("block_bytes", [1, 300, 5000, 1 << 20])
@pytest.mark.parametrize(
    "given",
    [
        {"input_first": False},
        {"input_first": True},
        {"input_first": False, "picked": (range(3, 24),)},
        {"input_first": False, "picked": (range(0, 24, 2),)},
    ],
)
def test_rows_from_all_over_the_matrix(
    given: dict[str, Any], block_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SAMPLE_WIDTH", 30)
    weight = torch.randn(24, 40, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    save_file({"x.weight": weight}, tmp_path / "model.safetensors")
    matrix = Matrix(open_checkpoint(tmp_path).tensors["x.weight"], **given)
    sample, numbers = Sample(matrix, matrix.shape), widen(read_matrix(matrix))
    for at in matrix.rectangles(matrix.shape, block_bytes):
        sample.add(read_matrix(matrix)[at.outputs, at.inputs], at)
    stored = numbers.T if given["input_first"] else numbers
    rows = np.linspace(0, len(stored) - 1, 8).astype(int)
    np.testing.assert_array_equal(sample.weights, stored[rows, :30])


def test_few_rows_are_taken_once(tmp_path: Path) -> None:
    weight = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    for name, tensor in (("base", weight), ("tuned", weight * 1.01)):
        (tmp_path / name).mkdir()
        save_file(
            {"model.layers.0.mlp.up_proj.weight": tensor}, tmp_path / name / "model.safetensors"
        )
    pairs = [*pair(*(open_checkpoint(tmp_path / n) for n in ("base", "tuned"))).matrices.values()]
    (found,) = measure(pairs, 1 << 20, lambda _: None)
    assert found.sample is not None
    np.testing.assert_array_equal(found.sample.weights, weight.numpy())
    assert found.rounding(pairs[0]).delta_direction > 0
