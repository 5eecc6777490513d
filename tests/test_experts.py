"""LoRA of experts: stored alone or in stacks of either orientation, adapted alone or in stacks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracle import adapted_weight, check_merged
from peft import LoraConfig, PeftModel, get_peft_model
from peft_models import away_from_start, seeded
from torch import nn
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from wdecomp.adapter import Adapted
from wdecomp.checkpoint import open_checkpoint
from wdecomp.pairing import pair

SIZES: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "head_dim": 6,
}
EXPERTS = {"num_local_experts": 3, "num_experts_per_tok": 2}


def _mixtral(width: int) -> nn.Module:
    return MixtralForCausalLM(MixtralConfig(intermediate_size=width, **SIZES, **EXPERTS))


def _qwen(width: int) -> nn.Module:
    sizes = {"moe_intermediate_size": width, "num_experts": 3, "num_experts_per_tok": 2}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, **sizes, intermediate_size=48))


def _gpt_oss(width: int) -> nn.Module:
    return GptOssForCausalLM(GptOssConfig(intermediate_size=width, **SIZES, **EXPERTS))


def _llama4(width: int) -> nn.Module:
    widths = {"intermediate_size": width, "intermediate_size_mlp": width, "num_local_experts": 3}
    return Llama4ForCausalLM(Llama4TextConfig(**SIZES, **widths, interleave_moe_layer_step=1))


FAMILIES: dict[str, tuple[Callable[[int], nn.Module], str]] = {
    "mixtral": (_mixtral, "mlp.experts"),
    "qwen3_moe": (_qwen, "mlp.experts"),
    "gpt_oss": (_gpt_oss, "mlp.experts"),
    "llama4": (_llama4, "feed_forward.experts"),
}
# 12 makes gate_up square, 24 down.
WIDTHS = (40, 24, 12)
TARGETS = (("gate_up_proj", "down_proj"), ("gate_up_proj",), ("down_proj",))


def _write(folder: Path, family: str, width: int, targets: tuple[str, ...]) -> None:
    named = [f"{FAMILIES[family][1]}.{target}" for target in targets]
    _write_as(folder, family, width, target_modules=["q_proj"], target_parameters=named)


def _write_as(folder: Path, family: str, width: int, **targets: Any) -> None:
    make, _ = FAMILIES[family]
    model = seeded(lambda: make(width))
    model.save_pretrained(folder / "base")
    adapted = get_peft_model(model, LoraConfig(r=2, lora_alpha=5, **targets))
    away_from_start(adapted)
    adapted.save_pretrained(folder / "adapter")
    again = type(model).from_pretrained(folder / "base")
    reloaded = PeftModel.from_pretrained(again, folder / "adapter")
    reloaded.merge_and_unload().save_pretrained(folder / "merged")


@pytest.mark.parametrize("targets", TARGETS, ids="+".join)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("family", FAMILIES)
def test_stacked_experts_are_what_peft_merges(
    family: str, width: int, targets: tuple[str, ...], tmp_path: Path
) -> None:
    _write(tmp_path, family, width, targets)
    found = check_merged(tmp_path, tables=targets == TARGETS[0])
    kinds = {each.place.module for each in found.matrices.values()}
    halves = {"gate", "up"} if "gate_up_proj" in targets else set()
    assert kinds == {"q"} | halves | ({"down"} if "down_proj" in targets else set())
    assert len(found.matrices) == 1 + 3 * len(kinds - {"q"})


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys")
@pytest.mark.filterwarnings("ignore:The following alpha_pattern keys")
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_experts_among_all_linear_layers_have_ranks_of_their_own(
    family: str, tmp_path: Path
) -> None:
    """PEFT then names parameters without their module, and doubles the rank of the fused ones."""
    _write_as(tmp_path, family, 40, target_modules="all-linear")
    found = check_merged(tmp_path, tables=False)
    stacked = {e.tuned.update.rank for n, e in found.matrices.items() if "experts." in n}  # type: ignore[union-attr]
    assert stacked == {2, 4}


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys")
@pytest.mark.filterwarnings("ignore:The following alpha_pattern keys")
def test_a_pattern_names_the_parameter_of_a_stack(tmp_path: Path) -> None:
    targets = [f"mlp.experts.{target}" for target in TARGETS[0]]
    _write_as(
        tmp_path, "qwen3_moe", 40, target_modules=["q_proj"], target_parameters=targets,
        rank_pattern={"experts.down_proj": 3}, alpha_pattern={"experts.gate_up_proj": 7},
    )  # fmt: skip
    found = check_merged(tmp_path, tables=False)
    settings = {
        each.place.module: (each.tuned.update.rank, each.tuned.update.scaling)  # type: ignore[union-attr]
        for each in found.matrices.values()
    }
    assert settings == {"q": (2, 2.5), "gate": (2, 3.5), "up": (2, 3.5), "down": (3, 5 / 3)}


@pytest.mark.parametrize("family", ["llama4", "gpt_oss"])
def test_square_experts_need_the_family(family: str, tmp_path: Path) -> None:
    """Read the other way round, factors of square experts fit too, and mean something else."""
    _write(tmp_path, family, 24, ("down_proj",))
    found = pair(open_checkpoint(tmp_path / "base"), open_checkpoint(tmp_path / "adapter"))
    [name] = [n for n in found.matrices if n.endswith("down_proj[1]")]
    each = found.matrices[name]
    assert isinstance(each.tuned, Adapted)
    right = adapted_weight(each, 1 << 20)
    expert = each.tuned.update.expert  # type: ignore[attr-defined]
    assert (expert.which, expert.transposed) == (1, family == "llama4")
    low_rank = each.tuned.update.load(each.tuned.module)
    turned = right - (low_rank.left @ low_rank.right) + (low_rank.left @ low_rank.right).T  # type: ignore[attr-defined]
    assert np.abs(turned - right).max() > 0.01


def test_experts_adapted_alone_match_those_stored_alone(tmp_path: Path) -> None:
    """As before transformers 5: `experts.N.w1`, an ordinary linear layer."""
    import torch
    from builders import write_adapter, write_full

    name = "model.layers.0.block_sparse_moe.experts.{}.w1"
    base = {f"{name.format(i)}.weight": torch.randn(8, 6) for i in range(3)}
    factors = {name.format(1): (torch.randn(2, 6), torch.randn(8, 2))}
    found = pair(
        open_checkpoint(write_full(tmp_path / "base", base)),
        open_checkpoint(write_adapter(tmp_path / "adapter", factors)),
    )
    assert list(found.matrices) == [f"{name.format(1)}.weight"]
