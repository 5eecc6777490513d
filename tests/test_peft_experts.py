"""LoRA of stacked experts (`target_parameters`) against PEFT's own merge."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import check_merge
from peft import LoraConfig
from peft_cases import experts, write

FAMILIES = ("mixtral", "qwen3_moe", "gpt_oss", "llama4_text")
WIDTHS = {"": 24, "square gate_up": 16, "square down": 32}
TARGETS = {
    "both": ["gate_up_proj", "down_proj"],
    "gate_up": ["gate_up_proj"],
    "down": ["down_proj"],
    "down first": ["down_proj", "gate_up_proj"],
}
CASES = [
    *((family, targets, "") for family in FAMILIES for targets in TARGETS),
    *((family, "both", square) for family in FAMILIES for square in ("square gate_up", "square down")),
]


def _config(family: str, targets: str, **more: Any) -> LoraConfig:
    module = "feed_forward" if family.startswith("llama4") else "mlp"
    parameters = [f"{module}.experts.{name}" for name in TARGETS[targets]]
    fields = {"r": 2, "lora_alpha": 5, "target_modules": ["q_proj"], **more}
    return LoraConfig(target_parameters=parameters, **fields)


@pytest.mark.parametrize(("family", "targets", "square"), CASES, ids=lambda part: part or "oblong")
def test_experts_are_what_peft_merges(
    family: str, targets: str, square: str, tmp_path: Path
) -> None:
    make = partial(experts, family, WIDTHS[square])
    write(tmp_path, make, _config(family, targets))
    found = check_merge(tmp_path)
    per_layer = 3 * (2 * ("gate_up_proj" in TARGETS[targets]) + ("down_proj" in TARGETS[targets]))
    assert len(found.matrices) == 2 * (1 + per_layer)


# PEFT looks for them among modules, and applies them to parameters all the same.
@pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match:RuntimeWarning")
def test_experts_beside_patterns(tmp_path: Path) -> None:
    config = _config(
        "gpt_oss",
        "both",
        use_rslora=True,
        rank_pattern={"layers.1.mlp.experts.gate_up_proj": 3, "q_proj": 5},
        alpha_pattern={"mlp.experts.down_proj": 11},
    )
    write(tmp_path, partial(experts, "gpt_oss"), config, torch.bfloat16)
    check_merge(tmp_path)
