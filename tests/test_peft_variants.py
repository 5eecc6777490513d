"""LoRA beside other things that PEFT saves, in variants, and tied: beside PEFT's own merge."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from numpy.testing import assert_allclose
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.config import MontecloraConfig, VeloraConfig
from peft_cases import Make, Plain, gpt2, llama, move, save_model, write
from peft_oracle import check_merge, pairings, tuned_weight

tied = partial(llama, tie_word_embeddings=True)
CASES: dict[str, tuple[Make, dict[str, Any]]] = {
    "linear dora bias all": (
        llama,
        {"target_modules": ["q_proj", "up_proj"], "bias": "all", "use_dora": True},
    ),
    "conv1D and head dora": (gpt2, {"target_modules": ["c_attn", "lm_head"], "use_dora": True}),
    "conv1D lora_bias": (gpt2, {"target_modules": ["c_attn", "c_fc"], "lora_bias": True}),
    "embedding dora": (llama, {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True}),
    "embedding of gpt2": (gpt2, {"target_modules": ["wte", "wpe", "c_attn"]}),
    "conv2d lora_bias": (Plain, {"target_modules": ["conv2"], "lora_bias": True}),
    "attention patterns": (
        Plain,
        {"target_modules": ["attn"], "rank_pattern": {"attn": 3}, "alpha_pattern": {"attn": 5}},
    ),
    "embedding replaced": (
        llama,
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head", "norm"]},
    ),
    "linear lora_bias and bias all": (
        llama,
        {"target_modules": ["q_proj", "up_proj"], "bias": "all", "lora_bias": True},
    ),
    "linear velora": (
        llama,
        {"target_modules": ["q_proj", "up_proj"], "velora_config": VeloraConfig(num_groups=4)},
    ),
    "linear monteclora": (
        llama,
        {"target_modules": ["q_proj"], "monteclora_config": MontecloraConfig()},
    ),
    "linear orthogonal": (
        llama,
        {"target_modules": ["q_proj", "up_proj"], "init_lora_weights": "orthogonal"},
    ),
    "linear mica": (llama, {"target_modules": ["q_proj"], "init_lora_weights": "mica"}),
    "tied embedding": (tied, {"target_modules": ["embed_tokens", "q_proj"]}),
    "tied tokens": (tied, {"target_modules": ["q_proj"], "trainable_token_indices": [3, 90]}),
    "tied embedding replaced": (
        tied,
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    ),
    "tokens by module": (
        gpt2,
        {"target_modules": ["c_attn"], "trainable_token_indices": {"wte": [5, 1], "wpe": [7]}},
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("case", CASES)
def test_lora_is_what_peft_merges(case: str, dtype: torch.dtype, tmp_path: Path) -> None:
    make, config = CASES[case]
    write(tmp_path, make, LoraConfig(r=4, lora_alpha=9, **config), dtype)
    found = check_merge(tmp_path)
    assert found.method == ("dora" if config.get("use_dora") else "lora")


def test_a_tied_head_is_changed_alone_where_peft_changes_the_embedding_with_it(
    tmp_path: Path,
) -> None:
    write(tmp_path, tied, LoraConfig(r=4, lora_alpha=9, target_modules=["lm_head"]))
    found, theirs = pairings(tmp_path)
    assert set(found.matrices) == {"lm_head.weight"}
    merged = theirs.matrices["model.embed_tokens.weight"]
    got = tuned_weight(found.matrices["lm_head.weight"])
    assert_allclose(got, tuned_weight(merged).T, rtol=1e-6, atol=1e-7)


def test_an_embedding_that_grew_is_compared_as_far_as_the_base_has_words(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = llama()
    save_model(model, tmp_path / "base")
    model.resize_token_embeddings(100)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"]))
    move(adapted)
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    save_model(adapted.merge_and_unload(), tmp_path / "merged")
    found = check_merge(tmp_path)
    words = found.matrices["model.embed_tokens.weight"]
    assert (words.base.shape, words.shape) == ((32, 96), (32, 96))
    assert any("resized: 96 rows in the base, 100 tuned" in gone.reason for gone in found.left_out)
