"""Two processes over gloo beside one process."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from numpy.testing import assert_allclose
from run_in_processes import batches, loss, model, settings
from safetensors.torch import load_file

from wdecomp.errors import TrainingError
from wdecomp.train import train

SCRIPT = Path(__file__).with_name("run_in_processes.py")


def in_two(method: str, how: str, out: Path) -> list[float]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    ran = subprocess.run(
        [*command, str(SCRIPT), method, how, str(out)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    losses: list[float] = json.loads((out / "losses.json").read_text())
    return losses


@pytest.mark.parametrize(
    ("method", "how"),
    [("full", "fsdp"), ("exact", "fsdp"), ("dora", "ddp")],
)
def test_two_processes_train_as_one_does(tmp_path: Path, method: str, how: str) -> None:
    alone = train(model(), batches(), loss, settings(method), tmp_path / "one")
    together = in_two(method, how, tmp_path / "two")
    assert len(together) == len(alone)
    assert_allclose(together, [step.loss for step in alone], rtol=1e-5)
    files = [file.relative_to(tmp_path / "one") for file in tmp_path.glob("one/*/*.safetensors")]
    assert files
    for file in files:
        ours, theirs = load_file(tmp_path / "two" / file), load_file(tmp_path / "one" / file)
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=2e-4)  # of steps of 3e-3


def test_an_interrupted_sharded_run_goes_on(tmp_path: Path) -> None:
    whole = in_two("dora", "fsdp", tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    assert in_two("dora", "fsdp", tmp_path / "again") == whole


def test_one_process_cannot_share_its_work(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="parallel: is 'ddp', but this is one process"):
        train(model(), batches(), loss, settings("lora"), tmp_path, across="ddp")
