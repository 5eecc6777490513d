"""How model families spell their parameter names. Data only: `wdecomp.names` reads it.

A dotted key is matched against the end of the module path with its numbers taken out
(`layers.3.mlp.experts.7.gate_proj` ends in `experts.gate_proj`); of two keys that match, the longer
wins. To teach wdecomp a family, add its words here; `wdecomp.names` has no family in it.
"""

from collections.abc import Mapping

# Wrappers around a whole model: DDP, torch.compile, PEFT. They say nothing about a parameter.
WRAPPERS: frozenset[str] = frozenset({"module", "_orig_mod", "base_model", "model"})

# Where the module path ends and what is stored of the module begins.
WHOLE_WEIGHT: frozenset[str] = frozenset(
    {"weight", "base_layer", "modules_to_save", "original_module"}
)
STORED: frozenset[str] = WHOLE_WEIGHT | {
    *("bias", "gamma", "beta", "parametrizations", "weight_g", "weight_v"),
    # LoRA, DoRA, VeRA, IA3, LoHa, LoKr, OFT, BOFT as PEFT, diffusers and kohya write them
    *("lora", "lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector"),
    *("lora_up", "lora_mid", "lora_down", "dora_scale", "vera_lambda_b", "vera_lambda_d", "ia3_l"),
    *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    *("oft_r", "oft_R", "boft_R", "boft_s", "diff", "diff_b"),
    # GPTQ, AWQ, bitsandbytes, compressed-tensors, FP8
    *("qweight", "qzeros", "scales", "g_idx", "absmax", "SCB", "weight_packed", "weight_shape"),
    *("weight_scale", "weight_scale_inv", "weight_zero_point", "input_scale"),
}

# A layer word is followed by the layer's index. The value is the stack of its layers where no
# stack word stands before it.
LAYER_WORDS: Mapping[str, str] = {
    "layers": "decoder",  # LLaMA, Mistral, Qwen, Gemma, Phi, GPT-NeoX
    "h": "decoder",  # GPT-2, GPT-J, BLOOM, Falcon
    "block": "decoder",  # T5, always below encoder or decoder
    "blocks": "decoder",  # MPT, RWKV, timm
    "layer": "encoder",  # BERT, DistilBERT
    "albert_layer_groups": "encoder",
    "encoder_layers": "encoder",
    "decoder_layers": "decoder",
    "transformer_layers": "decoder",
    "gated_cross_attn_layers": "cross",  # Idefics: whole blocks between the decoder's own
    "cross_attn_layers": "cross",  # BLT
    "cross_modal_text_layers": "text",  # BridgeTower
    "cross_modal_image_layers": "vision",
    "resblocks": "text",  # open_clip, whose vision half stands below "visual"
    "stages": "model",  # ConvNeXt, Swin
    "conv_layers": "model",  # wav2vec2's feature extractor
    "down_blocks": "down",  # UNet
    "up_blocks": "up",
    "transformer_blocks": "model",  # Flux, SD3, PixArt in diffusers
    "double_blocks": "model",  # the same blocks in the original Flux
    "single_transformer_blocks": "single",
    "single_blocks": "single",
}

# A stack word names a half of a model, for its layers and for what stands outside them.
STACK_WORDS: Mapping[str, str] = {
    "encoder": "encoder",
    "decoder": "decoder",
    "mid_block": "mid",
    "qformer": "qformer",
    # CLIP, SigLIP, BLIP, LLaVA, PaliGemma, Qwen-VL, DeepSeek-VL, SAM
    **dict.fromkeys(("vision_model", "vision_tower", "vision_encoder", "vision"), "vision"),
    **dict.fromkeys(("visual", "visual_encoder", "image_encoder", "vision_backbone"), "vision"),
    **dict.fromkeys(("high_res_vision_model",), "vision"),
    # models that are nothing but vision
    **dict.fromkeys(("vit", "deit", "beit", "data2vec_vision", "ijepa"), "vision"),
    **dict.fromkeys(("dinov2", "dinov2_with_registers", "dinov3_vit", "swin", "swinv2"), "vision"),
    # CLIP, SigLIP, BLIP, SmolVLM, CLVP, diffusers pipelines
    **dict.fromkeys(("text_model", "text_encoder", "text_encoder_model", "text_decoder"), "text"),
    **dict.fromkeys(("audio_tower", "audio_model", "audio_encoder", "speech_encoder"), "audio"),
    **dict.fromkeys(("speech_encoder_model",), "audio"),  # CLVP
}

# These win over a stack word further left or right: `vision_model.encoder` is vision.
MODALITIES: frozenset[str] = frozenset({"vision", "text", "audio"})

