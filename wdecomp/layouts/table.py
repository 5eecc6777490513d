"""Which layout a fused or stacked weight has, as data.

A key is the end of a module path with its indices taken out; of two that match the longer wins.
The value names a scheme of `wdecomp.layouts.schemes`. To teach wdecomp a family, add its row.
"""

from collections.abc import Mapping


def _for(rows: dict[str, str], names: str) -> dict[str, dict[str, str]]:
    return dict.fromkeys(names.split(), rows)


# Spellings that every family that has them uses alike.
SPELLED: Mapping[str, str] = {
    **dict.fromkeys(("in_proj_weight", "qkv", "to_qkv", "qkv_linear"), "q k v"),
    **dict.fromkeys(("self_attn.qkv_proj", "attention.qkv_proj"), "q k v"),  # Phi-3, GTE
    **dict.fromkeys(("Wqkv", "W_pack", "att_proj"), "q k v"),  # MPT, DBRX, Baichuan, Bark
    **dict.fromkeys(("to_added_qkv", "txt_attn.qkv", "context_block.attn.qkv"), "add q k v"),
    "to_kv": "k v",
    **dict.fromkeys(("gate_up_proj", "shared_mlp.input_linear", "mlp.weights_in"), "gate up"),
    # Their first half goes through the activation: ModernBERT, the original DINOv2
    **dict.fromkeys(("mlp.Wi", "mlp.w12"), "gate up"),
    **dict.fromkeys(("mlp.up_gate_proj",), "up gate"),  # GTE
    **dict.fromkeys(("feed_forward_in.gate_up_proj",), "up gate"),  # Phi-4's audio encoder
    **dict.fromkeys(("feed_forward_out.gate_up_proj",), "up gate"),
    "net.proj": "geglu",  # diffusers
    "single_blocks.linear1": "q k v mlp",  # the original Flux
    "attn.c_attn": "c_attn",
    "crossattention.c_attn": "k v",
    "experts.mlp.w1": "experts of outputs",  # DBRX
    "experts.mlp.v1": "experts of outputs",
    "experts.mlp.w2": "experts of inputs",
}

# Spellings that families use for different layouts.
AMBIGUOUS: Mapping[str, str] = dict.fromkeys(("query_key_value", "wqkv", "qkv_proj"), "unknown")

FAMILIES: Mapping[str, Mapping[str, str]] = {
    **_for({"attn.c_attn": "q k v"}, "gpt2 gpt-sw3 openai-gpt imagegpt decision_transformer qwen"),
    "gpt_bigcode": {"attn.c_attn": "bigcode", "crossattention.c_attn": "unknown"},
    **_for({"query_key_value": "each head"}, "gpt_neox gpt_neox_japanese bloom persimmon fuyu"),
    **_for({"query_key_value": "falcon"}, "falcon RefinedWeb RefinedWebModel"),
    "chatglm": {"query_key_value": "chatglm", "mlp.dense_h_to_4h": "chatglm mlp"},
    "deberta": {"in_proj": "each head"},
    "minimax": {"self_attn.qkv_proj": "each head"},
    "codegen": {"attn.qkv_proj": "codegen"},
    "internlm2": {"attention.wqkv": "each group"},
    "kimi_k25": {"wqkv": "thirds"},
    **_for({"attn.qkv": "thirds"}, "hiera sam2 sam2_vision_model sam2_hiera_det_model"),
    "jetmoe": {"kv_proj": "k v"},
    "clvp": {"mlp.fc1.proj": "up gate"},
}

# Stacks of matrices, one an expert: the end of the path → what an expert's matrix is.
STACKS: Mapping[str, str] = {
    **dict.fromkeys(("experts.gate_up_proj", "experts.fc1"), "gate_up"),
    **dict.fromkeys(("block_sparse_moe.input_linear", "mlp.input_linear"), "gate_up"),
    **dict.fromkeys(("experts.down_proj", "experts.fc2", "moe.down_proj"), "down"),
    **dict.fromkeys(("block_sparse_moe.output_linear", "mlp.output_linear"), "down"),
    **dict.fromkeys(("experts.up_proj", "moe.up_proj"), "up"),
    **dict.fromkeys(("experts.gate_proj", "moe.gate_proj"), "gate"),
    "self_attention.experts.input_linear": "q",  # JetMoE
    "self_attention.experts.output_linear": "o",
}
# Stored (expert, input, output), where the width of the model does not tell. Qwen3-VL on disk only.
INPUT_FIRST: frozenset[str] = frozenset(
    {"gpt_oss", "llama4", "aria", "openai_privacy_filter", "qwen3_vl_moe"}
)
# gate and up take turns instead of standing side by side.
TURNS: frozenset[str] = frozenset({"gpt_oss"})

# How a checkpoint that stores a part alone spells its module, likeliest first.
ALONE: Mapping[str, tuple[str, ...]] = {
    "q": ("q_proj", "to_q", "query", "q", "wq"),
    "k": ("k_proj", "to_k", "key", "k", "wk"),
    "v": ("v_proj", "to_v", "value", "v", "wv"),
    "add_q": ("add_q_proj",),
    "add_k": ("add_k_proj",),
    "add_v": ("add_v_proj",),
    "gate": ("gate_proj", "w1"),
    "up": ("up_proj", "w3"),
    "down": ("down_proj", "w2"),
    "mlp": ("proj_mlp",),
}
# The block around a fused projection, and how the block around separate ones is spelled besides.
ATTENTIONS: frozenset[str] = frozenset({"attn", "attention", "self_attention", "mixer"})
SEPARATE_ATTENTIONS: tuple[str, ...] = ("self_attn", "attention", "attention.attention")
