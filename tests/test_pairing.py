"""Every tensor of both sides has its partner or a reason."""

import json
from pathlib import Path

import pytest
import torch
from builders import Tensors, low_rank, tiny_llama, write_adapter, write_full
from hypothesis import given, settings
from hypothesis import strategies as st

from wdecomp.checkpoint import open_checkpoint
from wdecomp.errors import PairingError
from wdecomp.matching import match, unwrapped
from wdecomp.pairing import Pairing, pair


def _paired(folder: Path, base: Tensors, tuned: Tensors) -> Pairing:
    return pair(
        open_checkpoint(write_full(folder / "a", base)),
        open_checkpoint(write_full(folder / "b", tuned)),
    )


@pytest.mark.parametrize(
    ("base", "tuned"),
    [
        ("layers.0.q.weight", "module.layers.0.q.weight"),
        ("layers.0.q.weight", "_orig_mod.module.layers.0.q.weight"),
        ("layers.0.q.weight", "layers.0._fsdp_wrapped_module.q.weight"),
        ("layers.0.q.weight", "_fsdp_wrapped_module.layers.0._checkpoint_wrapped_module.q.weight"),
        ("module.layers.0.q.weight", "_orig_mod.layers.0.q.weight"),
        ("layers.0.q.weight", "base_model.model.layers.0.q.weight"),
        ("model.layers.0.q.weight", "layers.0.q.weight"),
        ("layers.0.q.weight", "bert.layers.0.q.weight"),
        ("model.layers.0.q.weight", "transformer.layers.0.q.weight"),
    ],
)
def test_wrappers_and_leading_components_do_not_hide_a_name(base: str, tuned: str) -> None:
    assert match([base, "other.weight"], [tuned]) == {tuned: base}


def test_wrappers_are_taken_off_in_any_order() -> None:
    assert unwrapped("base_model.model.module._orig_mod.base_model.model.a") == "a"


def test_a_front_is_found_for_most_names_and_the_rest_still_match() -> None:
    base = ["model.a.weight", "model.b.weight", "lm_head.weight"]
    assert match(base, ["a.weight", "b.weight", "lm_head.weight"]) == {
        "a.weight": "model.a.weight",
        "b.weight": "model.b.weight",
        "lm_head.weight": "lm_head.weight",
    }


def test_two_tuned_names_of_one_tensor_are_an_error() -> None:
    with pytest.raises(PairingError, match=r"both a\.weight and module\.a\.weight"):
        match(["a.weight"], ["a.weight", "module.a.weight"])


