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
