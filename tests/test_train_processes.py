"""`wdecomp train` in two processes beside one, and what each of them sees of a batch."""

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose
from safetensors.torch import load_file
from torch import Tensor, nn
from train_folder import flags, run, write_folder

import wdecomp
from wdecomp.errors import TrainingError
from wdecomp.train import processes as module
from wdecomp.train.processes import own_device, processes, require_shares, share_loss, share_of
from wdecomp.train.tasks import Example, loss_of

EXAMPLES = [
    *(Example([2, 4, 5, 3]), Example([2, 6, 7, 8, 4, 3], prompt=3), Example([5, 6], label=1)),
    *(Example([7, 3, 3], label=1), Example([8, 4, 6, 1, 2]), Example([1, 2, 3, 4, 5, 6], prompt=1)),
    Example([3, 1]),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("train"))


def in_two(out: Path, given: list[str]) -> Path:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    ran = subprocess.run(
        [*command, "-m", "wdecomp", "train", *given, "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stdout.count("\n") == 1  # of the first process alone
    return out


def test_two_processes_train_as_one_does(folder: Path, tmp_path: Path) -> None:
    # 20 rows in batches of 6 or 7, which no two processes share evenly; nor do they the tokens
    given = [*flags(folder, "llama", "lm"), "--method", "dora", "--steps", "4", "--batch", "7"]
    given += ["--accumulate", "2", "--quantize", "nf4", "--record-every", "2"]
    alone, together = run(tmp_path / "one", given), in_two(tmp_path / "two", given)
    steps, theirs = (pd.read_csv(out / "steps.csv") for out in (together, alone))
    assert_allclose(steps, theirs, rtol=1e-5)
    for file in alone.glob("*/*.safetensors"):
        ours = load_file(together / file.relative_to(alone))
        for name, tensor in load_file(file).items():
            # AdamW's steps of 0.01 have the sign of gradients that may be rounding alone
            assert (ours[name] - tensor).abs().float().median() < 1e-6
    live = [wdecomp.read_results(out / "live").modules for out in (together, alone)]
    pd.testing.assert_frame_equal(*live, rtol=1e-3)


class Table(nn.Module):
    """A stand-in for a model: a row of logits for each token."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rows = nn.Parameter(torch.randn(9, 9, dtype=torch.float64))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        logits = self.rows[input_ids]
        return SimpleNamespace(logits=logits if self.lm else logits[:, 0, :2])

    lm = True


@pytest.mark.parametrize("task", ["lm", "classify"])
@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_the_mean_over_shares_is_the_loss_of_the_batch(
    monkeypatch: pytest.MonkeyPatch, world: int, task: Any
) -> None:
    model, loss = Table(), loss_of(task, 0)
    model.lm = task == "lm"
    examples = [
        Example(each.ids, label=each.label or 0, prompt=each.prompt if model.lm else 0)
        for each in EXAMPLES
    ]
    monkeypatch.setattr(module, "world", lambda: world)
    losses, seen = [], []
    for i in range(world):
        monkeypatch.setattr(module, "rank", lambda i=i: i)
        share = share_of(examples, task)
        seen += share.examples
        losses.append(share_loss(model, share, loss))
    assert sorted(map(repr, seen)) == sorted(map(repr, examples))
    # The loss is a float32.
    torch.testing.assert_close(torch.stack(losses).mean(), loss(model, examples), rtol=1e-6, atol=0)


def test_what_cannot_be_shared_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    require_shares("pairs", 20, 10)
    monkeypatch.setattr(module, "world", lambda: 3)
    require_shares("lm", 20, 6)
    with pytest.raises(TrainingError, match=r"^batch: some are of 2 rows, at least 3 were exp"):
        require_shares("classify", 20, 7)
    with pytest.raises(TrainingError, match=r"^task: is pairs in 3 processes, classify or lm"):
        require_shares("pairs", 20, 1)


@pytest.mark.parametrize(
    ("said", "ends"),
    [
        ([None, None], [None, None]),
        (["a: is b.", "a: is b."], [TrainingError, SystemExit]),
        ([None, "a: is b."], [SystemExit, TrainingError]),
        (["a: is b.", None], [TrainingError, SystemExit]),
    ],
)
def test_what_one_process_raises_ends_all_and_is_said_once(
    monkeypatch: pytest.MonkeyPatch, said: list[str | None], ends: list[Any]
) -> None:
    def gathered(found: list[Any], own: Any) -> None:
        assert own == said[module.rank()]
        found[:] = said

    monkeypatch.setattr(module.dist, "all_gather_object", gathered)
    monkeypatch.setattr(module, "world", lambda: 2)
    monkeypatch.setattr(module, "SAYING", 0.0)
    for i in range(2):
        monkeypatch.setattr(module, "rank", lambda i=i: i)
        with nullcontext() if ends[i] is None else pytest.raises(ends[i]), module.together():
            if said[i] is not None:
                raise TrainingError(said[i])


def test_processes_that_torchrun_did_not_start_are_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    message = r"^WORLD_SIZE: is 2, but the processes do not find each other \(.*\)\. Start them"
    with pytest.raises(TrainingError, match=message) as caught, processes("cpu"):
        pass
    assert "\n" not in str(caught.value)
    with pytest.raises(TrainingError, match=r"^device: is 'cuda:1' in several processes, cpu or"):
        own_device("cuda:1")