def test_a_head_that_the_base_ties_is_paired_with_its_embedding(tmp_path: Path) -> None:
    tensors = tiny_llama(1)
    head = torch.randn(50, 24)
    found = _paired(tmp_path, tensors, tensors | {"lm_head.weight": head})
    tied = found.matrices["lm_head.weight"]
    assert tied.base.tensor.name == "model.embed_tokens.weight"
    assert tied.shape == (50, 24)
    assert found.matrices["model.embed_tokens.weight"].shape == (24, 50)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("lm_head.weight", (50, 7)), ("score.weight", (2, 24)), ("lm_head.bias", (50,))],
)
def test_a_head_of_other_size_than_the_embedding_is_not_tied(
    name: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    found = _paired(tmp_path, tiny_llama(1), tiny_llama(1) | {name: torch.ones(shape)})
    assert [(g.side, g.tensor, g.reason) for g in found.left_out] == [
        ("tuned", name, "no such tensor in the base")
    ]


def test_another_classifier_is_left_out_and_another_layer_an_error(tmp_path: Path) -> None:
    tensors = tiny_llama(1)
    base = tensors | {"classifier.weight": torch.ones(2, 24)}
    tuned = tensors | {"classifier.weight": torch.ones(5, 24)}
    found = _paired(tmp_path, base, tuned)
    assert [(g.tensor, g.reason) for g in found.left_out] == [
        ("classifier.weight", "another head: (2, 24) in the base, (5, 24) tuned")
    ]
    assert "classifier.weight" not in found.matrices
    wrong = tensors | {"model.layers.0.self_attn.v_proj.weight": torch.ones(9, 24)}
    with pytest.raises(PairingError, match=r"base is \(8, 24\), tuned is \(9, 24\)"):
        _paired(tmp_path / "x", tensors, wrong)


def test_other_models_are_told_by_what_each_of_them_holds(tmp_path: Path) -> None:
    with pytest.raises(PairingError) as refused:
        _paired(tmp_path, tiny_llama(1), {"encoder.fc.weight": torch.ones(3, 4)})
    assert str(refused.value) == (
        f"{tmp_path / 'b'}: none of its 1 tensors (encoder.fc.weight) is a matrix of "
        f"{tmp_path / 'a'} (model.embed_tokens.weight, model.layers.0.mlp.down_proj.weight, "
        "model.layers.0.self_attn.q_proj.weight and 2 more). These are different models."
    )


def test_one_model_of_which_nothing_can_be_read_is_not_called_another(tmp_path: Path) -> None:
    packed = {name: tensor.to(torch.uint8) for name, tensor in tiny_llama(1).items()}
    with pytest.raises(PairingError, match=r"stored as U8") as refused:
        _paired(tmp_path, packed, tiny_llama(1))
    assert "different models" not in str(refused.value)


def test_a_checkpoint_without_tensors_is_called_that(tmp_path: Path) -> None:
    with pytest.raises(PairingError, match=rf"^{tmp_path / 'b'}: holds no tensors\."):
        _paired(tmp_path, tiny_llama(1), {})
    with pytest.raises(PairingError, match=rf"^{tmp_path / 'x' / 'a'}: holds no tensors\."):
        _paired(tmp_path / "x", {}, tiny_llama(1))


@pytest.mark.parametrize(("base_rows", "tuned_rows"), [(50, 53), (53, 50)])
def test_the_common_words_of_a_resized_vocabulary_are_compared(
    base_rows: int, tuned_rows: int, tmp_path: Path
) -> None:
    name = "model.embed_tokens.weight"
    found = _paired(
        tmp_path,
        tiny_llama(1) | {name: torch.ones(base_rows, 24)},
        tiny_llama(1) | {name: torch.ones(tuned_rows, 24)},
    )
    assert found.matrices[name].shape == (24, 50)
    assert [(g.side, g.tensor, g.reason) for g in found.left_out] == [
        (
            "tuned",
            name,
            f"resized: {base_rows} rows in the base, {tuned_rows} tuned; 50 are compared",
        )
    ]


@pytest.mark.parametrize(("base_rows", "tuned_rows"), [(1000, 1064), (1064, 1000)])
def test_a_resized_lm_head_is_compared_on_its_common_rows(
    base_rows: int, tuned_rows: int, tmp_path: Path
) -> None:
    head = "lm_head.weight"
    found = _paired(
        tmp_path,
        tiny_llama(1) | {head: torch.ones(base_rows, 24)},
        tiny_llama(1) | {head: torch.ones(tuned_rows, 24)},
    )
    assert found.matrices[head].shape == (1000, 24)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("vit.embeddings.position_embeddings", ((1, 9, 8), (1, 17, 8))),
        ("vision_model.embeddings.position_embedding.weight", ((9, 8), (17, 8))),
    ],
)
def test_positions_of_another_resolution_are_left_out(
    name: str, shapes: tuple[tuple[int, ...], tuple[int, ...]], tmp_path: Path
) -> None:
    base, tuned = (tiny_llama(1) | {name: torch.ones(shape)} for shape in shapes)
    found = _paired(tmp_path, base, tuned)
    assert name not in found.matrices
    assert [(g.tensor, g.reason) for g in found.left_out] == [
        (name, f"another number of positions: {shapes[0]} in the base, {shapes[1]} tuned")
    ]


def test_positions_of_another_width_are_another_architecture(tmp_path: Path) -> None:
    name = "vit.embeddings.position_embeddings"
    base, tuned = (tiny_llama(1) | {name: torch.ones(1, 9, width)} for width in (8, 10))
    with pytest.raises(PairingError, match=r"base is \(1, 9, 8\), tuned is \(1, 9, 10\)"):
        _paired(tmp_path, base, tuned)