CROSS_ATTENTION: frozenset[str] = frozenset(
    {
        "encoder_attn",  # BART, Whisper
        "EncDecAttention",  # T5
        "crossattention",  # BERT as a decoder, BLIP, GPT-2
        *("cross_attn", "cross_attention", "crossattn"),  # Mllama, T5Gemma, Mochi
        "multihead_attn",  # torch.nn.TransformerDecoderLayer
        "attn2",  # UNet, PixArt
    }
)

# A whole head, whatever stands inside it: RoBERTa's `classifier.dense`, BERT's `cls.predictions`.
HEADS: frozenset[str] = frozenset(
    {
        *("lm_head", "lm_heads", "embed_out", "generator_lm_head", "generator_predictions"),
        *("cls", "predictions", "pred_layer", "seq_relationship"),
        *("score", "classifier", "pre_classifier", "classification_head", "qa_outputs"),
        *("qa_classifier", "multiple_choice_head", "class_labels_classifier", "enc_score_head"),
        *("head", "heads", "codec_head", "speech_head"),
    }
)
# Heads only at the top of a model: Meta's LLaMA and InternLM2, Whisper and Flux, ModernBERT.
TOP_HEADS: frozenset[str] = frozenset({"output", "proj_out", "decoder"})

# nn.Embedding: (vocabulary, dim) → kind.
EMBEDDINGS: Mapping[str, str] = {
    **dict.fromkeys(("embed_tokens", "embed_tokens_per_layer", "shared"), "embedding"),
    **dict.fromkeys(("wte", "tokens_embed", "embed_in"), "embedding"),  # GPT-2, GPT, GPT-NeoX
    **dict.fromkeys(("word_embeddings", "word_embedding"), "embedding"),  # BERT, BLOOM, XLNet
    **dict.fromkeys(("token_embedding", "tok_embeddings"), "embedding"),  # CLIP, Meta's LLaMA
    **dict.fromkeys(("text_token_embedding", "input_embeds_layer"), "embedding"),  # CLVP
    **dict.fromkeys(("input_embeds_layers", "unit_embedding", "codebook"), "embedding"),
    **dict.fromkeys(("embed_text_tokens", "embed_audio_tokens"), "embedding"),  # CSM
    **dict.fromkeys(("embedding", "embeddings", "embeddings.embed"), "embedding"),  # Mamba, Dia
    **dict.fromkeys(("transformer.w", "encoder.embed"), "embedding"),  # CTRL, FastSpeech2
    **dict.fromkeys(("ngram_embeddings", "encoder_hash_tok_embedding"), "embedding"),
    **dict.fromkeys(("HashBucketCodepointEmbedder", "entity_embeddings"), "embedding"),
    **dict.fromkeys(("embed_global", "embed_char", "visual_embeddings_table"), "embedding"),
    **dict.fromkeys(("generation_embeddings", "label_embed", "cls_embed"), "embedding"),
    **dict.fromkeys(("pronunciation_embed", "shape_embed"), "embedding"),  # RoCBert
    **dict.fromkeys(("xpath_tag_sub_embeddings", "xpath_subs_sub_embeddings"), "embedding"),
    **dict.fromkeys(("token_type_embeddings", "segment_embedding"), "token_type"),
    **dict.fromkeys(("segment_emb", "visual_token_type_embeddings"), "token_type"),
    **dict.fromkeys(("language_embedding", "speaker_embedding", "level_embed"), "token_type"),
    **dict.fromkeys(("wpe", "positions_embed", "position_embeds_layer"), "position"),
    **dict.fromkeys(("position_embeddings", "position_embedding"), "position"),
    **dict.fromkeys(("position_embedding_table", "positional_embedding"), "position"),
    **dict.fromkeys(("embed_positions", "pos_embed", "pos_emb", "embed_timestep"), "position"),
    **dict.fromkeys(("text_position_embedding", "visual_position_embeddings"), "position"),
    **dict.fromkeys(("x_position_embeddings", "y_position_embeddings"), "position"),  # LayoutLM
    **dict.fromkeys(("h_position_embeddings", "w_position_embeddings"), "position"),
    **dict.fromkeys(("row_position_embeddings", "col_position_embeddings"), "position"),
    **dict.fromkeys(("box_position_embeddings", "char_position_embeddings"), "position"),
    **dict.fromkeys(("row_embeddings", "column_embeddings", "tile_embedding"), "position"),
    **dict.fromkeys(("row_embedder", "column_embedder", "freq_emb"), "position"),
    # relative positions, inside attention: T5, MPNet, BERT, Conformers, SEW-D, SpeechT5, WavLM
    **dict.fromkeys(("relative_attention_bias", "global_relative_attention_bias"), "position"),
    **dict.fromkeys(("distance_embedding", "rel_pos_emb", "rel_embeddings"), "position"),
    **dict.fromkeys(("pe_k", "rel_attn_embed"), "position"),
    # learned queries of detectors and of SAM
    **dict.fromkeys(("query_position_embeddings", "query_embed", "query_feat"), "learned_query"),
    **dict.fromkeys(("queries_embedder", "queries_features", "reference_points"), "learned_query"),
    **dict.fromkeys(("reference_point_embed", "denoising_class_embed"), "learned_query"),
    **dict.fromkeys(("point_embed", "not_a_point_embed", "no_mask_embed"), "learned_query"),
    **dict.fromkeys(("iou_token", "mask_tokens", "obj_score_token", "hq_token"), "learned_query"),
    **dict.fromkeys(("presence_token",), "learned_query"),
}
# Laid out as an embedding, though a bare parameter and no module: open_clip.
BARE_EMBEDDINGS: frozenset[str] = frozenset({"positional_embedding"})

