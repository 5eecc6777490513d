"""An adapter's config is checked before any of it is used."""

from pathlib import Path
from typing import Any

import pytest
import torch
from builders import low_rank, tiny_llama, write_adapter

from wdecomp.adapter import Adapter, read_adapter
from wdecomp.checkpoint import open_checkpoint
from wdecomp.errors import AdapterError, WdecompError

Q = "model.layers.0.self_attn.q_proj"
V = "model.layers.0.self_attn.v_proj"


def _read(folder: Path, **config: Any) -> Adapter:
    return read_adapter(
        open_checkpoint(write_adapter(folder, low_rank(tiny_llama(1), rank=4), **config))
    )


BAD: list[tuple[dict[str, Any], str]] = [
    ({"peft_type": "VERA"}, "peft_type is 'VERA'"),
    ({"peft_type": None}, "peft_type is None"),
    ({"r": 0}, "r is 0, expected a whole number of at least 1"),
    ({"r": -4}, "r is -4"),
    ({"r": "4"}, "r is '4'"),
    ({"r": 4.5}, "r is 4.5"),
    ({"r": True}, "r is True"),
    ({"r": 8}, "rank 8, its tensors have rank 4"),
    ({"lora_alpha": "sixteen"}, "lora_alpha is 'sixteen', expected a number"),
    ({"lora_alpha": None}, "lora_alpha is None"),
    ({"use_rslora": "false"}, "use_rslora is 'false', expected true or false"),
    ({"use_dora": 1}, "use_dora is 1"),
    ({"use_dora": True}, "lora_magnitude_vector is missing for 2 of 2 modules"),
    ({"rank_pattern": [1]}, "rank_pattern is \\[1\\], expected a map"),
    ({"rank_pattern": {"q_proj": "x"}}, "rank_pattern\\['q_proj'\\] is 'x'"),
    ({"rank_pattern": {"q_proj": 3}}, "rank 3, its tensors have rank 4"),
    ({"alpha_pattern": {"q_proj": []}}, "alpha_pattern\\['q_proj'\\] is"),
    ({"alpha_pattern": {"(": 3}}, "is no regular expression"),
    ({"alpha_pattern": {"(.*)*x": 3}}, "could take for ever"),
    ({"alpha_pattern": {".*" * 20 + "x": 3}}, "could take for ever"),
    ({"lora_bias": True}, "lora_bias is true, which cannot be read yet"),
    ({"init_lora_weights": "pissa"}, "was trained on a changed base"),
    ({"layer_replication": [[0, 1]]}, "rearranges the layers"),
    ({"use_qalora": True}, "acts on pooled inputs"),
    ({"target_parameters": ["experts"]}, "parameters that are no layers"),
]


@pytest.mark.parametrize(("config", "message"), BAD, ids=[str(config) for config, _ in BAD])
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
    assert plain.updates[Q].scaling == 9 / 4
    assert rooted.updates[Q].scaling == 9 / 2


def test_the_first_pattern_that_matches_in_the_order_of_the_file_counts(tmp_path: Path) -> None:
    patterns = {".*q_proj": 100, "self_attn.q_proj": 7, r"layers\.\d+\.self_attn\.v_proj": 5}
    updates = _read(tmp_path, alpha_pattern=patterns).updates
    assert updates[Q].scaling == 100 / 4
    assert updates[V].scaling == 5 / 4


def test_a_pattern_matches_from_a_dot_on(tmp_path: Path) -> None:
    updates = _read(tmp_path, lora_alpha=8, alpha_pattern={"proj": 1, "q_pro": 1}).updates
    assert updates[Q].scaling == 2


def test_magnitudes_that_the_config_denies_are_a_contradiction(tmp_path: Path) -> None:
    factors = low_rank(tiny_llama(1))
    write_adapter(tmp_path, factors, {Q: torch.ones(32), V: torch.ones(8)}, use_dora=False)
    with pytest.raises(AdapterError, match="use_dora is false, but there are"):
        read_adapter(open_checkpoint(tmp_path))


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.ones(4, 24), torch.ones(32, 3), r"lora_A is \(4, 24\), lora_B is \(32, 3\)"),
        (torch.ones(4, 0), torch.ones(0, 4), "no elements"),
        (torch.ones(4, 3, 2, 2), torch.ones(32, 4, 1, 1), "Only adapters of linear layers"),
        (torch.ones(4, 24).int(), torch.ones(32, 4).int(), "expected a floating-point matrix"),
    ],
)
def test_factors_that_do_not_fit_are_named(
    a: torch.Tensor, b: torch.Tensor, message: str, tmp_path: Path
) -> None:
    write_adapter(tmp_path, {Q: (a, b)})
    with pytest.raises(AdapterError, match=message):
        read_adapter(open_checkpoint(tmp_path))


def test_keys_that_are_no_factors_are_replacements_or_left_out(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    write_adapter(tmp_path, low_rank(tiny_llama(1)))
    file = tmp_path / "adapter_model.safetensors"
    more = {
        "base_model.model.score.weight": torch.ones(2, 24),
        "base_model.model.embed.lora_embedding_A": torch.ones(4, 50),
        "base_model.model.embed.base_layer.weight": torch.ones(50, 24),
        "base_model.model.x.lora_something": torch.ones(3),
    }
    save_file(load_file(file) | more, file)
    adapter = read_adapter(open_checkpoint(tmp_path))
    assert list(adapter.replaced) == ["score.weight"]
    assert {key.rsplit(".", 1)[1]: reason for key, reason in adapter.left_out} == {
        "lora_embedding_A": "the adapter of an embedding, which cannot be read yet",
        "weight": "a copy of the base",
        "lora_something": "a key of no LoRA or DoRA layer that can be read",
    }
