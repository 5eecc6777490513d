"""Every part that LyCORIS stores of a module, beside the forward pass of the module itself."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gathered import check, stored, tuned
from lycoris.modules.boft import ButterflyOFTModule
from lycoris.modules.diag_oft import DiagOFTModule
from lycoris.modules.dylora import DyLoraModule
from lycoris.modules.full import FullModule
from lycoris.modules.glora import GLoRAModule, _glora_weight
from lycoris.modules.ia3 import IA3Module
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from lycoris.modules.norms import NormModule
from lycoris.modules.tlora import TLoraModule
from torch import Tensor, nn

from wdecomp.adapter import Adapter
from wdecomp.adapter.kohya import is_kohya, read_kohya
from wdecomp.checkpoint import StoredTensor
from wdecomp.errors import AdapterError

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(12, 64),
    "conv1x1": lambda: nn.Conv2d(12, 32, 1),
    "conv3x3": lambda: nn.Conv2d(8, 16, 3),
}
CASES: dict[str, tuple[type, dict[str, Any]]] = {
    "lora whole alpha": (LoConModule, {"lora_dim": 3, "alpha": 7}),
    "lora alpha 0": (LoConModule, {"lora_dim": 3, "alpha": 0}),
    "lora rank-stabilised": (LoConModule, {"lora_dim": 4, "alpha": 6.0, "rs_lora": True}),
    "lora scalar folded in": (LoConModule, {"lora_dim": 3, "alpha": 7.0, "use_scalar": True}),
    "loha rank-stabilised": (LohaModule, {"lora_dim": 4, "alpha": 6.0, "rs_lora": True}),
    "loha scalar folded in": (LohaModule, {"lora_dim": 3, "alpha": 2.0, "use_scalar": True}),
    "lokr rank-stabilised": (
        LokrModule,
        {"lora_dim": 1, "alpha": 3.0, "factor": 4, "decompose_both": True, "rs_lora": True},
    ),
    "lokr both whole, huge alpha": (
        LokrModule,
        {"lora_dim": 5, "alpha": 1e4, "factor": 2, "full_matrix": True},
    ),
    "glora": (GLoRAModule, {"lora_dim": 3, "alpha": 7.0}),
    "ia3 on outputs": (IA3Module, {"train_on_input": False}),
    "ia3 on inputs": (IA3Module, {"train_on_input": True}),
    "diag-oft bounded": (DiagOFTModule, {"lora_dim": 4, "constraint": 0.01, "rescaled": True}),
    "boft bounded": (ButterflyOFTModule, {"lora_dim": 4, "constraint": 0.01, "rescaled": True}),
}


def _made(kind: type, layer: nn.Module, settings: dict[str, Any]) -> Any:
    """A LyCORIS module away from where it starts."""
    made = kind("lycoris_x", layer, 1.0, **settings)
    for name, parameter in made.named_parameters():
        if name.endswith(("dora_scale", "rescale", "scalar")):
            parameter.data = parameter.data * 1.0 + 0.2 + 0.3 * torch.rand_like(parameter)
        else:
            parameter.data = 0.3 * torch.randn_like(parameter)
    return made


def _effective(made: Any, layer: nn.Module) -> np.ndarray:
    """(out, in·k): the answers to unit inputs, less the answer to none."""
    if isinstance(layer, nn.Linear):
        ask = torch.eye(layer.in_features)
    else:
        units = torch.eye(layer.weight[0].numel())
        ask = units.reshape(-1, *layer.weight.shape[1:])
    with torch.no_grad():
        answer = made(ask) - made(torch.zeros_like(ask))
    return answer.reshape(len(ask), -1).T.numpy()


def _read(folder: Path, parts: dict[str, Tensor], **arguments: Any) -> Adapter:
    tensors = stored(folder / "a.safetensors", {f"lycoris_x.{k}": t for k, t in parts.items()})
    assert is_kohya(tensors)
    metadata = {"ss_network_args": json.dumps(arguments)} if arguments else {}
    return read_kohya(tensors, "a.safetensors", metadata)


def _base(folder: Path, layer: nn.Module) -> StoredTensor:
    return stored(folder / "b.safetensors", {"x": layer.weight})["x"]


@pytest.mark.parametrize("where", LAYERS)
@pytest.mark.parametrize("case", CASES)
def test_the_change_is_that_of_the_modules_forward_pass(
    case: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    layer, (kind, settings) = LAYERS[where](), CASES[case]
    made = _made(kind, layer, settings)
    adapter = _read(tmp_path, made.state_dict())
    assert adapter.left_out == ()
    check(
        adapter.updates["lycoris_x.weight"],
        _base(tmp_path, layer),
        _effective(made, layer),
        monkeypatch,
    )


@pytest.mark.parametrize("on_output", [True, False])
@pytest.mark.parametrize("kind", [LoConModule, LohaModule, LokrModule])
def test_the_axis_of_a_magnitude_is_in_its_shape_even_where_the_weight_is_square(
    kind: type, on_output: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(2)
    layer = nn.Linear(16, 16)
    settings = {"lora_dim": 2, "alpha": 3.0, "weight_decompose": True, "wd_on_out": on_output}
    made = _made(kind, layer, settings)
    update = _read(tmp_path, made.state_dict()).updates["lycoris_x.weight"]
    assert update.magnitude is not None
    assert update.magnitude.axis == ("output" if on_output else "input")
    check(update, _base(tmp_path, layer), _effective(made, layer), monkeypatch)


@pytest.mark.parametrize("on_output", [True, False])
@pytest.mark.parametrize("kind", [LoConModule, LohaModule, LokrModule])
@pytest.mark.parametrize("tucker", [True, False])
def test_a_magnitude_of_a_convolution_is_of_its_channels(
    kind: type, on_output: bool, tucker: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(11)
    layer = nn.Conv2d(9, 9, 3)
    settings = {"weight_decompose": True, "wd_on_out": on_output, "use_tucker": tucker}
    made = _made(kind, layer, {"lora_dim": 1, "alpha": 3.0} | settings)
    update = _read(tmp_path, made.state_dict()).updates["lycoris_x.weight"]
    check(update, _base(tmp_path, layer), _effective(made, layer), monkeypatch)


@pytest.mark.parametrize("shape", [(1, 9), (9, 1)])
def test_one_magnitude_is_of_the_side_with_one_feature(
    shape: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(3)
    layer = nn.Linear(shape[1], shape[0])
    of_one = shape[0] == 1
    made = _made(
        LoConModule,
        layer,
        {"lora_dim": 2, "alpha": 3.0, "weight_decompose": True, "wd_on_out": of_one},
    )
    assert tuple(made.state_dict()["dora_scale"].shape) == (1, 1)
    update = _read(tmp_path, made.state_dict()).updates["lycoris_x.weight"]
    check(update, _base(tmp_path, layer), _effective(made, layer), monkeypatch)


@pytest.mark.parametrize("kind", [LohaModule, LokrModule])
def test_lycoris_own_merge_of_loha_and_lokr_is_not_what_was_trained(
    kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(4)
    layer = nn.Linear(12, 64)
    made = _made(kind, layer, {"lora_dim": 2, "alpha": 6.0, "factor": 4})
    update = _read(tmp_path, made.state_dict()).updates["lycoris_x.weight"]
    base = _base(tmp_path, layer)
    check(update, base, _effective(made, layer), monkeypatch)
    start = layer.weight.detach().numpy()
    trained = tuned(update, base, 300, False) - start
    merged = made.get_merged_weight()[0].detach().numpy() - start
    assert np.abs(merged / trained - 3.0).max() < 0.01  # alpha/r once more


def test_a_rank_stabilised_glora_does_not_say_so_in_its_alpha(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(5)
    layer = nn.Conv2d(8, 16, 3)
    made = _made(GLoRAModule, layer, {"lora_dim": 4, "alpha": 6.0, "rs_lora": True})
    adapter = _read(tmp_path, made.state_dict(), algo="glora", rs_lora="True")
    update = adapter.updates["lycoris_x.weight"]
    check(update, _base(tmp_path, layer), _effective(made, layer), monkeypatch)


def test_a_glora_in_tucker_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(6)
    layer, r = nn.Conv2d(8, 16, 3), 3
    shapes = {"a1": (8, r), "a2": (r, 8), "b1": (16, r), "b2": (r, 8)}
    parts = {f"{name}.weight": 0.3 * torch.randn(*shape, 1, 1) for name, shape in shapes.items()}
    core = 0.3 * torch.randn(r, r, 3, 3)
    a1, a2, b1, b2 = parts.values()
    change = _glora_weight(layer.weight, a1, a2, b1, b2, core, 2.0 / r)
    alpha = torch.tensor(2.0)
    adapter = _read(tmp_path, parts | {"bm.weight": core, "alpha": alpha})
    want = (layer.weight + change).detach().flatten(1).numpy()
    check(adapter.updates["lycoris_x.weight"], _base(tmp_path, layer), want, monkeypatch)


@pytest.mark.parametrize("where", LAYERS)
def test_dylora_is_read_at_its_full_rank_and_that_is_said(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(7)
    layer = LAYERS[where]()
    made = _made(DyLoraModule, layer, {"lora_dim": 4, "block_size": 2, "alpha": 6.0})
    adapter = _read(tmp_path, made.state_dict(), algo="dylora")
    up, down = torch.cat(list(made.up_list), 1), torch.cat(list(made.down_list))
    want = (layer.weight.flatten(1) + 6.0 / 4 * up @ down).detach().numpy()
    check(adapter.updates["lycoris_x.weight"], _base(tmp_path, layer), want, monkeypatch)
    assert "DyLoRA" in adapter.notes[0]


@pytest.mark.parametrize("where", LAYERS)
def test_a_whole_change_has_one_of_the_bias_beside_it(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(8)
    layer = LAYERS[where]()
    made = _made(FullModule, layer, {})
    want = _effective(made, layer)
    bias = layer.bias + made.bias
    parts = {"diff": made.weight.data, "diff_b": made.bias.data}
    adapter = _read(tmp_path, parts)
    check(adapter.updates["lycoris_x.weight"], _base(tmp_path, layer), want, monkeypatch)
    start = stored(tmp_path / "c.safetensors", {"x": layer.bias})["x"]
    found = adapter.updates["lycoris_x.bias"]
    check(found, start, bias.detach().numpy()[None], monkeypatch)
    assert adapter.method == "full"


def test_norms_are_changed_in_weight_and_bias(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(9)
    layer = nn.GroupNorm(4, 16)
    made = _made(NormModule, layer, {})
    adapter = _read(tmp_path, made.state_dict())
    weight, bias = made.make_weight()
    for leaf, start, want in (("weight", layer.weight, weight), ("bias", layer.bias, bias)):
        base = stored(tmp_path / f"{leaf}.safetensors", {"x": start})["x"]
        update = adapter.updates[f"lycoris_x.{leaf}"]
        check(update, base, want.detach().numpy()[None], monkeypatch)
    assert adapter.method == "norm"


def test_a_scalar_that_was_not_folded_in_is_multiplied_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(10)
    layer = nn.Linear(12, 20)
    made = _made(LoConModule, layer, {"lora_dim": 3, "alpha": 7.0, "use_scalar": True})
    parts = made.state_dict()
    parts["lora_up.weight"] = made.lora_up.weight
    parts["scalar"] = made.scalar  # as LyCORIS before 2.0 had it
    update = _read(tmp_path, parts).updates["lycoris_x.weight"]
    check(update, _base(tmp_path, layer), _effective(made, layer), monkeypatch)


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.int32, torch.int16, torch.bfloat16, torch.float16, torch.float64]
)
def test_alpha_is_a_number_of_any_type(dtype: torch.dtype, tmp_path: Path) -> None:
    parts = {"lora_down.weight": torch.ones(3, 5), "lora_up.weight": torch.ones(4, 3)}
    adapter = _read(tmp_path, parts | {"alpha": torch.tensor(12, dtype=dtype)})
    assert adapter.updates["lycoris_x.weight"].update.scaling == 4.0


@pytest.mark.parametrize("alpha", [{}, {"alpha": torch.tensor(0)}], ids=["absent", "0"])
def test_no_alpha_is_the_rank(alpha: dict[str, Tensor], tmp_path: Path) -> None:
    parts = {"lora_down.weight": torch.ones(3, 5), "lora_up.weight": torch.ones(4, 3)}
    assert _read(tmp_path, parts | alpha).updates["lycoris_x.weight"].update.scaling == 1.0


LORA = {"lora_down.weight": torch.ones(3, 5), "lora_up.weight": torch.ones(4, 3)}
HADA = {f"hada_{p}": torch.ones(4, 3) if p[-1] == "a" else torch.ones(3, 5)
        for p in ("w1_a", "w1_b", "w2_a", "w2_b")}  # fmt: skip
BAD: dict[str, tuple[dict[str, Tensor], str]] = {
    "half": ({"lora_down.weight": torch.ones(3, 5)}, "lora_up.weight is missing"),
    "other rank": (LORA | {"lora_up.weight": torch.ones(4, 2)}, r"lora_down is \(3, 5\)"),
    "up with a kernel": (LORA | {"lora_up.weight": torch.ones(4, 3, 2, 2)}, "of one r"),
    "core of other rank": (LORA | {"lora_mid.weight": torch.ones(2, 3, 3, 3)}, "of one r"),
    "no shards": (LORA | {"lora_up.weight": torch.ones(0, 3)}, "without gathering its shards"),
    "whole numbers": (LORA | {"lora_up.weight": torch.ones(4, 3).long()}, "I64"),
    "NaN": (LORA | {"alpha": torch.tensor(float("nan"))}, "alpha is nan, expected a finite"),
    "huge": (LORA | {"alpha": torch.tensor(1e30)}, "alpha is damaged"),
    "two alphas": (LORA | {"alpha": torch.ones(2)}, r"alpha is F32 of shape \(2,\)"),
    "two changes": (LORA | {"diff": torch.ones(4, 5)}, "of lora and of full"),
    "rescale": (LORA | {"rescale": torch.ones(4, 1)}, "of lora and of oft"),
    "plain weight": (LORA | {"weight": torch.ones(4)}, "has weight beside lora_down.weight"),
    "magnitudes": (LORA | {"dora_scale": torch.ones(6, 1)}, r"dora_scale is \(6, 1\)"),
    "magnitudes of inputs": (LORA | {"dora_scale": torch.ones(1, 4)}, r"dora_scale is \(1, 4\)"),
    "one magnitude": (LORA | {"dora_scale": torch.ones(1, 1)}, r"dora_scale is \(1, 1\)"),
    "three of four": ({k: t for k, t in HADA.items() if k != "hada_w2_b"}, "hada_w2_b is missing"),
    "two shapes": (HADA | {"hada_w2_a": torch.ones(6, 3)}, "expected one shape"),
    "one core": (HADA | {"hada_t1": torch.ones(2, 2, 3, 3)}, "factors of one rank"),
    "half a Kronecker": ({"lokr_w2": torch.ones(4, 4)}, "lokr_w1 is missing"),
    "thrice": (
        {f"lokr_{p}": torch.ones(2, 2) for p in ("w1", "w1_a", "w1_b", "w2")},
        "has lokr_w1_a, lokr_w1_b beside",
    ),
    "core of a whole": (
        {"lokr_w1": torch.ones(2, 2), "lokr_w2": torch.ones(3, 3), "lokr_t2": torch.ones(1, 1, 3)},
        "has lokr_t2 beside",
    ),
    "flat blocks": ({"oft_blocks": torch.ones(4, 5)}, r"oft_blocks is \(4, 5\)"),
    "odd butterfly": ({"oft_blocks": torch.ones(2, 2, 3, 3)}, "blocks of even size"),
    "too many stages": ({"oft_blocks": torch.ones(4, 4, 2, 2)}, "blocks of even size"),
    "few factors": (
        {"oft_blocks": torch.ones(4, 2, 2), "rescale": torch.ones(7, 1)},
        "expected 8 factors",
    ),
    "GLoRA": (
        {f"{p}.weight": torch.ones(2 if p == "b2" else 3, 3) for p in ("a1", "a2", "b1", "b2")},
        "of one r",
    ),
    "magnitude of IA3": (
        {"weight": torch.ones(4), "on_input": torch.tensor(0), "dora_scale": torch.ones(4, 1)},
        "has dora_scale beside",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_parts_that_do_not_belong_together_are_named(case: str, tmp_path: Path) -> None:
    parts, message = BAD[case]
    with pytest.raises(AdapterError, match=message) as error:
        _read(tmp_path, parts)
    assert str(error.value).startswith("a.safetensors: ")
    assert "lycoris_x" in str(error.value)


def test_t_lora_is_refused_by_name(tmp_path: Path) -> None:
    made = _made(TLoraModule, nn.Linear(12, 20), {"lora_dim": 3, "alpha": 2.0})
    with pytest.raises(AdapterError, match="T-LoRA: its rank depends on the diffusion step"):
        _read(tmp_path, made.state_dict())


def test_keys_of_no_part_are_listed(tmp_path: Path) -> None:
    tensors = stored(
        tmp_path / "a.safetensors",
        {f"lora_te_x.{part}": tensor for part, tensor in LORA.items()}
        | {"lora_te_x.scale": torch.ones(1), "lora_te_y.alpha": torch.ones(1)}
        | {"lora_te_z.lora_down.0.weight": torch.ones(3, 5), "logit_scale": torch.ones(1)},
    )
    adapter = read_kohya(tensors, "a.safetensors")
    assert set(adapter.updates) == {"lora_te_x.weight"}
    assert {key for key, _ in adapter.left_out} == set(tensors) - {
        f"lora_te_x.{part}" for part in LORA
    }
    assert adapter.flat_names