# The end of a module path → kind.
KINDS: Mapping[str, str] = {
    # query, key, value
    **dict.fromkeys(("q_proj", "query", "q_lin", "query_proj", "linear_q"), "q"),
    **dict.fromkeys(("k_proj", "key", "k_lin", "key_proj", "linear_k"), "k"),
    **dict.fromkeys(("v_proj", "value", "v_lin", "value_proj", "linear_v"), "v"),
    **dict.fromkeys(("q", "wq", "Wq", "to_q", "c_q"), "q"),  # T5, Meta, CTRL, diffusers, nanochat
    **dict.fromkeys(("k", "wk", "Wk", "to_k", "c_k"), "k"),
    **dict.fromkeys(("v", "wv", "Wv", "to_v", "c_v"), "v"),
    "q_attn": "q",  # GPT-2 with cross-attention
    # fused
    **dict.fromkeys(("qkv_proj", "qkv", "query_key_value", "to_qkv"), "qkv"),
    **dict.fromkeys(("Wqkv", "wqkv", "W_pack"), "qkv"),  # MPT, InternLM2, Baichuan
    **dict.fromkeys(("in_proj_weight", "in_proj_bias", "in_proj_qkv"), "qkv"),
    **dict.fromkeys(("qkv_linear", "att_proj", "to_added_qkv"), "qkv"),  # LayoutLMv2, Bark, Flux
    "self.in_proj": "qkv",  # DeBERTa
    "c_attn": "qkv",  # GPT-2, GPT-BigCode, Qwen 1
    "crossattention.c_attn": "kv",
    **dict.fromkeys(("kv_proj", "to_kv"), "kv"),
    # DeepSeek's low-rank attention
    "q_a_proj": "q_a",
    "q_b_proj": "q_b",
    "kv_a_proj_with_mqa": "kv_a",
    "kv_b_proj": "kv_b",
    # Flux and SD3: the text half of joint attention
    "add_q_proj": "add_q",
    "add_k_proj": "add_k",
    "add_v_proj": "add_v",
    "to_add_out": "add_o",
    # attention's output
    **dict.fromkeys(("o_proj", "out_proj", "out_lin", "to_out", "o"), "o"),
    **dict.fromkeys(("attention.output.dense", "crossattention.output.dense"), "o"),  # BERT
    **dict.fromkeys(("attention.dense", "self_attention.dense", "self_attn.dense"), "o"),
    "multi_head_attention.dense": "o",  # CTRL
    "attention.output": "o",  # RWKV
    **dict.fromkeys(("attn.c_proj", "crossattention.c_proj"), "o"),  # GPT-2
    **dict.fromkeys(("attn.proj", "self_attn.projection"), "o"),  # Qwen-VL and timm, BLIP
    **dict.fromkeys(("attention.wo", "attn.wo", "self_attn.wo", "attn.Wo"), "o"),
    "mixer.out_proj": "out_proj",  # Mamba, which has no attention
    "mamba.out_proj": "out_proj",
    # MLP
    **dict.fromkeys(("gate_proj", "wi_0"), "gate"),
    "self_attn.gate_proj": "attn_gate",  # AFMoE
    **dict.fromkeys(("up_proj", "wi_1", "wi"), "up"),
    **dict.fromkeys(("down_proj", "wo"), "down"),
    **dict.fromkeys(("gate_up_proj", "gate_up_proj_bias", "gate_up_proj_blocks"), "gate_up"),
    **dict.fromkeys(("gate_up_proj_scales", "input_linear", "fc1.proj"), "gate_up"),
    **dict.fromkeys(("down_proj_bias", "down_proj_blocks", "down_proj_scales"), "down"),
    **dict.fromkeys(("up_gate_proj", "weights_in", "experts.fc1"), "gate_up"),
    "output_linear": "down",  # GraniteMoE
    "self_attention.experts.input_linear": "q",  # JetMoE
    "self_attention.experts.output_linear": "o",
    "w1": "gate",  # Meta's LLaMA, Mixtral, DBRX
    **dict.fromkeys(("w3", "v1"), "up"),
    "w2": "down",
    "mlp.w1": "up",  # Qwen 1: w1(x) · silu(w2(x))
    "mlp.w2": "gate",
    "mlp.w12": "gate_up",  # the original DINOv2
    "mlp.w3": "down",
    **dict.fromkeys(("experts.mlp.w1",), "gate"),  # DBRX
    **dict.fromkeys(("experts.mlp.w2",), "down"),
    **dict.fromkeys(("fc1", "lin1", "fc_in", "c_fc", "dense_h_to_4h", "linear_fc1"), "up"),
    **dict.fromkeys(("fc2", "lin2", "fc_out", "dense_4h_to_h", "linear_fc2"), "down"),
    "mlp.c_proj": "down",  # GPT-2
    **dict.fromkeys(("intermediate.dense", "intermediate_dense", "albert_layers.ffn"), "up"),
    **dict.fromkeys(("output.dense", "output_dense", "albert_layers.ffn_output"), "down"),
    "intermediate_query.dense": "query_up",  # BLIP-2: a second MLP for the queries
    "output_query.dense": "query_down",
    "pwconv1": "up",  # ConvNeXt
    "pwconv2": "down",
    "mlp.Wi": "gate_up",  # ModernBERT
    "mlp.Wo": "down",
    **dict.fromkeys(("linear1", "ff.layer_1", "feed_forward.key"), "up"),  # XLNet, RWKV
    **dict.fromkeys(("linear2", "ff.layer_2", "feed_forward.value"), "down"),
    **dict.fromkeys(("net.proj", "proj_mlp"), "up"),  # diffusers
    "ff.net": "down",
    "ff_context.net": "add_down",
    "ff_context.net.proj": "add_up",
    "single_blocks.linear1": "qkv_up",  # the original Flux: attention and MLP side by side
    "single_blocks.linear2": "o_down",
    "single_transformer_blocks.proj_out": "o_down",
    # mixture of experts
    **dict.fromkeys(("router", "router.classifier", "router.layer", "router.proj"), "router"),
    **dict.fromkeys(("mlp.gate", "block_sparse_moe.gate", "feed_forward.gate"), "router"),
    **dict.fromkeys(("ffn.gate", "mixer.gate", "moe.gate"), "router"),
    # outside the layers
    "pooler.dense": "pooler",
    "multi_modal_projector.linear": "projector",
    "multi_modal_projector.linear_1": "projector",
    "multi_modal_projector.linear_2": "projector",
    **dict.fromkeys(("patch_embedding", "patch_embeddings", "patch_embed"), "conv"),
    **dict.fromkeys(("patch_embeddings.projection", "patch_embed.proj"), "conv"),
}

