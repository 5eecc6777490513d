"""Layouts told from names, shapes and configs alone, and those that cannot be."""

from math import prod
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rows import said

from wdecomp.layouts import Layout, layout
from wdecomp.layouts.config import HEADS as HEADS_KEYS
from wdecomp.layouts.config import KEY_VALUE_HEADS
from wdecomp.layouts.table import FAMILIES, INPUT_FIRST, SPELLED, STACKS
from wdecomp.names import place

HEADS = {"num_attention_heads": 4, "hidden_size": 24}
GLM = HEADS | {"model_type": "chatglm", "kv_channels": 6, "ffn_hidden_size": 20}
HEADED = "h.0.self_attention.query_key_value"
WQKV = "layers.0.attention.wqkv"
QUERY_KEY_VALUE = "encoder.layers.0.self_attention.query_key_value"


@pytest.mark.parametrize(
    ("name", "shape", "config", "why"),
    [
        ("transformer.h.0.attn.c_attn.weight", (72, 24), {}, "model_type"),
        ("h.0.self_attention.query_key_value.weight", (72, 24), {}, "model_type"),
        ("model.layers.0.attention.wqkv.weight", (72, 24), {}, "model_type"),
        ("h.0.attn.qkv_proj.weight", (72, 24), {}, "model_type"),
        ("layers.0.self_attn.qkv_proj.weight", (48, 24), {}, "num_attention_heads"),
        ("layers.0.self_attn.qkv_proj.weight", (48, 24), {"num_attention_heads": 5}, "48 outputs"),
        ("layers.0.attention.query_key_value.weight", (72, 24), {"model_type": "bloom"}, "heads"),
        (f"{QUERY_KEY_VALUE}.weight", (40, 24), HEADS | {"model_type": "bloom"}, "40 outputs"),
        (f"{QUERY_KEY_VALUE}.weight", (49, 24), HEADS | {"model_type": "falcon"}, "49 outputs"),
        (
            f"{WQKV}.weight",
            (60, 24),
            HEADS | {"model_type": "internlm2", "num_key_value_heads": 3},
            "4 heads",
        ),
        ("transformer.h.0.attn.qkv_proj.weight", (40, 24), {"model_type": "codegen"}, "4 blocks"),
        ("model.layers.0.mlp.gate_up_proj.weight", (41, 24), {}, "41 outputs"),
        ("model.layers.0.mlp.experts.gate_up_proj", (3, 24, 20), {}, "experts"),
        ("transformer.blocks.0.ffn.experts.mlp.w1", (15, 24), {}, "number of experts"),
    ],
)
def test_what_cannot_be_known_is_not_split_and_says_so(
    name: str, shape: tuple[int, ...], config: dict[str, Any], why: str
) -> None:
    found = layout(name, shape, config)
    assert (found.parts, found.input_first) == ((), None)
    assert why in found.note


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        # 24 features of 4 heads: 6 each; 8 fit no head size, whatever the sum
        ({"num_attention_heads": 4, "num_key_value_heads": 1}, (48, 24)),
        ({"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 7}, (36, 24)),
        ({"num_attention_heads": 4, "num_key_value_heads": 3}, (37, 24)),
    ],
)
def test_sizes_that_do_not_add_up_are_not_forced(
    config: dict[str, Any], shape: tuple[int, ...]
) -> None:
    found = layout("layers.0.self_attn.qkv_proj.weight", shape, config | {"model_type": "phi3"})
    assert found.parts == ()
    assert f"{shape[0]} outputs" in found.note


def test_names_alone_suffice_where_all_families_agree() -> None:
    for name in ("blocks.0.attn.qkv", "encoder.layers.0.mixer.Wqkv", "layers.0.self_attn.W_pack"):
        assert said(layout(f"{name}.weight", (9, 3), {}), 9) == "qqqkkkvvv"
    assert said(layout("transformer.h.0.attn.c_attn.weight", (3, 9), {}), 9) == "qqqkkkvvv"
    assert said(layout("transformer.h.0.attn.c_attn.weight", (10, 6), {}), 10) == "qqqqqqkkvv"
    cross = layout("transformer.h.0.crossattention.c_attn.weight", (3, 6), {"model_type": "gpt2"})
    assert said(cross, 6) == "kkkvvv"


