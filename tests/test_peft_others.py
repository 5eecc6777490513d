"""PEFT's other tuners that change weights, beside its own merge, and those that change none."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from numpy.testing import assert_allclose
from oracle import adapted_weight, check_merged
from peft import PeftConfig, PeftType, get_peft_model
from peft_models import (
    Make,
    Mixed,
    away_from_start,
    gpt2,
    llama,
    seeded,
    write_base,
    write_case,
    write_merged,
)
from safetensors.torch import load_file, save_file

from wdecomp.adapter.peft import REFUSED, SUPPORTED
from wdecomp.checkpoint import open_checkpoint
from wdecomp.errors import AdapterError
from wdecomp.pairing import pair

QVD = ["q_proj", "v_proj", "down_proj"]
CONVS = ["conv2", "point", "linear"]
Case = tuple[Make, str, dict[str, Any]]
CASES: dict[str, Case] = {
    "vera": (llama, "VeraConfig", {"r": 8, "save_projection": True}),
    "vera drawn again": (llama, "VeraConfig", {"r": 8, "save_projection": False}),
    "vera drawn by another key": (
        llama,
        "VeraConfig",
        {"r": 8, "save_projection": False, "projection_prng_key": 123},
    ),
    "loha": (llama, "LoHaConfig", {"r": 3, "alpha": 5}),
    "loha patterns": (
        llama,
        "LoHaConfig",
        {"r": 3, "alpha": 5, "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"q_proj": 7}},
    ),
    "loha convolutions": (Mixed, "LoHaConfig", {"r": 3, "alpha": 5}),
    "loha tucker": (Mixed, "LoHaConfig", {"r": 3, "alpha": 5, "use_effective_conv2d": True}),
    "lokr": (llama, "LoKrConfig", {"r": 2, "alpha": 5}),
    "lokr both decomposed": (llama, "LoKrConfig", {"r": 1, "alpha": 5, "decompose_both": True}),
    "lokr whole": (llama, "LoKrConfig", {"r": 50, "alpha": 5}),
    "lokr patterns": (
        llama,
        "LoKrConfig",
        {"r": 50, "alpha": 5, "rank_pattern": {"v_proj": 20}, "alpha_pattern": {"q_proj": 7}},
    ),
    "lokr convolutions": (Mixed, "LoKrConfig", {"r": 2, "alpha": 5}),
    "lokr tucker": (Mixed, "LoKrConfig", {"r": 2, "alpha": 5, "use_effective_conv2d": True}),
    "oft": (llama, "OFTConfig", {"oft_block_size": 4}),
    "oft exact": (llama, "OFTConfig", {"oft_block_size": 4, "use_cayley_neumann": False}),
    "oft shared": (llama, "OFTConfig", {"oft_block_size": 4, "block_share": True}),
    "oft bounded": (llama, "OFTConfig", {"oft_block_size": 4, "coft": True, "eps": 0.3}),
    "oft convolutions": (Mixed, "OFTConfig", {"oft_block_size": 2}),
    **{
        f"oft series of {n}": (
            llama,
            "OFTConfig",
            {"oft_block_size": 4, "num_cayley_neumann_terms": n},
        )
        for n in (2, 3, 4, 6)
    },
    "boft": (llama, "BOFTConfig", {"boft_block_size": 4}),
    "boft convolutions": (Mixed, "BOFTConfig", {"boft_block_size": 2}),
    "ia3": (llama, "IA3Config", {"feedforward_modules": ["down_proj"]}),
    "ia3 by a pattern": (
        llama,
        "IA3Config",
        {"target_modules": r".*\.(q_proj|down_proj)", "feedforward_modules": r".*\.down_proj"},
    ),
    "ia3 conv1d of gpt2": (
        gpt2,
        "IA3Config",
        {"target_modules": ["c_attn", "c_fc"], "feedforward_modules": ["c_fc"]},
    ),
    "ia3 convolutions": (Mixed, "IA3Config", {"feedforward_modules": ["point"]}),
    "hra": (llama, "HRAConfig", {"r": 4}),
    "hra odd": (llama, "HRAConfig", {"r": 3}),
    "hra orthogonal": (llama, "HRAConfig", {"r": 3, "apply_GS": True}),
    "hra convolutions": (Mixed, "HRAConfig", {"r": 4}),
    "delora": (llama, "DeloraConfig", {"r": 4}),
    "ln tuning": (llama, "LNTuningConfig", {"target_modules": ["input_layernorm"]}),
    "trainable tokens": (
        llama,
        "TrainableTokensConfig",
        {"target_modules": ["embed_tokens"], "token_indices": [2, 5, 90]},
    ),
    "adalora": (
        llama,
        "AdaLoraConfig",
        {"init_r": 6, "target_r": 3, "lora_alpha": 9, "total_step": 10},
    ),
}


def _config(case: Case) -> PeftConfig:
    make, kind, settings = case
    targets = {"target_modules": CONVS if make is Mixed else QVD}
    return getattr(peft, kind)(**{**targets, **settings})  # type: ignore[no-any-return]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore:.*symmetric initialization can NOT be performed")
def test_an_adapter_is_what_peft_merges(case: str, tmp_path: Path) -> None:
    write_case(tmp_path, CASES[case][0], _config(CASES[case]))
    # LN tuning has no matrix. Ratios of sums that cancel show PEFT's float32 rotations, and of a
    # column that was only scaled, ΔD is 0 and nothing but rounding.
    rough = CASES[case][1] in ("OFTConfig", "BOFTConfig", "HRAConfig", "IA3Config")
    check_merged(tmp_path, tables=case != "ln tuning", ratios=not rough)


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys")
def test_a_pruned_adalora_keeps_the_scale_of_its_first_rank(tmp_path: Path) -> None:
    write_case(tmp_path, llama, _config(CASES["adalora"]))
    file = tmp_path / "adapter/adapter_model.safetensors"
    kept = torch.tensor([True, False, True, True, False, False])
    pruned = {
        key: (t[:, kept] if "lora_B" in key else t[kept]).clone() if "lora_" in key else t
        for key, t in load_file(file).items()
    }
    save_file(pruned, file)
    config = tmp_path / "adapter/adapter_config.json"
    fields = json.loads(config.read_text())
    fields["rank_pattern"] = {
        f"{key.removeprefix('base_model.model.')}": kept.tolist()
        for key in pruned
        if "lora_E" in key
    }
    config.write_text(json.dumps(fields))
    (tmp_path / "merged/model.safetensors").unlink()
    (tmp_path / "merged").rmdir()
    write_merged(tmp_path, llama)
    found = check_merged(tmp_path)
    for each in found.matrices.values():
        update = each.tuned.update  # type: ignore[union-attr]
        assert (update.rank, update.scaling) == (3, 9 / (6 + 1e-5))


def test_the_widest_module_decides_on_what_vera_draws(tmp_path: Path) -> None:
    write_case(tmp_path, llama, _config(CASES["vera drawn again"]))
    found = check_merged(tmp_path, tables=False)
    widest = {each.tuned.update.widest for each in found.matrices.values()}  # type: ignore[union-attr]
    assert widest == {(32, 56)}
    assert {each.shape for each in found.matrices.values()} == {(32, 32), (16, 32), (32, 56)}


def test_dvora_is_vera_with_a_magnitude(tmp_path: Path) -> None:
    write_case(tmp_path, llama, _config(CASES["vera"]))
    file = tmp_path / "adapter/adapter_model.safetensors"
    tensors = load_file(file)
    plain = pair(open_checkpoint(tmp_path / "base"), open_checkpoint(tmp_path / "adapter"))
    v = {name: adapted_weight(each, 1 << 20) for name, each in plain.matrices.items()}
    for name, weight in v.items():
        front = "base_model.model." + name.removesuffix(".weight")
        m = np.linalg.norm(weight, axis=1) * np.linspace(0.8, 1.3, len(weight))
        tensors[f"{front}.vera_magnitude_vector"] = torch.tensor(m, dtype=torch.float32)
    save_file(tensors, file)
    found = pair(open_checkpoint(tmp_path / "base"), open_checkpoint(tmp_path / "adapter"))
    assert found.method == "dvora"
    for name, each in found.matrices.items():
        want = v[name] * np.linspace(0.8, 1.3, len(v[name]))[:, None]
        for block_bytes in (100, 1 << 20):
            assert_allclose(adapted_weight(each, block_bytes), want, rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_a_boft_of_several_stages_is_the_product_of_its_butterflies(
    stages: int, tmp_path: Path
) -> None:
    """PEFT's CPU build has one stage only: the dense product is formed here, from its own order."""
    config = peft.BOFTConfig(target_modules=["q_proj"], boft_block_size=4)
    write_base(seeded(llama), tmp_path / "base")
    adapted = get_peft_model(seeded(llama), config)
    away_from_start(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter/adapter_model.safetensors"
    tensors = load_file(file)
    blocks = [key for key in tensors if key.endswith("boft_R")]
    tensors |= {key: 0.2 * torch.randn(stages, 8, 4, 4) for key in blocks}
    save_file(tensors, file)
    found = pair(open_checkpoint(tmp_path / "base"), open_checkpoint(tmp_path / "adapter"))
    for i, layer in enumerate(adapted.base_model.model.model.layers):
        q, key = layer.self_attn.q_proj, blocks[i]
        x, s = tensors[key].double(), tensors[key.replace("boft_R", "boft_s")].double()
        turned = q.base_layer.weight.double()
        for stage in range(stages):
            order = q.block_butterfly_perm(32, 8 >> stage, 2, stages - 1)
            permuted = q.perm2mat(order).double()
            butterfly = permuted @ torch.block_diag(*q.cayley_batch(x[stage])) @ permuted.T
            turned = (butterfly @ turned.T).T
        each = found.matrices[f"model.layers.{i}.self_attn.q_proj.weight"]
        want = (turned * s).detach().numpy()
        for block_bytes in (100, 1 << 20):
            assert_allclose(adapted_weight(each, block_bytes), want, rtol=1e-5, atol=1e-6)


def test_every_type_of_peft_is_supported_or_refused_with_a_reason() -> None:
    assert {*SUPPORTED, *REFUSED} == {kind.value for kind in PeftType}
    assert not {*SUPPORTED} & {*REFUSED}


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_what_has_no_static_matrix_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    write_base(seeded(llama), tmp_path / "base")
    (tmp_path / "adapter").mkdir()
    save_file(
        {"prompt_embeddings": torch.ones(3, 4)}, tmp_path / "adapter/adapter_model.safetensors"
    )
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps({"peft_type": kind}))
    with pytest.raises(AdapterError, match=f"peft_type is '{kind}', which "):
        pair(open_checkpoint(tmp_path / "base"), open_checkpoint(tmp_path / "adapter"))


