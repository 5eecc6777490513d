"""An adapter's config is checked before any of it is used."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import low_rank, tiny_llama, write_adapter
from peft import PeftType
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file

from wdecomp.adapter import Adapter, read_adapter
from wdecomp.adapter.peft import REFUSED, SUPPORTED
from wdecomp.checkpoint import open_checkpoint
from wdecomp.errors import AdapterError, WdecompError

Q = "model.layers.0.self_attn.q_proj.weight"
V = "model.layers.0.self_attn.v_proj.weight"
Q_PROJ, V_PROJ = (name.removesuffix(".weight") for name in (Q, V))


def _read(folder: Path, **config: Any) -> Adapter:
    return read_adapter(
        open_checkpoint(write_adapter(folder, low_rank(tiny_llama(1), rank=4), **config))
    )


BAD: list[tuple[dict[str, Any], str]] = [
    ({"peft_type": "VERA"}, r"lora_A\.weight is no part of a VERA adapter"),
    ({"peft_type": "NEWEST"}, "peft_type is 'NEWEST', expected one of LORA, ADALORA"),
    ({"peft_type": ["LORA"]}, "peft_type is \\['LORA'\\], expected one of"),
    ({"peft_type": None}, "peft_type is None"),
    ({"r": 0}, "r is 0, expected a whole number of at least 1"),
    ({"r": -4}, "r is -4"),
    ({"r": "4"}, "r is '4'"),
    ({"r": 4.5}, "r is 4.5"),
    ({"r": True}, "r is True"),
    ({"r": 8}, "rank 8, its tensors have rank 4"),
    ({"lora_alpha": "sixteen"}, "lora_alpha is 'sixteen', expected a number"),
    ({"lora_alpha": None}, "lora_alpha is None"),
    ({"lora_alpha": True}, "lora_alpha is True"),
    ({"lora_alpha": 10**400}, "expected a number"),
    ({"alpha_pattern": {"q_proj": 10**400}}, "expected a number"),
    ({"use_rslora": "false"}, "use_rslora is 'false', expected true or false"),
    ({"use_dora": 1}, "use_dora is 1"),
    ({"use_dora": True}, "lora_magnitude_vector is missing for 2 of 2 modules"),
    ({"alpha_pattern": "q_proj"}, "alpha_pattern is 'q_proj', expected a map"),
    ({"rank_pattern": {"q_proj": True}}, "rank_pattern\\['q_proj'\\] is True"),
    ({"rank_pattern": [1]}, "rank_pattern is \\[1\\], expected a map"),
    ({"rank_pattern": {"q_proj": "x"}}, "rank_pattern\\['q_proj'\\] is 'x'"),
    ({"rank_pattern": {"q_proj": 3}}, "rank 3, its tensors have rank 4"),
    ({"alpha_pattern": {"q_proj": []}}, "alpha_pattern\\['q_proj'\\] is"),
    ({"alpha_pattern": {"(": 3}}, "is no regular expression"),
    ({"alpha_pattern": {r"(q)_\1": 3}}, "is no regular expression"),
    ({"lora_bias": True}, "lora_bias is true, but .* missing for 2 of 2 modules"),
    ({"lora_bias": "yes"}, "lora_bias is 'yes'"),
    ({"init_lora_weights": "pissa_niter_4"}, "base changed by a randomised decomposition"),
    ({"init_lora_weights": "corda"}, "base changed by training data"),
    ({"init_lora_weights": "lora_ga"}, "base changed by training data"),
    ({"init_lora_weights": "loftq"}, "base changed by a quantiser"),
    ({"alora_invocation_tokens": [1, 2]}, "acts on some tokens only"),
    ({"arrow_config": {"top_k": 3}}, "routes between adapters"),
    ({"kasa_config": {"k": 1}}, "truncates the base"),
    ({"use_bdlora": {"nblocks": 2}}, "block-diagonal"),
    ({"layer_replication": [[0, 1]]}, "rearranges the layers"),
    ({"use_qalora": True}, "acts on pooled inputs"),
    (
        {"target_parameters": ["self_attn.q_proj.stack", "self_attn.q_proj.other"]},
        "names 2 parameters of .*q_proj .* the adapter has 1",
    ),
    ({"target_parameters": 7}, "target_parameters is 7, expected a list of names"),
]


@pytest.mark.parametrize(("config", "message"), BAD, ids=[str(config)[:40] for config, _ in BAD])
def test_a_field_that_is_not_what_it_must_be_is_named(
    config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(AdapterError, match=message) as refused:
        _read(tmp_path, **config)
    assert str(tmp_path) in str(refused.value)


@pytest.mark.parametrize("text", ['{"r": 4, "r": 16}', '{"lora_alpha": NaN}', "[]"])
def test_a_config_that_is_no_plain_json_is_refused(text: str, tmp_path: Path) -> None:
    write_adapter(tmp_path, low_rank(tiny_llama(1)))
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(WdecompError, match=r"adapter_config\.json"):
        open_checkpoint(tmp_path)


def test_scaling_is_alpha_over_rank_and_with_rslora_over_its_root(tmp_path: Path) -> None:
    plain = _read(tmp_path / "plain", lora_alpha=9)
    rooted = _read(tmp_path / "rooted", lora_alpha=9, use_rslora=True)
    assert plain.updates[Q].update.scaling == 9 / 4
    assert rooted.updates[Q].update.scaling == 9 / 2


def test_the_first_pattern_that_matches_in_the_order_of_the_file_counts(tmp_path: Path) -> None:
    patterns = {".*q_proj": 100, "self_attn.q_proj": 7, r"layers\.\d+\.self_attn\.v_proj": 5}
    updates = _read(tmp_path, alpha_pattern=patterns).updates
    assert updates[Q].update.scaling == 100 / 4
    assert updates[V].update.scaling == 5 / 4


def test_ranks_are_checked_against_the_first_pattern_that_matches(tmp_path: Path) -> None:
    tensors = tiny_llama(1)
    factors = low_rank(tensors, rank=3) | {Q_PROJ: (torch.ones(6, 24), torch.ones(32, 6))}
    write_adapter(tmp_path, factors, r=3, rank_pattern={"q_proj": 6, ".*": 3}, lora_alpha=12)
    updates = read_adapter(open_checkpoint(tmp_path)).updates
    assert {m: (u.update.rank, u.update.scaling) for m, u in updates.items()} == {
        Q: (6, 2),
        V: (3, 4),
    }


def test_a_pattern_matches_from_a_dot_on(tmp_path: Path) -> None:
    updates = _read(tmp_path, lora_alpha=8, alpha_pattern={"proj": 1, "q_pro": 1}).updates
    assert updates[Q].update.scaling == 2


HOSTILE = {
    "nested": "(.*)*x",
    "many": ".*" * 20 + "x",
    "optional": "a?" * 28 + "a" * 28 + "x",
    "alternatives": "(q|q)" * 28 + "x",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_pattern_that_stalls_a_backtracking_engine_is_matched_at_once(
    kind: str, tmp_path: Path
) -> None:
    module = "model.layers.0." + "a" * 28 + "q" * 28
    write_adapter(
        tmp_path,
        {module: (torch.ones(4, 24), torch.ones(32, 4))},
        alpha_pattern={HOSTILE[kind]: 3, "a*q*": 12},
    )
    start = time.perf_counter()
    adapter = read_adapter(open_checkpoint(tmp_path))
    assert time.perf_counter() - start < 5
    assert adapter.updates[f"{module}.weight"].update.scaling == 12 / 4


KEYS = [
    "q_proj", "proj", "v_proj", ".*", r"layers\.\d+\.self_attn\.q_proj", "layers.(0|2).*", "q.proj",
    "^model.layers.0.self_attn.v_proj", "self_attn.(q|v)_proj$", "[a-p]+", "0.self_attn.q_proj",
    "", "a|self_attn.v_proj", "a|attn.v_proj", r"\w+_proj", "model", "(?:.+_)attn.v_proj",
    "q_proj.*", "Q_PROJ",
]  # fmt: skip


@pytest.mark.parametrize("key", KEYS)
def test_a_pattern_means_what_it_means_to_peft(key: str, tmp_path: Path) -> None:
    updates = _read(tmp_path, lora_alpha=4, alpha_pattern={key: 20}).updates
    assert {name: each.update.scaling for name, each in updates.items()} == {
        f"{module}.weight": (get_pattern_key([key], module) == key and 5) or 1
        for module in (Q_PROJ, V_PROJ)
    }


def test_magnitudes_that_the_config_denies_are_a_contradiction(tmp_path: Path) -> None:
    factors = low_rank(tiny_llama(1))
    write_adapter(
        tmp_path, factors, {Q_PROJ: torch.ones(32), V_PROJ: torch.ones(8)}, use_dora=False
    )
    with pytest.raises(AdapterError, match="use_dora is false, but there are"):
        read_adapter(open_checkpoint(tmp_path))


@pytest.mark.parametrize(
    ("magnitude", "message"),
    [
        (torch.ones(9), "expected one number for each of 8 outputs"),
        (torch.ones(1, 24), "expected one number for each of 8 outputs"),
        (torch.ones(8).int(), "is I32 .*expected a floating-point tensor"),
        (torch.ones(0), "no elements"),
    ],
)
def test_a_magnitude_that_is_not_one_number_per_output_is_named(
    magnitude: torch.Tensor, message: str, tmp_path: Path
) -> None:
    write_adapter(tmp_path, low_rank(tiny_llama(1)), {Q_PROJ: torch.ones(32), V_PROJ: magnitude})
    with pytest.raises(AdapterError, match=rf"{V_PROJ}.*{message}"):
        read_adapter(open_checkpoint(tmp_path))


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.ones(4, 24), torch.ones(32, 3), r"lora_A is \(4, 24\), lora_B is \(32, 3\)"),
        (torch.ones(4, 0), torch.ones(32, 4), "no elements"),
        (torch.ones(4), torch.ones(32, 4), r"lora_A is \(4,\)"),
        (torch.ones(4, 24).int(), torch.ones(32, 4).int(), "expected a floating-point tensor"),
    ],
)
def test_factors_that_do_not_fit_are_named(
    a: torch.Tensor, b: torch.Tensor, message: str, tmp_path: Path
) -> None:
    write_adapter(tmp_path, {Q_PROJ: (a, b)})
    with pytest.raises(AdapterError, match=message):
        read_adapter(open_checkpoint(tmp_path))


def _add(folder: Path, more: dict[str, torch.Tensor], **config: Any) -> Adapter:
    """A LoRA with more keys."""
    write_adapter(folder, low_rank(tiny_llama(1)), **config)
    file = folder / "adapter_model.safetensors"
    save_file(load_file(file) | more, file)
    return read_adapter(open_checkpoint(folder))


def test_keys_that_are_no_factors_are_replacements_or_left_out(tmp_path: Path) -> None:
    more = {
        "base_model.model.score.weight": torch.ones(2, 24),
        "base_model.model.classifier.modules_to_save.weight": torch.ones(3, 24),
        "base_model.model.classifier.original_module.weight": torch.ones(3, 24),
        "base_model.model.embed.lora_embedding_A": torch.ones(2, 50),
        "base_model.model.embed.lora_embedding_B": torch.ones(24, 2),
        "base_model.model.embed.base_layer.weight": torch.ones(50, 24),
    }
    adapter = _add(tmp_path, more)
    assert set(adapter.replaced) == {"score.weight", "classifier.weight"}
    assert set(adapter.updates) == {Q, V, "embed.weight"}
    assert {key.removeprefix("base_model.model."): why for key, why in adapter.left_out} == {
        "embed.base_layer.weight": "a copy of the base",
        "classifier.original_module.weight": "a copy of the base",
    }


ONE = torch.ones(2, 24)
MORE: list[tuple[dict[str, torch.Tensor], dict[str, Any], str]] = [
    ({f"{Q_PROJ}.lora_A.weight": ONE}, {}, "are one tensor, expected each once"),
    ({f"module.{Q_PROJ}.lora_A.weight": ONE}, {}, "are one tensor"),
    ({"score.weight": ONE, "base_model.model.score.weight": ONE * 2}, {}, "are one tensor"),
    (
        {f"score.modules_to_save.{name}.weight": i * ONE for i, name in enumerate("ab")},
        {},
        "are one tensor",
    ),
    ({f"{Q_PROJ}.lora_A.second.weight": ONE}, {}, "of adapters .*second"),
    (
        {"x.lora_A.other.weight": ONE, "x.lora_B.other.weight": ONE + 1},
        {},
        "holds several adapters",
    ),
    ({f"{Q_PROJ}.lora_diag": ONE}, {}, "lora_diag is a part of an adapter that is not known"),
    ({f"{Q_PROJ}.vera_lambda_b": ONE}, {}, "vera_lambda_b is no part of a LORA adapter"),
    ({f"{Q_PROJ}.lora_B.bias": torch.ones(32)}, {}, "lora_bias is false, but there is"),
    (
        {f"{Q_PROJ}.lora_B.bias": torch.ones(32)},
        {"lora_bias": True},
        "lora_bias is true, but lora_B.bias is missing for 1 of 2 modules",
    ),
    (
        {f"{module}.lora_B.bias": torch.ones(7) for module in (Q_PROJ, V_PROJ)},
        {"lora_bias": True},
        "expected one number for each of 32 outputs",
    ),
    (
        {f"{Q_PROJ}.lora_magnitude_vector": torch.ones(32)},
        {"use_dora": True},
        "lora_magnitude_vector is missing for 1 of 2 modules",
    ),
    (
        {"embed.token_adapter.trainable_tokens_delta": ONE},
        {"trainable_token_indices": [1, 2, 3]},
        "has 3 tokens, .*trainable_tokens_delta is \\(2, 24\\)",
    ),
    (
        {"embed.token_adapter.trainable_tokens_delta": ONE},
        {"trainable_token_indices": [1, -2]},
        "expected a list of token indices",
    ),
    ({"embed.token_adapter.trainable_tokens_delta": ONE}, {}, "expected a list of token indices"),
]


@pytest.mark.parametrize(("more", "config", "message"), MORE, ids=[m[2][:30] for m in MORE])
def test_a_key_that_contradicts_the_others_or_the_config_is_named(
    more: dict[str, torch.Tensor], config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(AdapterError, match=message) as refused:
        _add(tmp_path, more, **config)
    assert "\n" not in str(refused.value)
    assert str(tmp_path) in str(refused.value)


@pytest.mark.parametrize("half", ["A", "B"])
def test_a_factor_without_its_other_half_is_named(half: str, tmp_path: Path) -> None:
    write_adapter(tmp_path, low_rank(tiny_llama(1)))
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    del tensors[f"base_model.model.{V_PROJ}.lora_{half}.weight"]
    save_file(tensors, file)
    with pytest.raises(AdapterError, match=rf"{V_PROJ}\.lora_{half} is missing"):
        read_adapter(open_checkpoint(tmp_path))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ([], "it was saved empty"),
        (["lm_head.weight"], "its tensors are lm_head.weight"),
        (["embed.lora_embedding_A"], "lora_embedding_B is missing"),
        ([f"{Q_PROJ}.lora_A.default.weight"], "lora_B is missing"),
    ],
)
def test_an_adapter_without_a_pair_of_factors_says_what_is_there(
    keys: list[str], message: str, tmp_path: Path
) -> None:
    write_adapter(tmp_path, low_rank(tiny_llama(1)))
    tensors = {f"base_model.model.{key}": torch.ones(2, 3) for key in keys}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=message):
        read_adapter(open_checkpoint(tmp_path))


def test_every_tuner_of_peft_is_either_read_or_refused_with_a_reason() -> None:
    assert not set(SUPPORTED) & set(REFUSED)
    assert {kind.value for kind in PeftType} == {*SUPPORTED, *REFUSED}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_refused_tuner_says_why_in_one_line(kind: str, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=REFUSED[kind]) as refused:
        _read(tmp_path, peft_type=kind)
    assert "\n" not in str(refused.value)
