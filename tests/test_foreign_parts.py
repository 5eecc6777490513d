"""mlx-lm, NVlabs' DoRA, fsdp_qlora: laid by hand, for none of their writers runs here.

Beside the formulas of their own forward passes, in float64.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gathered import check, stored
from torch import Tensor

from wdecomp.adapter.foreign_dora import is_nvlabs, read_fsdp_qlora, read_nvlabs
from wdecomp.adapter.mlx import is_mlx, read_mlx
from wdecomp.errors import AdapterError

Q = "model.layers.0.self_attn.q_proj"
TOKENS = "model.embed_tokens"
OUT, IN, R = 20, 12, 3
PARAMETERS = {"rank": 8, "scale": 2.5, "dropout": 0.0}  # the rank is not what scales


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def _mlx(kind: str, outputs: int, inputs: int) -> dict[str, Tensor]:
    tensors = {"lora_a": _random(inputs, R), "lora_b": _random(R, outputs)}
    return tensors | ({"m": _random(outputs).abs() + 1} if kind == "dora" else {})


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_an_mlx_linear_layer(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts, base = _mlx(kind, OUT, IN), _random(OUT, IN)
    tensors = stored(tmp_path / "a.safetensors", {f"{Q}.{k}": t for k, t in parts.items()})
    config = {"fine_tune_type": kind, "lora_parameters": PARAMETERS}
    assert is_mlx(tensors, {})
    adapter = read_mlx(tensors, config, "a")
    want = base.double() + 2.5 * (parts["lora_a"].double() @ parts["lora_b"].double()).T
    if kind == "dora":
        want = parts["m"].double()[:, None] * want / want.norm(dim=1, keepdim=True)
    start = stored(tmp_path / "b.safetensors", {"x": base})["x"]
    check(adapter.updates[f"{Q}.weight"], start, want.numpy(), monkeypatch)
    assert adapter.method == kind


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_an_mlx_embedding_has_a_magnitude_for_each_token(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary, dim = 30, 12
    a, b, m = _random(vocabulary, R), _random(R, dim), _random(vocabulary).abs() + 1
    base = _random(vocabulary, dim)
    parts = {"lora_a": a, "lora_b": b} | ({"m": m} if kind == "dora" else {})
    tensors = stored(tmp_path / "a.safetensors", {f"{TOKENS}.{k}": t for k, t in parts.items()})
    adapter = read_mlx(tensors, {"lora_parameters": PARAMETERS}, "a")
    want = base.double() + 2.5 * a.double() @ b.double()
    if kind == "dora":
        want = m.double()[:, None] * want / want.norm(dim=1, keepdim=True)
    start = stored(tmp_path / "b.safetensors", {"x": base})["x"]
    update = adapter.updates[f"{TOKENS}.weight"]
    assert update.of_embedding
    check(update, start, want.T.numpy(), monkeypatch, input_first=True)


def test_layers_that_mlx_tuned_whole_are_replaced(tmp_path: Path) -> None:
    tensors = stored(tmp_path / "a.safetensors", {f"{Q}.weight": _random(OUT, IN)})
    config = {"fine_tune_type": "full", "num_layers": 1}
    assert is_mlx(tensors, config)
    adapter = read_mlx(tensors, config, "a")
    assert (adapter.method, adapter.updates) == ("full", {})
    assert set(adapter.replaced) == {f"{Q}.weight"}


def test_experts_of_mlx_are_listed_and_what_was_trained_beside_them_replaces(
    tmp_path: Path,
) -> None:
    stack = {"e.switch_mlp.up_proj.lora_a": _random(4, R, IN),
             "e.switch_mlp.up_proj.lora_b": _random(4, OUT, R)}  # fmt: skip
    tensors = stored(
        tmp_path / "a.safetensors",
        stack
        | {f"{Q}.{k}": t for k, t in _mlx("lora", OUT, IN).items()}
        | {"n.weight": _random(5)},
    )
    adapter = read_mlx(tensors, {"lora_parameters": PARAMETERS}, "a")
    assert {key for key, _ in adapter.left_out} == set(stack)
    assert set(adapter.replaced) == {"n.weight"}
    alone = {key: tensors[key] for key in stack}
    with pytest.raises(AdapterError, match="of a stack of experts"):
        read_mlx(alone, {"lora_parameters": PARAMETERS}, "a")


def _nvlabs(*drop: str) -> dict[str, Tensor]:
    parts = {"lora_A.weight": _random(R, IN), "lora_B.weight": _random(OUT, R),
             "weight_m_wdecomp.weight": _random(OUT, 1).abs() + 1}  # fmt: skip
    return {f"base_model.model.{Q}.{k}": t for k, t in parts.items() if k not in drop}


NVLABS = {"peft_type": "DORA", "r": R, "lora_alpha": 7}


@pytest.mark.parametrize("alone", [False, True])
def test_an_nvlabs_magnitude_is_of_the_changed_weight_or_of_the_base(
    alone: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = _nvlabs(*(("lora_A.weight", "lora_B.weight") if alone else ()))
    tensors = stored(tmp_path / "a.safetensors", saved)
    assert is_nvlabs(tensors, {})
    adapter = read_nvlabs(tensors, NVLABS, "a")
    base = _random(OUT, IN)
    *factors, m = (tensor.double() for tensor in saved.values())
    v = base.double() + (0 if alone else 7 / R * factors[1] @ factors[0])
    want = m * v / v.norm(dim=1, keepdim=True)
    start = stored(tmp_path / "b.safetensors", {"x": base})["x"]
    check(adapter.updates[f"{Q}.weight"], start, want.numpy(), monkeypatch)


def test_biases_that_nvlabs_trained_replace(tmp_path: Path) -> None:
    saved = _nvlabs() | {f"base_model.model.{Q}.bias": _random(OUT)}
    adapter = read_nvlabs(stored(tmp_path / "a.safetensors", saved), NVLABS, "a")
    assert set(adapter.replaced) == {f"{Q}.bias"}
    assert adapter.left_out == ()


def test_fsdp_wrappers_inside_a_name_are_no_part_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, m = _random(R, IN), _random(OUT, R), _random(OUT).abs() + 1
    front = f"{Q.replace('layers.0.', 'layers.0._fsdp_wrapped_module.')}"
    saved = {
        f"{front}.dora_layer._fsdp_wrapped_module.lora_A.weight": a,
        f"{front}.dora_layer._fsdp_wrapped_module.lora_B.weight": b,
        f"{front}.magnitude_layer._fsdp_wrapped_module.magnitude": m,
    }
    adapter = read_fsdp_qlora(stored(tmp_path / "a.safetensors", saved), "a")
    base = _random(OUT, IN)
    v = base.double() + b.double() @ a.double()
    want = m.double()[:, None] * v / v.norm(dim=1, keepdim=True)
    start = stored(tmp_path / "b.safetensors", {"x": base})["x"]
    check(adapter.updates[f"{Q}.weight"], start, want.numpy(), monkeypatch)


LORA = {f"{Q}.{k}": t for k, t in _mlx("lora", OUT, IN).items()}
BAD: dict[str, tuple[Callable[..., Any], dict[str, Tensor], dict[str, Any], str]] = {
    "no scale": (read_mlx, LORA, {"lora_parameters": {"rank": 3}}, "scale is None, expected a num"),
    "no parameters": (read_mlx, LORA, {}, "has no lora_parameters"),
    "kind": (read_mlx, LORA, {"fine_tune_type": "x"}, "expected one of lora, dora, full"),
    "half": (read_mlx, {f"{Q}.lora_a": _random(IN, R)}, {"lora_parameters": PARAMETERS},
             "lora_b is missing"),
    "quantised": (
        read_mlx,
        {key: (1000 * tensor).to(torch.int32) for key, tensor in LORA.items()},
        {"lora_parameters": PARAMETERS},
        "is I32 of shape",
    ),
    "matrix of magnitudes": (read_mlx, LORA | {f"{Q}.m": _random(4, 5)},
                             {"lora_parameters": PARAMETERS}, "expected a vector"),
    "transposed": (read_nvlabs, _nvlabs(), NVLABS | {"fan_in_fan_out": True}, "fan_in_fan_out is"),
    "rank": (read_nvlabs, _nvlabs(), {"lora_alpha": 7}, "r is None, expected a whole number"),
    "unpaired": (read_nvlabs, _nvlabs("lora_B.weight"), NVLABS, "is missing beside"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_right_is_named(case: str, tmp_path: Path) -> None:
    read, saved, config, message = BAD[case]
    tensors = stored(tmp_path / "a.safetensors", saved)
    with pytest.raises(AdapterError, match=message):
        read(tensors, config, str(tmp_path))
