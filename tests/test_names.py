"""Places, embeddings and orientations, against the modules that transformers really builds."""

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors import safe_open
from transformers.pytorch_utils import Conv1D

from wdecomp import families
from wdecomp.names import Place, is_embedding, is_head, place, stores_input_first

SIZES: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 2, "vocab_size": 11, "pad_token_id": 0}
GROUPED = SIZES | {"num_key_value_heads": 1, "head_dim": 4}
GPT2 = {"n_embd": 8, "n_layer": 2, "n_head": 2, "vocab_size": 11, "n_positions": 7}
BART = {"d_model": 16, "vocab_size": 11, "encoder_layers": 2, "decoder_layers": 2}
T5 = {"d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 2, "num_heads": 2, "vocab_size": 11}
CLIP = {"text_config": SIZES, "vision_config": SIZES, "projection_dim": 6}

TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", GROUPED),
    "llama-score": ("LlamaForSequenceClassification", GROUPED),
    "mistral": ("MistralForCausalLM", GROUPED),
    "qwen2": ("Qwen2ForCausalLM", GROUPED),
    "gemma": ("GemmaForCausalLM", GROUPED),
    "phi": ("PhiForCausalLM", SIZES),
    "phi3": ("Phi3ForCausalLM", GROUPED),
    "mixtral": ("MixtralForCausalLM", GROUPED | {"num_local_experts": 2}),
    "gpt2": ("GPT2LMHeadModel", GPT2),
    "gpt2-cross": ("GPT2LMHeadModel", GPT2 | {"add_cross_attention": True}),
    "openai-gpt": ("OpenAIGPTLMHeadModel", GPT2),
    "imagegpt": ("ImageGPTModel", GPT2),
    "decision_transformer": ("DecisionTransformerModel", GPT2 | {"hidden_size": 8}),
    "clvp": ("ClvpModelForConditionalGeneration", {}),
    "gpt_bigcode": ("GPTBigCodeForCausalLM", GPT2),
    "gpt_neox": ("GPTNeoXForCausalLM", SIZES),
    "bert": ("BertForMaskedLM", SIZES),
    "roberta": ("RobertaForSequenceClassification", SIZES),
    "bart": ("BartForConditionalGeneration", BART),
    "t5": ("T5ForConditionalGeneration", T5),
    "vit": ("ViTForImageClassification", SIZES),
    "clip": ("CLIPModel", CLIP),
}


def at(layers: Sequence[int | None], stack: str, modules: str) -> list[Place]:
    return [Place(stack, layer, module) for layer in layers for module in modules.split()]


OUT, IN = (None,), (0, 1)
UNTIED = at(OUT, "model", "embedding head")
LLAMA_LAYERS = at(IN, "decoder", "q k v o gate up down")
GPT2_PLACES = at(OUT, "model", "embedding position") + at(IN, "decoder", "qkv o up down")
BERT_LAYERS = at(IN, "encoder", "q k v o up down")
BOTH = at(OUT, "model", "embedding") + at(IN, "cross", "q k v o")
BOTH += BERT_LAYERS + at(IN, "decoder", "q k v o up down")
CLIP_OUT = at(OUT, "model", "text_projection visual_projection")
CLIP_OUT += at(OUT, "text", "embedding position") + at(OUT, "vision", "position")
VIT_LAYERS = at(IN, "vision", "q k v o up down")