WRONG = [
    ("loha", {"alpha": "x"}, "alpha is 'x', expected a number"),
    ("lokr", {"r": 0}, "r is 0, expected a whole number"),
    ("vera", {"r": 9}, "rank is 8, expected the config's r, 9"),
    ("vera", {"projection_prng_key": -1}, "projection_prng_key is -1"),
    ("oft", {"coft": "no"}, "coft is 'no', expected true or false"),
    ("hra", {"apply_GS": 1}, "apply_GS is 1"),
    ("adalora", {"init_r": None}, "init_r is None"),
    ("trainable tokens", {"token_indices": [1]}, "has 1 tokens"),
    ("trainable tokens", {"token_indices": "all"}, "token_indices is 'all'"),
]


@pytest.mark.parametrize(("case", "fields", "message"), WRONG, ids=lambda v: str(v)[:30])
def test_a_field_that_is_not_what_it_must_be_is_named(
    case: str, fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write_case(tmp_path, CASES[case][0], _config(CASES[case]))
    file = tmp_path / "adapter/adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    with pytest.raises(AdapterError, match=message) as refused:
        pair(open_checkpoint(tmp_path / "base"), open_checkpoint(tmp_path / "adapter"))
    assert str(tmp_path) in str(refused.value)


@pytest.mark.parametrize("case", ["vera", "loha", "lokr", "oft", "boft", "ia3", "hra", "delora"])
def test_an_adapter_of_another_base_is_refused(case: str, tmp_path: Path) -> None:
    write_case(tmp_path, llama, _config(CASES[case]))
    file = tmp_path / "base/model.safetensors"
    smaller = {
        name: tensor[:-2, :-2].clone() if tensor.ndim == 2 else tensor[:-2].clone()
        for name, tensor in load_file(file).items()
    }
    save_file(smaller, file)
    with pytest.raises(Exception, match="trained on another base"):
        pair(open_checkpoint(tmp_path / "base"), open_checkpoint(tmp_path / "adapter"))


def test_a_bias_that_the_base_has_not_is_no_loss_of_a_scaling(tmp_path: Path) -> None:
    case = llama, "IA3Config", {"target_modules": ["gate_proj"], "feedforward_modules": []}
    write_case(tmp_path, llama, _config(case))
    assert check_merged(tmp_path, tables=False).left_out == []


Q = "model.layers.0.self_attn.q_proj"
HOSTILE: dict[str, tuple[str, dict[str, torch.Tensor], dict[str, Any], str]] = {
    "a LoHa of numbers": (
        "LOHA",
        {f"hada_w{i}_{side}": torch.ones(()) for i in (1, 2) for side in "ab"},
        {},
        r"hada_w1_a is \(\)",
    ),
    "a LoKr of one number": (
        "LOKR",
        {"lokr_w1": torch.ones(()), "lokr_w2": torch.ones(32, 32)},
        {},
        r"lokr_w1 is \(\), expected \(rows",
    ),
    "a series without end": (
        "OFT",
        {"oft_R.weight": torch.ones(8, 6)},
        {"num_cayley_neumann_terms": 10**9},
        "expected at most 1000",
    ),
    "more stages than blocks": (
        "BOFT",
        {"boft_R": torch.ones(40, 8, 4, 4), "boft_s": torch.ones(32, 1)},
        {},
        "halved at each stage",
    ),
    "odd blocks in two stages": (
        "BOFT",
        {"boft_R": torch.ones(2, 8, 3, 3), "boft_s": torch.ones(32, 1)},
        {},
        "halved at each stage",
    ),
    "half of VeRA's projections": (
        "VERA",
        {
            "vera_lambda_b": torch.ones(32),
            "vera_lambda_d": torch.ones(4),
            "/vera_A": torch.ones(4, 32),
        },
        {"r": 4},
        "vera_B is missing",
    ),
    "a token twice": (
        "TRAINABLE_TOKENS",
        {"/model.model.embed_tokens.trainable_tokens_delta": torch.ones(2, 32)},
        {"token_indices": [1, 1]},
        "each once",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_no_library_writes_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    kind, tensors, config, message = HOSTILE[case]
    write_base(seeded(llama), tmp_path / "base")
    (tmp_path / "adapter").mkdir()
    keys = {
        "base_model." + (name[1:] if name.startswith("/") else f"model.{Q}.{name}"): tensor
        for name, tensor in tensors.items()
    }
    save_file(
        {k: t.clone() for k, t in keys.items()}, tmp_path / "adapter/adapter_model.safetensors"
    )
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps({"peft_type": kind} | config))
    with pytest.raises(AdapterError, match=message) as refused:
        pair(open_checkpoint(tmp_path / "base"), open_checkpoint(tmp_path / "adapter"))
    assert "\n" not in str(refused.value)
