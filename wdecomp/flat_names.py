"""Flat names of kohya and LyCORIS to a base's names: `lora_unet_down_blocks_0_…_to_q.weight`.

A flat name is a prefix for the component and the module's path with `_` for `.`. Every base name is
flattened and looked up. The U-Nets of Stable Diffusion and the transformer of Flux have two sets of
names each, the original authors' and diffusers'; both are brought to those of diffusers. Original
Flux has projections in one tensor that diffusers has in several: such a name has several in a base.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping

Fits = Callable[[str, str], bool]

# Prefix of a flat name → the component that it is about; "" for any.
PREFIXES: Mapping[str, str] = {
    "lora_unet_": "unet",
    "lora_transformer_": "unet",
    "lora_te1_": "te1",
    "lora_te2_": "te2",
    "lora_te3_": "te3",
    "lora_te_": "te1",
    "lycoris_": "",
}
# Start of a base name → component: of diffusers' pipelines and of original single files.
COMPONENTS: Mapping[str, str] = {
    "unet.": "unet",
    "transformer.": "unet",
    "model.diffusion_model.": "unet",
    "diffusion_model.": "unet",
    "text_encoder.": "te1",
    "text_encoder_2.": "te2",
    "text_encoder_3.": "te3",
    "cond_stage_model.transformer.": "te1",
    "conditioner.embedders.0.transformer.": "te1",
}
LEAVES = (".weight", ".bias")
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
_UNET = re.compile(r"(input_blocks|output_blocks|middle_block)_([0-9]{1,3})_(?:([0-9])_)?(.+)")
_FLUX = re.compile(r"(double|single)_blocks_([0-9]{1,3})_(.+)")


def match_flat(
    base: Iterable[str], flat: Iterable[str], fits: Fits | None = None
) -> dict[str, tuple[str, ...]]:
    """The base's names for each flat name: none, one, or those of which the module is made up.

    Args:
        base: parameter names, below components of a pipeline or not.
        flat: parameter names whose modules are flat.
        fits: whether a flat and a base name have one shape; without it no name is matched by its
            end alone.

    >>> match_flat(["unet.mid_block.proj.weight"], ["lora_unet_mid_block_proj.weight"])
    {'lora_unet_mid_block_proj.weight': ('unet.mid_block.proj.weight',)}
    """
    exact, ends = _index(base)
    found = {}
    for name in flat:
        component, module, leaf = _split_flat(name)
        wanted = [f"{each}{leaf}" for each in diffusers_modules(module)]
        here = [_look(exact, component, each) for each in wanted]
        if None in here and fits is not None:
            here = [_by_end(ends, component, each, name, fits) for each in wanted]
        found[name] = () if None in here else tuple(each for each in here if each)
    return found


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


def _split_flat(name: str) -> tuple[str, str, str]:
    """Component, flat module and leaf."""
    leaf = next((leaf for leaf in LEAVES if name.endswith(leaf)), "")
    module = name.removesuffix(leaf)
    for prefix, component in PREFIXES.items():
        if module.startswith(prefix):
            return component, module.removeprefix(prefix), leaf
    return "", module, leaf


Exact = dict[tuple[str, str], set[str]]


def _index(base: Iterable[str]) -> tuple[Exact, Exact]:
    """Base names by component and flat name, and by the ends of their flat names."""
    exact: Exact = defaultdict(set)
    ends: Exact = defaultdict(set)
    for name in base:
        component, flat = _flattened(name)
        for key in {component, ""}:
            for spelled in _spelled(flat):
                exact[key, spelled].add(name)
            for end in _ends(flat):
                ends[key, end].add(name)
    return exact, ends


def _flattened(name: str) -> tuple[str, str]:
    """Component and flat name of a base name, with the module as diffusers has it."""
    component = ""
    for start, known in COMPONENTS.items():
        if name.startswith(start):
            component, name = known, name.removeprefix(start)
            break
    leaf = next((leaf for leaf in LEAVES if name.endswith(leaf)), "")
    module = name.removesuffix(leaf).replace(".", "_")
    renamed = diffusers_modules(module)
    return component, (renamed[0] if len(renamed) == 1 else module) + leaf


def _spelled(flat: str) -> Iterator[str]:
    """With and without the level that transformers 5 has dropped from CLIP's text model."""
    yield flat
    short = flat.removeprefix("text_model_")
    yield short if short != flat else f"text_model_{flat}"


def _ends(flat: str) -> Iterator[str]:
    """All that follows an underscore, down to a layer and three more words."""
    parts = flat.split("_")
    for i in range(1, max(len(parts) - 3, 1)):
        yield "_".join(parts[i:])


def _look(exact: Exact, component: str, flat: str) -> str | None:
    """The one base name; names outside any component may be of every one."""
    for key in ((component, flat), ("", flat)):
        here = exact.get(key, set())
        if len(here) == 1:
            return next(iter(here))
    return None


def _by_end(ends: Exact, component: str, flat: str, name: str, fits: Fits) -> str | None:
    """The one base name that ends so and has the same shape."""
    here = {each for each in ends.get((component, flat), set()) if fits(name, each)}
    return next(iter(here)) if len(here) == 1 else None
