"""What is sound has no finding, and what is merely odd has no error.

That no case of the adapters' own tests is an error is checked where they are, by `oracle`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import test_quantized_runs
import torch
from audit_runs import adapted, base, base_model, found, trained
from builders import low_rank, tiny_llama, write_adapter, write_full
from torch import Tensor
from transformers import BertConfig, BertModel

import wdecomp
from wdecomp.audit import findings
from wdecomp.train import Adapter, Settings, save_full, train

METHODS = ("full", "lora", "dora", "vera", "dvora", "magnitude")


def _bert() -> BertModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
    config = BertConfig(vocab_size=50, num_attention_heads=2, **sizes)
    return BertModel(config, add_pooling_layer=False).eval()


def _batches() -> Iterator[Tensor]:
    random = torch.Generator().manual_seed(5)
    while True:
        yield torch.randint(0, 50, (4, 6), generator=random)


def _spread(model: BertModel, ids: Tensor) -> Tensor:
    states: Tensor = model(ids).last_hidden_state
    return (states[..., :5] - 1).square().mean()


@pytest.mark.parametrize("method", METHODS)
def test_a_sound_training_of_every_method_has_no_finding(method: Any, tmp_path: Path) -> None:
    model = _bert()
    save_full(model, None, tmp_path / "base")
    settings = Settings(
        method=method,
        base_name=str(tmp_path / "base"),
        lr=3e-3,
        steps=6,
        save_steps=(3, 6),
        adapters={} if method == "full" else {n: Adapter(method, 4, 8) for n in ("query", "dense")},
        progress=False,
    )
    train(model, _batches(), _spread, settings, tmp_path / "run")
    assert found(tmp_path / "base", tmp_path / "run") == []


@pytest.mark.parametrize(
    "config", [{"dora": True}, {"dora": False}, {"dora": False, "use_rslora": True}], ids=str
)
def test_a_sound_training_by_peft_has_no_finding(config: dict[str, Any], tmp_path: Path) -> None:
    trained(adapted(base_model(), **config)).save_pretrained(tmp_path / "tuned")
    assert found(base(tmp_path), tmp_path / "tuned") == []


def test_a_sound_dora_in_f32_on_a_bf16_base_has_no_finding(tmp_path: Path) -> None:
    model = adapted(base_model().to(torch.bfloat16)).float()
    trained(model, lr=1e-4).save_pretrained(tmp_path / "tuned")  # less than half a step of BF16
    assert found(base(tmp_path, dtype=torch.bfloat16), tmp_path / "tuned") == []


def _errors(base: Path, adapters: dict[str, Path]) -> list[str]:
    tuned = [f"{name.replace(',', '')}={path}" for name, path in adapters.items()]
    return [
        f"{each.run}: {each.message}" for each in found(base, *tuned) if each.severity == "error"
    ]


def test_no_adapter_of_a_quantised_base_is_an_error(tmp_path: Path) -> None:
    tensors = tiny_llama(2)
    stored, dense = test_quantized_runs._nf4(tensors)
    factors = low_rank(tensors)
    norms = {m: (dense[f"{m}.weight"] + 2 * b @ a).norm(dim=1) for m, (a, b) in factors.items()}
    base = write_full(tmp_path / "nf4", stored)
    lora = write_adapter(tmp_path / "qlora", factors)
    dora = write_adapter(tmp_path / "qdora", factors, {m: 1.02 * n for m, n in norms.items()})
    assert _errors(base, {"qlora": lora, "qdora": dora}) == []
    plain = write_full(tmp_path / "base", tensors)
    results = wdecomp.compare(plain, lora, dora, base_dequantized=base, columns="none")
    assert [each.message for each in findings(results) if each.severity != "note"] == []