@pytest.mark.parametrize("shape", [(), (5,)])
def test_an_embedding_that_is_no_matrix_ties_no_head(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    odd = {"model.embed_tokens.weight": torch.ones(shape)}
    head = {"lm_head.weight": torch.ones(()), "head.weight": torch.ones(3, 4)}
    found = _paired(tmp_path, tiny_llama(1) | odd, tiny_llama(1) | odd | head)
    reasons = {g.tensor: g.reason for g in found.left_out if g.tensor in head}
    assert reasons == dict.fromkeys(head, "no such tensor in the base")


def test_matrices_are_output_by_input_however_they_are_stored(tmp_path: Path) -> None:
    gpt2 = {
        "transformer.wte.weight": torch.ones(50, 24),
        "transformer.h.0.attn.c_attn.weight": torch.ones(24, 72),  # Conv1D: (input, output)
        "transformer.h.0.attn.c_proj.weight": torch.ones(24, 24),
        "lm_head.weight": torch.ones(50, 24),
    }
    base = open_checkpoint(write_full(tmp_path / "a", gpt2, config={"model_type": "gpt2"}))
    found = pair(base, open_checkpoint(write_full(tmp_path / "b", gpt2)))
    assert {name: (p.shape, p.base.input_first) for name, p in found.matrices.items()} == {
        "transformer.wte.weight": ((24, 50), True),
        **{f"transformer.h.0.attn.c_attn.weight[{part}]": ((24, 24), True) for part in "qkv"},
        "transformer.h.0.attn.c_proj.weight": ((24, 24), True),
        "lm_head.weight": ((50, 24), False),
    }


def test_what_an_index_does_not_list_is_left_out_on_either_side(tmp_path: Path) -> None:
    tensors = tiny_llama(1)
    for side in "ab":
        index = write_full(tmp_path / side, tensors, shards=2) / "model.safetensors.index.json"
        listed = json.loads(index.read_text())
        del listed["weight_map"]["model.norm.weight"]
        index.write_text(json.dumps(listed))
    found = pair(open_checkpoint(tmp_path / "a"), open_checkpoint(tmp_path / "b"))
    reason = "in model-00002-of-00002.safetensors, but not listed there by " + index.name
    assert sorted((g.side, g.tensor, g.reason) for g in found.left_out) == [
        ("base", "model.norm.weight", reason),
        ("tuned", "model.norm.weight", reason),
    ]


def test_what_is_no_weight_is_left_out_with_its_reason(tmp_path: Path) -> None:
    odd = {
        "position_ids": torch.arange(4).reshape(1, 4),
        "logit_scale": torch.tensor(2.0),
        "nothing.weight": torch.ones(0, 4),
        "mlp.experts.gate_up_proj": torch.ones(2, 3, 4),
    }
    found = _paired(tmp_path, tiny_llama(1) | odd, tiny_llama(1) | odd)
    reasons = {gone.tensor: gone.reason for gone in found.left_out}
    assert reasons.keys() == odd.keys()
    assert "stored as I64" in reasons["position_ids"]
    assert "no column" in reasons["logit_scale"]
    assert "stack of experts" in reasons["mlp.experts.gate_up_proj"]


def test_a_batch_dimension_of_one_makes_no_column(tmp_path: Path) -> None:
    tensors = tiny_llama(1) | {
        "embeddings.position_embeddings": torch.ones(1, 17, 8),
        "embeddings.cls_token": torch.ones(1, 1, 8),
    }
    found = _paired(tmp_path, tensors, tensors)
    assert found.matrices["embeddings.position_embeddings"].shape == (8, 17)
    assert found.vectors["embeddings.cls_token"].shape == (1, 8)


def test_convolutions_are_matrices_of_output_by_all_the_rest(tmp_path: Path) -> None:
    tensors = {"conv.weight": torch.ones(6, 3, 2, 2)}
    assert _paired(tmp_path, tensors, tensors).matrices["conv.weight"].shape == (6, 12)


@given(
    dropped=st.sets(st.sampled_from(sorted(tiny_llama(2))), max_size=6),
    extra=st.sets(st.sampled_from(["x.weight", "y.bias", "lm_head.weight"]), max_size=3),
    front=st.sampled_from(["", "module.", "base_model.model."]),
)
@settings(max_examples=25, deadline=None)
def test_every_tensor_is_accounted_for_exactly_once(
    tmp_path_factory: pytest.TempPathFactory, dropped: set[str], extra: set[str], front: str
) -> None:
    base = tiny_llama(2)
    kept = {name: tensor for name, tensor in base.items() if name not in dropped}
    tuned = {front + name: tensor for name, tensor in kept.items()}
    tuned |= {front + name: torch.ones(3, 5) for name in extra}
    found = _paired(tmp_path_factory.mktemp("p"), base, tuned)
    gone = {
        side: [g.tensor for g in found.left_out if g.side == side] for side in ("base", "tuned")
    }
    partners = [*found.matrices.values(), *found.vectors.values()]
    of_base = [p.base.tensor.name for p in partners] + gone["base"]
    of_tuned = [p.tuned.tensor.name for p in partners] + gone["tuned"]  # type: ignore[union-attr]
    assert sorted(of_base) == sorted(base)
    assert sorted(of_tuned) == sorted(tuned)


def test_an_adapter_touches_only_what_it_adapts_and_replaces(tmp_path: Path) -> None:
    tensors = tiny_llama(2)
    base = open_checkpoint(write_full(tmp_path / "base", tensors))
    lora = open_checkpoint(write_adapter(tmp_path / "lora", low_rank(tensors)))
    found = pair(base, lora)
    assert sorted(found.matrices) == sorted(n for n in tensors if "q_proj" in n or "v_proj" in n)
    assert (found.method, found.left_out) == ("lora", [])
