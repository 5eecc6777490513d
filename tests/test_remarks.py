"""What is said beside the figures of an adapter."""

from pathlib import Path

import pytest
import torch
from builders import low_rank, tiny_llama, write_adapter, write_full
from peft import LoraConfig, get_peft_model
from peft_models import llama, seeded, write_base

import wdecomp
from wdecomp.cli import main
from wdecomp.pairing.remarks import UNTRAINED
from wdecomp.report import notes


@pytest.mark.parametrize(
    ("dtype", "stored"), [(torch.bfloat16, "BF16"), (torch.float16, "F16")], ids=str
)
def test_an_untrained_dora_on_a_rounded_base_shows_magnitudes_below_what_is_said(
    dtype: torch.dtype, stored: str, tmp_path: Path
) -> None:
    """PEFT takes the first norms in the base's dtype: changes of 1e-3 before any training."""
    model = seeded(llama, dtype).to(dtype)
    write_base(model, tmp_path / "base", dtype)
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], use_dora=True)
    get_peft_model(model, config).save_pretrained(tmp_path / "dora")
    found = wdecomp.compare(tmp_path / "base", tmp_path / "dora")
    columns = found.columns("dora")
    relative = (columns["delta_magnitude"].abs() / columns["magnitude_base"]).max()
    assert 1e-5 < relative < UNTRAINED[stored]
    assert any(f"rounded to {stored}" in note for note in notes(found))


def test_layers_without_an_adapter_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tiny_llama(4)
    factors = {m: f for m, f in low_rank(base).items() if "layers.3" not in m or "v_proj" in m}
    write_full(tmp_path / "base", base)
    write_adapter(tmp_path / "lora", factors)
    main(["inspect", str(tmp_path / "base"), str(tmp_path / "lora")])
    assert "decoder.q is adapted in 3 of 4 layers (not in 3)" in capsys.readouterr().out


def test_a_whole_adapter_on_a_full_precision_base_needs_no_remark(tmp_path: Path) -> None:
    base = tiny_llama(2)
    write_full(tmp_path / "base", base)
    write_adapter(tmp_path / "lora", low_rank(base))
    assert wdecomp.compare(tmp_path / "base", tmp_path / "lora").run["notes"] == []


@pytest.mark.parametrize("misordered", [False, True])
def test_magnitudes_in_torchtunes_order_are_said(misordered: bool, tmp_path: Path) -> None:
    """Its export puts the rows of q and k back as Hugging Face has them, and not the magnitudes."""
    base = tiny_llama(1)
    name = "model.layers.0.self_attn.q_proj"
    weight = base[f"{name}.weight"] * torch.linspace(0.5, 2, 32)[:, None]
    base[f"{name}.weight"] = weight
    a, b = low_rank(base)[name]
    m = (weight + 2 * 0.01 * b @ a).norm(dim=1) * 1.01
    if misordered:
        m = m.reshape(4, 2, 4).transpose(1, 2).reshape(-1)
    config = {"num_attention_heads": 4, "num_key_value_heads": 1}
    write_full(tmp_path / "base", base, config=config)
    write_adapter(tmp_path / "dora", {name: (a, 0.01 * b)}, {name: m})
    found = wdecomp.compare(tmp_path / "base", tmp_path / "dora").run["notes"]
    assert [("torchtune" in note) for _, note in found] == ([True] if misordered else [])