EXPECTED: dict[str, list[Place]] = {
    **dict.fromkeys(("llama", "llama-score", "mistral", "qwen2"), UNTIED + LLAMA_LAYERS),
    "gemma": at(OUT, "model", "embedding") + LLAMA_LAYERS,
    "phi": UNTIED + at(IN, "decoder", "q k v o up down"),
    "phi3": UNTIED + at(IN, "decoder", "qkv o gate_up down"),
    "mixtral": UNTIED + at(IN, "decoder", "q k v o router"),
    **dict.fromkeys(("gpt2", "openai-gpt", "gpt_bigcode"), GPT2_PLACES),
    "gpt2-cross": GPT2_PLACES + at(IN, "cross", "q kv o"),
    "gpt_neox": UNTIED + at(IN, "decoder", "qkv o up down"),
    "bert": BERT_LAYERS + at(OUT, "model", "embedding position token_type head"),
    "roberta": BERT_LAYERS + at(OUT, "model", "embedding position token_type head head"),
    "bart": BOTH + at(OUT, "encoder", "position") + at(OUT, "decoder", "position"),
    "t5": BOTH + at([0], "encoder", "position") + at([0], "decoder", "position"),
    "vit": VIT_LAYERS + at(OUT, "model", "head"),
    "clip": CLIP_OUT + VIT_LAYERS + at(IN, "text", "q k v o up down"),
}


def build(family: str) -> Any:
    model_class = getattr(transformers, TINY[family][0])
    return model_class(model_class.config_class(**TINY[family][1]))


@cache
def blueprint(family: str) -> Any:
    with torch.device("meta"):
        return build(family)


def weights(family: str) -> Iterator[tuple[str, torch.nn.Module]]:
    for name, module in blueprint(family).named_modules():
        if isinstance(getattr(module, "weight", None), torch.nn.Parameter):
            yield f"{name}.weight", module


def places(names: list[str]) -> list[Place]:
    return sorted((place(name) for name in names), key=repr)


@pytest.mark.parametrize("wrapper", ["", "module.", "_orig_mod.", "base_model.model."])
@pytest.mark.parametrize("family", EXPECTED)
def test_every_matrix_of_a_model_has_its_stack_layer_and_kind(family: str, wrapper: str) -> None:
    matrices = [wrapper + n for n, p in blueprint(family).named_parameters() if p.ndim == 2]
    assert places(matrices) == sorted(EXPECTED[family], key=repr)


@pytest.mark.parametrize("family", ["vit", "clip", "gpt_neox", "gpt2", "bert", "t5"])
def test_names_on_disk_and_in_memory_lead_to_the_same_places(family: str, tmp_path: Path) -> None:
    build(family).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        matrices = [n for n in list(file.keys()) if len(file.get_slice(n).get_shape()) == 2]
    assert places(matrices) == sorted(EXPECTED[family], key=repr)


@pytest.mark.parametrize("family", TINY)
def test_embeddings_are_exactly_the_embedding_modules(family: str) -> None:
    told = {name: is_embedding(name) for name, _ in weights(family)}
    assert told == {name: isinstance(m, torch.nn.Embedding) for name, m in weights(family)}


@pytest.mark.parametrize("family", TINY)
def test_only_conv1d_modules_store_their_input_first(family: str) -> None:
    model_type = blueprint(family).config.model_type
    told = {name: stores_input_first(name, model_type) for name, _ in weights(family)}
    assert told == {name: isinstance(m, Conv1D) for name, m in weights(family)}


@pytest.mark.parametrize("model_type", [None, "vision-encoder-decoder"])
@pytest.mark.parametrize("family", sorted(EXPECTED.keys() - {"gpt_bigcode"}))
def test_without_a_model_type_names_decide(family: str, model_type: str | None) -> None:
    told = {name: stores_input_first(name, model_type) for name, _ in weights(family)}
    assert told == {name: isinstance(m, Conv1D) for name, m in weights(family)}


@pytest.mark.parametrize(
    ("module", "conv1d", "linear"),
    [
        ("attn.c_attn", (8, 24), (24, 8)),
        ("attn.c_attn", (8, 24), (12, 8)),  # GPT-BigCode's one key
        ("crossattention.c_attn", (8, 16), (16, 8)),
        ("mlp.c_fc", (8, 32), (32, 8)),
        ("mlp.c_proj", (32, 8), (8, 32)),
        ("attn.c_proj", (8, 8), None),
    ],
)
def test_without_a_model_type_the_shape_tells_conv1d_from_linear(
    module: str, conv1d: tuple[int, int], linear: tuple[int, int] | None
) -> None:
    name = f"transformer.h.0.{module}.weight"
    assert stores_input_first(name, None, conv1d)
    assert stores_input_first(name, "gpt2", linear)  # a known family is believed
    assert not stores_input_first(name, "gpt_bigcode", conv1d)
    if linear:
        assert not stores_input_first(name, None, linear)