# Kinds that a part of the last component's name tells, where the tables above have no entry.
KIND_PATTERNS: Mapping[str, str] = {
    "norm": r"(?i)norm|^ln(?:_|\d|$)|_ln$",  # input_layernorm, LayerNorm, ln_1, ln_f
    "conv": r"(?i)conv",  # conv1, conv_shortcut, depthwise_conv, convolution
}

# transformers.pytorch_utils.Conv1D stores (in, out). All of its uses as of transformers 5.23.
CONV1D_MODULES: frozenset[str] = frozenset(
    {
        *("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
        # GPT-2, ImageGPT and Decision Transformer with add_cross_attention
        *("crossattention.q_attn", "crossattention.c_attn", "crossattention.c_proj"),
    }
)
CONV1D_MODEL_TYPES: frozenset[str] = frozenset(
    {
        *("gpt2", "gpt-sw3", "openai-gpt", "imagegpt", "decision_transformer"),
        *("clvp", "clvp_decoder"),  # the MLP only: its attention is nn.Linear under other names
    }
)
# Their decoder may be any model, GPT-2 among them, and keeps its own names.
COMPOSITE_MODEL_TYPES: frozenset[str] = frozenset(
    {"encoder-decoder", "vision-encoder-decoder", "speech-encoder-decoder"}
)