@pytest.mark.parametrize(
    ("name", "config", "view", "queries"),
    [
        # (blocks, in a block, head) of the output, as their own code views it; how many are queries
        (WQKV, HEADS | {"model_type": "internlm2", "num_key_value_heads": 2}, (2, 4, 6), 2),
        (QUERY_KEY_VALUE, GLM, (4, 3, 6), 1),
        (
            "model.layers.0.self_attn.qkv_proj",
            HEADS | {"model_type": "minimax", "head_dim": 9},
            (4, 3, 9),
            1,
        ),
        (
            HEADED,
            HEADS | {"model_type": "RefinedWebModel"},
            (1, 6, 6),
            4,
        ),
        (
            HEADED,
            {"model_type": "RefinedWeb", "n_head": 4, "n_head_kv": 2},
            (2, 4, 6),
            2,
        ),
    ],
)
def test_families_that_come_with_their_own_code(
    name: str, config: dict[str, Any], view: tuple[int, int, int], queries: int
) -> None:
    blocks, of_block, head = view
    expected = ("q" * queries * head + "k" * head + "v" * head) * blocks
    outputs = blocks * of_block * head
    assert said(layout(f"{name}.weight", (outputs, 24), config), outputs) == expected


def test_chatglm_and_qwen() -> None:
    grouped = GLM | {"multi_query_attention": True, "multi_query_group_num": 2}
    assert layout(f"{QUERY_KEY_VALUE}.weight", (48, 24), grouped).note == (
        "outputs [q 24 | k 12 | v 12]"
    )
    mlp = "encoder.layers.0.mlp.dense_h_to_4h.weight"
    assert layout(mlp, (40, 24), grouped).note == "outputs [gate 20 | up 20]"
    assert layout(mlp, (96, 24), {"model_type": "chatglm"}) == Layout()  # the first had no gate
    qwen = HEADS | {"model_type": "qwen", "kv_channels": 5}
    assert said(layout("transformer.h.0.attn.c_attn.weight", (60, 24), qwen), 60) == (
        "q" * 20 + "k" * 20 + "v" * 20
    )


def test_the_original_flux_names_its_parts_as_diffusers_does() -> None:
    double = layout("double_blocks.2.img_attn.qkv.weight", (9, 3), {})
    assert said(double, 9) == "qqqkkkvvv"
    assert "transformer_blocks.2.attn.to_q.weight" in double.parts[0].split_names
    text = layout("double_blocks.2.txt_attn.qkv.weight", (9, 3), {})
    assert [part.module for part in text.parts] == ["add_q", "add_k", "add_v"]
    assert "transformer_blocks.2.attn.add_k_proj.weight" in text.parts[1].split_names
    single = layout("single_blocks.2.linear1.weight", (21, 3), {})
    assert [(p.module, p.outputs) for p in single.parts] == [
        ("q", (range(3),)),
        ("k", (range(3, 6),)),
        ("v", (range(6, 9),)),
        ("up", (range(9, 21),)),
    ]
    assert "single_transformer_blocks.2.proj_mlp.weight" in single.parts[3].split_names


def test_what_is_no_weight_of_a_fused_module_stays_whole() -> None:
    phi = {"model_type": "phi3", "num_attention_heads": 4}
    for name, shape in [
        ("model.layers.0.self_attn.qkv_proj.bias", (72,)),
        ("model.layers.0.self_attn.qkv_proj.weight", (72, 24, 1)),
        ("model.layers.0.self_attn.q_proj.weight", (24, 24)),
        ("model.encoder.conv1.weight", (8, 4, 3)),
        ("model.layers.0.mlp.experts.gate_up_proj_bias", (3, 40)),
        ("model.layers.0.mlp.experts.3.gate_proj.weight", (20, 24)),
    ]:
        assert layout(name, shape, phi) == Layout(), name


