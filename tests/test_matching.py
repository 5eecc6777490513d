"""Tuned names to base names: each way of finding a partner, and when there is none."""

import time

import pytest

from wdecomp.errors import PairingError
from wdecomp.matching import match, unwrapped

LAYER = "layers.3.attention.q_proj.weight"


def always(tuned: str, base: str) -> bool:
    return True


def one(tuned: str, base: list[str], model_type: str | None = None) -> str | None:
    return match(base, [tuned], model_type, always)[tuned]


@pytest.mark.parametrize(
    "name",
    [
        "module.a.b.weight",
        "_orig_mod.module.a.b.weight",
        "a._fsdp_wrapped_module.b.weight",
        "a._checkpoint_wrapped_module._fsdp_wrapped_module.b.weight",
        "base_model.model.a.b.weight",
        "module.base_model.model._orig_mod.a.b.weight",
        "a.module.b.weight",
    ],
)
def test_wrappers_come_off_wherever_they_are(name: str) -> None:
    assert unwrapped(name) == "a.b.weight"
    assert match(["a.b.weight"], [name]) == {name: "a.b.weight"}


def test_a_word_that_only_ends_like_a_wrapper_stays() -> None:
    assert unwrapped("my_module.submodule.weight") == "my_module.submodule.weight"


def test_a_name_that_the_base_has_is_that_one_whatever_else_it_could_be() -> None:
    base = ["embed_out.weight", "lm_head.weight"]
    assert one("lm_head.weight", base, "gpt_neox") == "lm_head.weight"
    assert one("embed_out.weight", base, "gpt_neox") == "embed_out.weight"


def test_a_spelling_counts_only_for_the_families_that_have_it() -> None:
    assert match(["embed_out.weight"], ["lm_head.weight"], "gpt_neox") == {
        "lm_head.weight": "embed_out.weight"
    }
    assert match(["embed_out.weight"], ["lm_head.weight"], "llama") == {"lm_head.weight": None}


def test_a_spelling_and_a_leading_component_together() -> None:
    base = [f"vit.encoder.layer.{i}.attention.attention.query.weight" for i in range(3)]
    tuned = [f"layers.{i}.attention.q_proj.weight" for i in range(3)]
    assert list(match(base, tuned, "vit").values()) == base


def test_a_spelling_that_two_tensors_share_is_nobodys() -> None:
    shared = [f"x.{block}.experts.3.w1.weight" for block in ("mlp", "block_sparse_moe")]
    name = "x.mlp.experts.3.gate_proj.weight"
    assert match(shared[:1], [name], "mixtral") == {name: shared[0]}
    assert match(shared[1:], [name], "mixtral") == {name: shared[1]}
    assert match(shared, [name], "mixtral") == {name: None}


def test_a_checkpoint_is_itself_whatever_it_holds() -> None:
    names = [
        "a.weight",
        "module.a.weight",
        "b.module.a.weight",
        "embed_out.weight",
        "lm_head.weight",
    ]
    assert match(names, names, "gpt_neox", always) == dict(zip(names, names, strict=True))


def test_two_tuned_tensors_are_never_one_of_the_base() -> None:
    with pytest.raises(PairingError, match=r"both a\.weight and module\.a\.weight"):
        match(["a.weight"], ["a.weight", "module.a.weight"])


def test_a_unique_end_of_one_shape_is_a_partner() -> None:
    base = [f"lm.model.{LAYER}", "lm.model.layers.4.attention.q_proj.weight", "lm.norm.weight"]
    assert one(f"thing.deep.{LAYER}", base) == base[0]
    assert one("thing.deep.norm.weight", ["x", *base]) == "lm.norm.weight"


@pytest.mark.parametrize(
    ("tuned", "base"),
    [
        # another layer; another module of the layer; only the last component
        (f"a.b.{LAYER}", ["c.d.layers.2.attention.q_proj.weight"]),
        (f"a.b.{LAYER}", ["c.d.layers.3.mlp.q_proj.weight"]),
        ("a.b.weight", ["c.d.weight"]),
        # a tensor of a layer is none outside of the layers
        (f"a.b.{LAYER}", ["c.attention.q_proj.weight"]),
        # two towers of the base, one of which is named
        (f"a.b.{LAYER}", [f"c.text.{LAYER}", f"c.speech.{LAYER}"]),
        (f"a.vision_tower.{LAYER}", [f"c.text_model.{LAYER}"]),
        (f"a.decoder.{LAYER}", [f"c.d.encoder.{LAYER}"]),
    ],
)
def test_an_end_that_is_not_unique_or_not_the_same_is_none(tuned: str, base: list[str]) -> None:
    assert one(tuned, base) is None


def test_an_end_that_two_tuned_tensors_have_is_none() -> None:
    tuned = [f"a.x.{LAYER}", f"a.y.{LAYER}"]
    assert match([f"c.d.{LAYER}"], tuned, None, always) == dict.fromkeys(tuned)


def test_an_end_that_is_taken_already_is_none() -> None:
    found = match([LAYER], [LAYER, f"a.b.{LAYER}"], None, always)
    assert found == {LAYER: LAYER, f"a.b.{LAYER}": None}
    base = "x.layers.3.block_sparse_moe.experts.1.w1.weight"
    renamed, alike = "x.layers.3.mlp.experts.1.gate_proj.weight", f"q.r.{base}"
    assert match([base], [renamed, alike], "mixtral", always) == {renamed: base, alike: None}


def test_shapes_decide_between_ends_and_without_them_no_end_counts() -> None:
    base = [f"c.text.{LAYER}", f"c.speech.{LAYER}"]
    tuned = f"a.b.{LAYER}"
    assert match(base, [tuned], None, lambda _, name: "speech" in name)[tuned] == base[1]
    assert match(base, [tuned], None, lambda *_: False)[tuned] is None
    assert match(base[:1], [tuned])[tuned] is None


def test_a_hundred_thousand_names_take_seconds() -> None:
    parts = ("gate_proj", "up_proj", "down_proj")
    short = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
    indices = [(i, e, part) for i in range(64) for e in range(512) for part in parts]
    base = [f"model.layers.{i}.mlp.experts.{e}.{part}.weight" for i, e, part in indices]
    for tuned in (
        [f"layers.{i}.block_sparse_moe.experts.{e}.{short[part]}.weight" for i, e, part in indices],
        [f"a.b.c.layers.{i}.mlp.experts.{e}.{part}.weight" for i, e, part in indices],
    ):
        start = time.perf_counter()
        assert list(match(base, tuned, "mixtral", always).values()) == base
        assert time.perf_counter() - start < 30  # one comparison each way would take an hour
