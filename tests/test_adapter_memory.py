"""An adapter's change is never held whole: memory stays far below one merged copy of its matrix."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from builders import write_adapter, write_full

OUTPUTS, INPUTS, RANK = 4096, 14336, 64
NAME = "model.layers.0.mlp.down_proj"
MOST_MB = 300

# The process's start is when it has imported what it needs: from then on weights are what costs.
MEASURE = """
import json, sys, threading, psutil
import wdecomp, wdecomp.comparison
process, peak, done = psutil.Process(), [0], threading.Event()
def sample():
    while not done.wait(0.01):
        peak[0] = max(peak[0], process.memory_full_info().pss)
start = process.memory_full_info().pss
thread = threading.Thread(target=sample)
thread.start()
modules = wdecomp.compare(*sys.argv[1:], columns="both").modules
done.set()
thread.join()
print(json.dumps({"mb": (peak[0] - start) / 1e6, "rows": len(modules)}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(OUTPUTS, INPUTS, generator=random).mul_(0.02)
    factors = {
        NAME: (
            torch.randn(RANK, INPUTS, generator=random) * 0.01,
            torch.randn(OUTPUTS, RANK, generator=random) * 0.01,
        )
    }
    write_full(folder / "base", {f"{NAME}.weight": weight.bfloat16()})
    write_adapter(folder / "lora", factors)
    write_adapter(folder / "dora", factors, {NAME: weight.norm(dim=1) * 1.01})
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="PSS is Linux's")
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_a_wide_adapted_matrix_costs_less_than_300_mb(method: str, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, folder / "base", folder / method],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["rows"] == 2
    assert found["mb"] < MOST_MB, f"{found['mb']:.0f} MB"