def test_a_vision_tower_does_not_take_the_numbers_of_its_language_model() -> None:
    text = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 9}
    vision = {"num_heads": 6, "num_key_value_heads": 3}
    name, shape = "model.visual.blocks.0.attn.qkv.weight", (48, 24)
    assert "num_attention_heads" in layout(name, shape, text).note
    both = {"text_config": text, "vision_config": vision}
    assert layout(name, shape, both).note == "outputs [q 24 | k 12 | v 12]"
    own = layout("model.language_model.layers.0.self_attn.qkv_proj.weight", (72, 36), both)
    assert own.note == "outputs [q 36 | k 18 | v 18]"


FUSED = {"qkv", "kv", "gate_up", "qkv_up"}
SINGLE = {"gate", "up", "down"}


def test_what_is_in_the_tables_has_a_kind_of_the_tables() -> None:
    for rows in (SPELLED, *FAMILIES.values()):
        for key in rows:
            kind = place(f"x.layers.0.attention.self.{key}.weight").module
            assert kind in (FUSED | SINGLE), key
    for key, kind in STACKS.items():
        assert place(f"x.layers.0.{key}.weight").module == kind, key


KEYS = sorted({*SPELLED, *STACKS, *(key for rows in FAMILIES.values() for key in rows)})
SIZES = st.sampled_from([0, 1, 2, 3, 4, 6, 12, 24, 36, 48, 72, 96])
VALUES = st.one_of(
    SIZES, st.none(), st.booleans(), st.text(max_size=3), st.lists(SIZES, max_size=2)
)
COUNTS = st.sampled_from([1, 2, 3, 4, 6])
OTHERS = [*KEY_VALUE_HEADS, "head_dim", "hidden_size", "multi_query", "new_decoder_architecture"]
OTHERS += ["ffn_hidden_size", "activation_fn", "vision_config", "attn_config", "encoder"]
USUAL = {"model_type": st.sampled_from(sorted({*FAMILIES, *INPUT_FIRST, "mixtral", "dbrx"}))}
USUAL |= dict.fromkeys((HEADS_KEYS[0], "moe_num_experts"), COUNTS)
TYPED = st.fixed_dictionaries(USUAL, optional=dict.fromkeys(OTHERS, VALUES))
FLAT = st.dictionaries(st.sampled_from([*USUAL, *OTHERS]), VALUES)
NESTED = st.builds(lambda c, t: c | {"text_config": t}, FLAT, TYPED)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.builds("{}layers.3.{}{}".format, st.sampled_from(["", "model.", "encoder.", "visual."]),
                   st.sampled_from(KEYS), st.sampled_from(["", ".weight"])),
    shape=st.one_of(st.tuples(SIZES, SIZES), st.lists(SIZES, max_size=4).map(tuple)),
    config=st.one_of(TYPED, FLAT, NESTED),
)  # fmt: skip
def test_parts_are_all_of_a_tensor_whatever_its_name_shape_and_config(
    name: str, shape: tuple[int, ...], config: dict[str, Any]
) -> None:
    found = layout(name, shape, config)
    if not found.parts:
        return
    seen = found.view or shape
    assert prod(seen) == prod(shape)
    rows, columns = seen[-2:]
    outputs = (
        {rows, columns} if found.input_first is None else {columns if found.input_first else rows}
    )
    planes: dict[int | None, list[int]] = {}
    for part in found.parts:
        of_plane = planes.setdefault(part.plane, [])
        of_plane += [i for piece in part.outputs or (range(max(outputs)),) for i in piece]
        assert part.outputs is None or sorted(part.outputs, key=lambda r: r.start) == list(
            part.outputs
        )
    assert set(planes) == (set(range(seen[0])) if len(seen) == 3 else {None})
    assert all(
        sorted(had) == list(range(len(had))) and len(had) in outputs for had in planes.values()
    )


def test_a_tensor_without_elements_has_no_parts_however_many_it_claims() -> None:
    assert layout("mlp.experts.gate_up_proj", (10**12, 0, 4), {"model_type": "mixtral"}) == Layout()
