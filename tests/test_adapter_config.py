"""An adapter's config is checked before any of it is used."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import low_rank, tiny_llama, write_adapter
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file

from wdecomp.adapter import Adapter, read_adapter
from wdecomp.checkpoint import open_checkpoint
from wdecomp.errors import AdapterError, WdecompError

Q = "model.layers.0.self_attn.q_proj"
V = "model.layers.0.self_attn.v_proj"


def _read(folder: Path, **config: Any) -> Adapter:
    return read_adapter(
        open_checkpoint(write_adapter(folder, low_rank(tiny_llama(1), rank=4), **config))
    )


def _scalings(adapter: Adapter) -> dict[str, float | None]:
    return {m.removesuffix(".weight"): u.update.scaling for m, u in adapter.updates.items()}


BAD: list[tuple[dict[str, Any], str]] = [
    ({"peft_type": "XLORA"}, "peft_type is 'XLORA', which weighs adapters by the input"),
    ({"peft_type": "NEW"}, "peft_type is 'NEW', expected one of LORA"),
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
    ({"lora_bias": 1}, "lora_bias is 1, expected true or false"),
    ({"init_lora_weights": "pissa_niter_4"}, "a base changed by a randomised decomposition"),
    ({"init_lora_weights": "loftq"}, "a base changed by a quantiser"),
    ({"init_lora_weights": "corda"}, "a base changed by training data"),
    ({"use_bdlora": {"x": 1}}, "has block-diagonal factors"),
    ({"kasa_config": {}, "alora_invocation_tokens": [1]}, "acts on some tokens only"),
    ({"layer_replication": [[0, 1]]}, "rearranges the layers"),
    ({"use_qalora": True}, "acts on pooled inputs"),
    ({"target_parameters": [1]}, "target_parameters is \\[1\\], expected a list of names"),
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
    assert _scalings(plain)[Q] == 9 / 4
    assert _scalings(rooted)[Q] == 9 / 2


def test_the_first_pattern_that_matches_in_the_order_of_the_file_counts(tmp_path: Path) -> None:
    patterns = {".*q_proj": 100, "self_attn.q_proj": 7, r"layers\.\d+\.self_attn\.v_proj": 5}
    assert _scalings(_read(tmp_path, alpha_pattern=patterns)) == {Q: 100 / 4, V: 5 / 4}


def test_ranks_are_checked_against_the_first_pattern_that_matches(tmp_path: Path) -> None:
    tensors = tiny_llama(1)
    factors = low_rank(tensors, rank=3) | {Q: (torch.ones(6, 24), torch.ones(32, 6))}
    write_adapter(tmp_path, factors, r=3, rank_pattern={"q_proj": 6, ".*": 3}, lora_alpha=12)
    adapter = read_adapter(open_checkpoint(tmp_path))
    ranks = {m.removesuffix(".weight"): u.update.rank for m, u in adapter.updates.items()}
    assert (ranks, _scalings(adapter)) == ({Q: 6, V: 3}, {Q: 2, V: 4})


def test_a_pattern_matches_from_a_dot_on(tmp_path: Path) -> None:
    adapter = _read(tmp_path, lora_alpha=8, alpha_pattern={"proj": 1, "q_pro": 1})
    assert _scalings(adapter)[Q] == 2


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
    assert _scalings(adapter)[module] == 12 / 4


KEYS = [
    "q_proj", "proj", "v_proj", ".*", r"layers\.\d+\.self_attn\.q_proj", "layers.(0|2).*", "q.proj",
    "^model.layers.0.self_attn.v_proj", "self_attn.(q|v)_proj$", "[a-p]+", "0.self_attn.q_proj",
    "", "a|self_attn.v_proj", "a|attn.v_proj", r"\w+_proj", "model", "(?:.+_)attn.v_proj",
    "q_proj.*", "Q_PROJ",
]  # fmt: skip


@pytest.mark.parametrize("key", KEYS)
def test_a_pattern_means_what_it_means_to_peft(key: str, tmp_path: Path) -> None:
    assert _scalings(_read(tmp_path, lora_alpha=4, alpha_pattern={key: 20})) == {
        module: (get_pattern_key([key], module) == key and 5) or 1 for module in (Q, V)
    }


def test_magnitudes_that_the_config_denies_are_a_contradiction(tmp_path: Path) -> None:
    factors = low_rank(tiny_llama(1))
    write_adapter(tmp_path, factors, {Q: torch.ones(32), V: torch.ones(8)}, use_dora=False)
    with pytest.raises(AdapterError, match="use_dora is false, but there are"):
        read_adapter(open_checkpoint(tmp_path))


@pytest.mark.parametrize("magnitude", [torch.ones(9), torch.ones(2, 8), torch.ones(8).int()])
def test_a_magnitude_that_is_not_one_number_per_output_is_named(
    magnitude: torch.Tensor, tmp_path: Path
) -> None:
    write_adapter(tmp_path, low_rank(tiny_llama(1)), {Q: torch.ones(32), V: magnitude})
    with pytest.raises(
        AdapterError,
        match=rf"{V}.*expected (one number for each of 8 outputs|a floating-point tensor)",
    ):
        read_adapter(open_checkpoint(tmp_path))


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.ones(4, 24), torch.ones(32, 3), r"lora_A is \(4, 24\), lora_B is \(32, 3\)"),
        (torch.ones(4, 0), torch.ones(0, 4), "no elements"),
        (torch.ones(4), torch.ones(32, 4), r"lora_A is \(4,\)"),
        (torch.ones(4, 24).int(), torch.ones(32, 4).int(), "expected a floating-point tensor"),
    ],
)
def test_factors_that_do_not_fit_are_named(
    a: torch.Tensor, b: torch.Tensor, message: str, tmp_path: Path
) -> None:
    write_adapter(tmp_path, {Q: (a, b)})
    with pytest.raises(AdapterError, match=message):
        read_adapter(open_checkpoint(tmp_path))


def test_keys_that_are_no_factors_are_replacements_or_left_out(tmp_path: Path) -> None:
    write_adapter(tmp_path, low_rank(tiny_llama(1)))
    file = tmp_path / "adapter_model.safetensors"
    more = {
        "base_model.model.score.weight": torch.ones(2, 24),
        "base_model.model.embed.lora_embedding_A": torch.ones(2, 50),
        "base_model.model.embed.lora_embedding_B": torch.ones(24, 2),
        "base_model.model.embed.base_layer.weight": torch.ones(50, 24),
        "base_model.model.norm.modules_to_save.weight": torch.ones(24),
        "base_model.model.norm.original_module.weight": torch.ones(24),
        "base_model.model.proj.base_layer.bias": torch.ones(24),
    }
    save_file(load_file(file) | more, file)
    adapter = read_adapter(open_checkpoint(tmp_path))
    assert sorted(adapter.replaced) == ["norm.weight", "proj.bias", "score.weight"]
    assert adapter.updates["embed.weight"].of_embedding
    assert dict(adapter.left_out) == {
        "base_model.model.embed.base_layer.weight": "a copy of the base",
        "base_model.model.norm.original_module.weight": "a copy of the base",
    }


def test_a_module_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    write_adapter(tmp_path, low_rank(tiny_llama(1)))
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    twice = {k.removeprefix("base_model.model."): v.clone() for k, v in tensors.items()}
    save_file(tensors | twice, file)
    with pytest.raises(AdapterError, match="are one part of one module, expected each once"):
        read_adapter(open_checkpoint(tmp_path))


def test_several_adapters_in_one_file_are_refused(tmp_path: Path) -> None:
    write_adapter(tmp_path, low_rank(tiny_llama(1)))
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    named = {
        key.replace(".weight", f".{name}.weight"): tensor.clone()
        for key, tensor in tensors.items()
        for name in ("one", "two")
    }
    save_file(named, file)
    with pytest.raises(AdapterError, match="of adapters one, two"):
        read_adapter(open_checkpoint(tmp_path))


@pytest.mark.parametrize("half", ["A", "B"])
def test_a_factor_without_its_other_half_is_named(half: str, tmp_path: Path) -> None:
    write_adapter(tmp_path, low_rank(tiny_llama(1)))
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    del tensors[f"base_model.model.{V}.lora_{half}.weight"]
    save_file(tensors, file)
    with pytest.raises(AdapterError, match=rf"{V}\.lora_{half} is missing"):
        read_adapter(open_checkpoint(tmp_path))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ([], "it was saved empty"),
        (["embed.lora_embedding_A"], r"embed\.lora_embedding_B is missing"),
        (["score.weight"], r"no tensors of a LORA adapter: its tensors are score\.weight"),
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
