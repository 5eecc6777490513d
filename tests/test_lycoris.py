"""Files of LyCORIS, read and merged, beside the forward pass of LyCORIS' own modules."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lycoris import LycorisNetwork, create_lycoris
from numpy.testing import assert_allclose
from oracle import adapted_weight, check_columns, check_sound
from safetensors.torch import load_file, save_file
from torch import nn

from wdecomp.checkpoint import open_checkpoint
from wdecomp.pairing import Pairing, pair


class Net(nn.Module):
    """A linear layer, convolutions of two kernels and a norm, none of them square."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(12, 64)
        self.narrow = nn.Conv2d(8, 32, 1)
        self.wide = nn.Conv2d(8, 16, 3)
        self.norm = nn.GroupNorm(4, 16)


CASES: dict[str, dict[str, Any]] = {
    "lora": {"algo": "lora"},
    "lora dora per output": {"algo": "lora", "dora_wd": True, "wd_on_output": True},
    "lora dora per input": {"algo": "lora", "dora_wd": True, "wd_on_output": False},
    "locon tucker": {"algo": "lora", "use_tucker": True},
    "locon tucker dora per input": {
        "algo": "lora",
        "use_tucker": True,
        "dora_wd": True,
        "wd_on_output": False,
    },
    "loha": {"algo": "loha"},
    "loha tucker": {"algo": "loha", "use_tucker": True},
    "loha dora per output": {"algo": "loha", "dora_wd": True, "wd_on_output": True},
    "loha dora per input": {"algo": "loha", "dora_wd": True, "wd_on_output": False},
    "lokr": {"algo": "lokr", "factor": 4},
    "lokr both decomposed": {"algo": "lokr", "factor": 8, "decompose_both": True, "linear_dim": 1},
    "lokr full": {"algo": "lokr", "factor": 4, "full_matrix": True},
    "lokr tucker": {"algo": "lokr", "factor": 2, "use_tucker": True, "linear_dim": 2},
    "lokr dora per input": {"algo": "lokr", "factor": 4, "dora_wd": True, "wd_on_output": False},
    "diag-oft": {"algo": "diag-oft", "linear_dim": 4},
    "diag-oft rescaled": {"algo": "diag-oft", "linear_dim": 4, "rescaled": True},
    "diag-oft constrained": {"algo": "diag-oft", "linear_dim": 4, "constraint": 0.01},
    "boft": {"algo": "boft", "linear_dim": 4},
    "boft rescaled": {"algo": "boft", "linear_dim": 4, "rescaled": True},
    "ia3": {"algo": "ia3"},
    "full": {"algo": "full"},
}


def _trained(case: str, folder: Path, dtype: torch.dtype = torch.float32) -> LycorisNetwork:
    """base/ and adapter.safetensors, every factor away from where it starts."""
    torch.manual_seed(0)
    net = Net()
    folder.mkdir(exist_ok=True)
    (folder / "base").mkdir()
    save_file(dict(net.state_dict()), folder / "base/model.safetensors")
    settings = {"linear_dim": 3, "linear_alpha": 7.0} | CASES[case]
    settings |= {"conv_dim": settings["linear_dim"], "conv_alpha": 7.0}
    LycorisNetwork.apply_preset({"target_module": ["Net"], "target_name": [".*"]})
    network = create_lycoris(net, 1.0, **settings)
    network.apply_to()
    for name, parameter in network.named_parameters():
        noise = torch.randn_like(parameter)
        if name.endswith(("dora_scale", "rescale")):
            parameter.data *= 1 + 0.2 * torch.rand_like(parameter)
        elif "norm" in name and "w_norm" not in name and "b_norm" not in name:
            continue
        else:
            parameter.data = 0.15 * noise
    network.save_weights(str(folder / "adapter.safetensors"), dtype, {})
    network.net = net  # type: ignore[assignment]
    return network


def _effective(network: LycorisNetwork) -> dict[str, np.ndarray]:
    """(out, in·k) of every module as its forward pass has it: outputs of unit inputs, less bias."""
    found = {}
    for lora in network.loras:
        module = lora.org_module[0]
        name = lora.lora_name
        if isinstance(module, nn.Linear):
            ask = torch.eye(module.in_features)
            answer = module(ask) - module(torch.zeros(1, module.in_features))
            found[name] = answer.T.detach().numpy()
        elif isinstance(module, nn.Conv2d):
            size = module.kernel_size
            unit = torch.eye(module.in_channels * size[0] * size[1])
            ask = unit.reshape(-1, module.in_channels, *size)
            answer = module(ask) - module(torch.zeros_like(ask))
            found[name] = answer.reshape(len(unit), -1).T.detach().numpy()
    return found


def _paired(folder: Path) -> Pairing:
    return pair(open_checkpoint(folder / "base"), open_checkpoint(folder / "adapter.safetensors"))


@pytest.mark.parametrize("case", CASES)
def test_the_change_is_that_of_the_forward_pass(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wdecomp.adapter.updates.BLOCK_BYTES", 300)
    network = _trained(case, tmp_path)
    effective = _effective(network)
    found = _paired(tmp_path)
    assert len(found.matrices) >= 3, found.left_out
    for name, each in found.matrices.items():
        want = effective["lycoris_" + name.removesuffix(".weight").replace(".", "_")]
        with np.errstate(all="raise"):
            assert np.abs(want).max() > 0
        for block_bytes in (100, 300, 1 << 20):
            got = adapted_weight(each, block_bytes)
            assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
        check_columns(each, want.astype(np.float64))
    check_sound(tmp_path / "base", tmp_path / "adapter.safetensors")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_factors_in_half_precision_are_read_as_they_are_stored(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    _trained("lora", tmp_path, dtype)
    tensors = load_file(tmp_path / "adapter.safetensors")
    each = _paired(tmp_path).matrices["up.weight"]
    down, up = (tensors[f"lycoris_up.lora_{part}.weight"].double() for part in ("down", "up"))
    base = load_file(tmp_path / "base/model.safetensors")["up.weight"].double()
    alpha = float(tensors["lycoris_up.alpha"])
    want = base + alpha / 3 * up @ down
    assert_allclose(adapted_weight(each, 300), want.numpy(), rtol=1e-5, atol=1e-6)