SPELLINGS = """
model.layers.3.mlp.experts.7.gate_proj.weight                          decoder 3 gate
model.layers.3.block_sparse_moe.experts.1.w2.weight                    decoder 3 down
model.layers.3.self_attn.q_proj.lora_A.default.weight                  decoder 3 q
encoder.vision_tower.encoder.layers.3.mlp.fc1.weight                   vision 3 up
transformer.ln_f.weight                                                model - norm
bert.encoder.layer.3.attention.output.LayerNorm.gamma                  encoder 3 norm
gated_cross_attn_layers.3.mlp.up_proj.weight                           cross 3 up
cls.predictions.decoder.weight                                         model - head
distilbert.transformer.layer.3.ffn.lin1.weight                         encoder 3 up
model.decoder.layers.3.encoder_attn_layer_norm.weight                  decoder 3 norm
decoder.final_layer_norm.weight                                        decoder - norm
mlm.decoder.weight                                                     model - decoder
tapas.embeddings.token_type_embeddings_6.weight                        model - token_type
decoder.bert.encoder.layer.3.output.dense.weight                       decoder 3 down
decoder.block.3.layer.2.DenseReluDense.wi_0.weight                     decoder 3 gate
vit.embeddings.position_embeddings                                     vision - position
visual.transformer.resblocks.3.attn.in_proj_weight                     vision 3 qkv
transformer.resblocks.3.mlp.c_proj.weight                              text 3 down
language_model.model.layers.3.mlp.up_proj.weight                       decoder 3 up
decoder.weight                                                         model - head
down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0.weight  cross 1 o
mid_block.resnets.0.conv1.weight                                       mid - conv
single_transformer_blocks.3.proj_out.weight                            single 3 o_down
a.b.frobnicator.weight                                                 model - frobnicator
weight                                                                 model - weight
"""


@pytest.mark.parametrize("line", SPELLINGS.split("\n")[1:-1])
def test_a_spelling_leads_to_its_place(line: str) -> None:
    parameter, stack, layer, module = line.split()
    assert place(parameter) == Place(stack, None if layer == "-" else int(layer), module)


def test_heads_are_told_from_what_only_looks_like_one() -> None:
    heads = ["lm_head.weight", "model.score.weight", "classifier.out_proj.bias", "proj_out.weight"]
    others = ["h.0.attn.out_proj.weight", "layers.0.router.classifier.weight", "x.output.weight"]
    assert [is_head(name) for name in heads + others] == [True] * 4 + [False] * 3


def test_orientation_is_that_of_the_stored_tensor_itself() -> None:
    module = "base_model.model.transformer.h.0.attn.c_attn."
    stored = ["weight", "base_layer.weight", "bias", "lora_A.default.weight", "weight.absmax"]
    told = [stores_input_first(module + tensor, "gpt2") for tensor in stored]
    assert told == [True, True, False, False, False]


WORDS = sorted(families.STORED | families.HEADS | families.TOP_HEADS | set(families.LAYER_WORDS))
WORDS += ["0", "²", "٣", "-1", "1e3", ""]
PART = st.one_of(st.sampled_from(WORDS), st.text(max_size=8))


@example("layers." + "9" * 5000)
@given(st.one_of(st.text(), st.lists(PART, max_size=12).map(".".join)))
def test_no_name_is_an_error(parameter: str) -> None:
    assert isinstance(place(parameter), Place)
    told = [is_embedding(parameter), is_head(parameter), stores_input_first(parameter, None)]
    assert [type(answer) for answer in told] == [bool] * 3
