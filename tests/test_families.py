"""DoRA on every linear layer of a family: names, orientation and fused projections all at once.

PEFT writes the running model's names, transformers 5 saves under those of version 4, and the base
stores q, k and v as its family does.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as tf
from oracle import check_merged
from peft import LoraConfig, PeftModel, get_peft_model
from peft_models import away_from_start
from torch import nn

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
WORDS = {"vocab_size": 64}
MLP = {"intermediate_size": 48}
IMAGE = {"image_size": 16, "patch_size": 8}
FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "vit": lambda: tf.ViTForImageClassification(tf.ViTConfig(**SIZES, **MLP, **IMAGE)),
    "dinov2": lambda: tf.Dinov2Model(tf.Dinov2Config(**SIZES, **IMAGE)),
    "t5": lambda: tf.T5ForConditionalGeneration(
        tf.T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, **WORDS)
    ),
    "whisper": lambda: tf.WhisperForConditionalGeneration(
        tf.WhisperConfig(
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            **WORDS,
            num_mel_bins=8,
            max_source_positions=10,
            max_target_positions=10,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
        )
    ),
    "clip": lambda: tf.CLIPModel(
        tf.CLIPConfig(
            text_config=dict(**SIZES, **MLP, **WORDS), vision_config=dict(**SIZES, **MLP, **IMAGE)
        )
    ),
    "neox": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**SIZES, **MLP, **WORDS)),
    "phi3": lambda: tf.Phi3ForCausalLM(
        tf.Phi3Config(**SIZES, **MLP, **WORDS, num_key_value_heads=2, pad_token_id=0)
    ),
    "bloom": lambda: tf.BloomForCausalLM(
        tf.BloomConfig(hidden_size=32, n_layer=2, n_head=4, **WORDS)
    ),
    "falcon": lambda: tf.FalconForCausalLM(tf.FalconConfig(**SIZES, **WORDS)),
    "falcon40": lambda: tf.FalconForCausalLM(
        tf.FalconConfig(**SIZES, **WORDS, new_decoder_architecture=True, num_kv_heads=2)
    ),
    "mpt": lambda: tf.MptForCausalLM(tf.MptConfig(d_model=32, n_heads=4, n_layers=2, **WORDS)),
    "deberta": lambda: tf.DebertaV2Model(tf.DebertaV2Config(**SIZES, **MLP, **WORDS)),
    "distil": lambda: tf.DistilBertModel(
        tf.DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=48, **WORDS)
    ),
    "llava": lambda: tf.LlavaForConditionalGeneration(
        tf.LlavaConfig(
            text_config=tf.LlamaConfig(**SIZES, **MLP, **WORDS),
            vision_config=tf.CLIPVisionConfig(**SIZES, **MLP, **IMAGE),
        )
    ),
    "gemma3": lambda: tf.Gemma3ForConditionalGeneration(
        tf.Gemma3Config(
            text_config=dict(**SIZES, **MLP, **WORDS, head_dim=8, num_key_value_heads=2),
            vision_config=dict(**SIZES, **MLP, **IMAGE),
        )
    ),
    "qwen2vl": lambda: tf.Qwen2VLForConditionalGeneration(
        tf.Qwen2VLConfig(
            text_config=dict(**SIZES, **MLP, **WORDS, num_key_value_heads=2),
            vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4},
        )
    ),
    "modernbert": lambda: tf.ModernBertModel(
        tf.ModernBertConfig(**SIZES, **MLP, **WORDS, pad_token_id=0)
    ),
    "bigcode": lambda: tf.GPTBigCodeForCausalLM(
        tf.GPTBigCodeConfig(n_embd=32, n_layer=2, n_head=4, **WORDS)
    ),
    "gptj": lambda: tf.GPTJForCausalLM(
        tf.GPTJConfig(n_embd=32, n_layer=2, n_head=4, **WORDS, rotary_dim=4)
    ),
    "opt": lambda: tf.OPTForCausalLM(
        tf.OPTConfig(**SIZES, ffn_dim=48, **WORDS, word_embed_proj_dim=32)
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_layer_is_what_peft_merges(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = FAMILIES[family]().float()
    model.save_pretrained(tmp_path / "base")
    config = LoraConfig(r=2, lora_alpha=3, target_modules="all-linear", use_dora=True)
    adapted = get_peft_model(model, config)
    away_from_start(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    again = type(model).from_pretrained(tmp_path / "base", dtype=torch.float32)
    reloaded = PeftModel.from_pretrained(again, tmp_path / "adapter")
    reloaded.merge_and_unload().save_pretrained(tmp_path / "merged")
    found = check_merged(tmp_path, tables=False)
    kinds = {each.place.module for each in found.matrices.values()}
    assert kinds >= {"q", "k", "v"}
