"""The two sets of names of U-Nets, of Flux and of CLIP: the original authors' and diffusers'.

Both are flat, with `_` for `.`; all come out as diffusers has them. Original Flux has projections
in one tensor that diffusers has in several, one after the other.
"""

import re

RESNET = {
    "in_layers_0": "norm1",
    "in_layers_2": "conv1",
    "emb_layers_1": "time_emb_proj",
    "out_layers_0": "norm2",
    "out_layers_3": "conv2",
    "skip_connection": "conv_shortcut",
}
OUTSIDE = {
    "input_blocks_0_0": "conv_in",
    "time_embed_0": "time_embedding_linear_1",
    "time_embed_2": "time_embedding_linear_2",
    "label_emb_0_0": "add_embedding_linear_1",
    "label_emb_0_2": "add_embedding_linear_2",
    "out_0": "conv_norm_out",
    "out_2": "conv_out",
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in_in_layer": "time_text_embed_timestep_embedder_linear_1",
    "time_in_out_layer": "time_text_embed_timestep_embedder_linear_2",
    "vector_in_in_layer": "time_text_embed_text_embedder_linear_1",
    "vector_in_out_layer": "time_text_embed_text_embedder_linear_2",
    "guidance_in_in_layer": "time_text_embed_guidance_embedder_linear_1",
    "guidance_in_out_layer": "time_text_embed_guidance_embedder_linear_2",
    "final_layer_linear": "proj_out",
}
PER_BLOCK = 3  # layers of a block of the original U-Net: two, and a sampler
FLUX_DOUBLE = {
    "img_attn_qkv": ("attn_to_q", "attn_to_k", "attn_to_v"),
    "txt_attn_qkv": ("attn_add_q_proj", "attn_add_k_proj", "attn_add_v_proj"),
    "img_attn_proj": ("attn_to_out_0",),
    "txt_attn_proj": ("attn_to_add_out",),
    "img_mlp_0": ("ff_net_0_proj",),
    "img_mlp_2": ("ff_net_2",),
    "txt_mlp_0": ("ff_context_net_0_proj",),
    "txt_mlp_2": ("ff_context_net_2",),
    "img_mod_lin": ("norm1_linear",),
    "txt_mod_lin": ("norm1_context_linear",),
}
FLUX_SINGLE = {
    "linear1": ("attn_to_q", "attn_to_k", "attn_to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation_lin": ("norm_linear",),
}
OPEN_CLIP = {
    "attn_out_proj": "self_attn_out_proj",
    "mlp_c_fc": "mlp_fc1",
    "mlp_c_proj": "mlp_fc2",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
}
_OPEN_CLIP = re.compile(r"transformer_resblocks_([0-9]{1,3})_(.+)")
_UNET = re.compile(r"(input_blocks|output_blocks|middle_block)_([0-9]{1,3})_(?:([0-9])_)?(.+)")
_FLUX = re.compile(r"(double|single)_blocks_([0-9]{1,3})_(.+)")


def diffusers_modules(module: str) -> tuple[str, ...]:
    """The flat modules of diffusers that an original flat module is; itself if it is no such.

    >>> diffusers_modules("input_blocks_4_1_proj_in")
    ('down_blocks_1_attentions_0_proj_in',)
    >>> diffusers_modules("double_blocks_0_img_attn_proj")
    ('transformer_blocks_0_attn_to_out_0',)
    """
    if module in OUTSIDE:
        return (OUTSIDE[module],)
    if unet := _UNET.fullmatch(module):
        return (_of_unet(unet) or module,)
    if flux := _FLUX.fullmatch(module):
        kind, number, rest = flux.groups()
        front = "transformer_blocks" if kind == "double" else "single_transformer_blocks"
        parts = (FLUX_DOUBLE if kind == "double" else FLUX_SINGLE).get(rest)
        return tuple(f"{front}_{number}_{part}" for part in parts) if parts else (module,)
    if clip := _OPEN_CLIP.fullmatch(module):
        return (f"text_model_encoder_layers_{clip[1]}_{OPEN_CLIP.get(clip[2], clip[2])}",)
    return (module,)


def _of_unet(found: re.Match[str]) -> str | None:
    side, number, inner, rest = found[1], int(found[2]), found[3], found[4]
    if side == "middle_block":
        rest = f"{inner}_{rest}" if inner else rest
        kind = ("resnets_0", "attentions_0", "resnets_1")[number] if number < 3 else None
        return kind and f"mid_block_{kind}_{_inside(kind, rest)}"
    if inner is None:
        return None
    down = side == "input_blocks"
    block, layer = divmod(number - 1 if down else number, PER_BLOCK)
    if down and rest == "op":
        return f"down_blocks_{block}_downsamplers_0_conv"
    if not down and rest == "conv":
        return f"up_blocks_{block}_upsamplers_0_conv"
    kind = "resnets" if inner == "0" else "attentions"
    return f"{'down' if down else 'up'}_blocks_{block}_{kind}_{layer}_{_inside(kind, rest)}"


def _inside(kind: str, rest: str) -> str:
    return RESNET.get(rest, rest) if kind.startswith("resnets") else rest
