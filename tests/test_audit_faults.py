"""Every fault that the audit knows, made for real, and found by its name."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from audit_runs import (
    ADAPTER,
    MAGNITUDE,
    TARGETS,
    Q,
    adapted,
    base,
    base_model,
    dora,
    edited,
    found,
    freeze,
    of_rule,
    trained,
)
from builders import Tensors, low_rank, moved, tiny_llama, write_adapter, write_full
from safetensors.torch import load_file, save_file
from torch import Tensor

import wdecomp
from wdecomp.audit import base_findings, base_fits, findings

WEIGHTS = "model.safetensors"


def _of_layer(name: str, layer: int) -> bool:
    return f"layers.{layer}." in name


def _edit_config(folder: Path, **fields: Any) -> Path:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    return folder


def _full(folder: Path, frozen: tuple[str, ...] = (), **training: Any) -> Path:
    model = trained(freeze(base_model(), *frozen), **training)
    return write_full(folder / "full", {n: t.clone() for n, t in model.state_dict().items()})


# Magnitudes


def test_bf16_magnitudes_below_half_a_step_are_frozen_by_rounding(tmp_path: Path) -> None:
    model = base_model().to(torch.bfloat16)
    one = trained(adapted(model, autocast_adapter_dtype=False), lr=1e-4)
    one.save_pretrained(tmp_path / "dora")
    [finding] = found(base(tmp_path, dtype=torch.bfloat16), tmp_path / "dora")
    assert (finding.rule.id, finding.severity) == ("frozen-magnitude", "error")
    assert len(finding.tensors) == 2 * len(TARGETS)
    norms = load_file(tmp_path / f"base/{WEIGHTS}")[Q].double().norm(dim=1)
    assert 0.25 < norms.median() < 0.5  # where BF16 has steps of 2⁻⁹
    assert finding.evidence["spacing"] == pytest.approx(2**-9, rel=1e-5)
    assert finding.evidence["stored_as"] == "BF16"
    assert "BF16 has steps of" in finding.message


def test_larger_steps_of_a_bf16_magnitude_are_no_fault(tmp_path: Path) -> None:
    model = base_model().to(torch.bfloat16)
    one = trained(adapted(model, autocast_adapter_dtype=False), lr=2e-2)
    one.save_pretrained(tmp_path / "dora")
    assert found(base(tmp_path, dtype=torch.bfloat16), tmp_path / "dora") == []


def test_a_magnitude_that_no_optimizer_has_is_the_norm_still(tmp_path: Path) -> None:
    model = freeze(adapted(base_model()), "magnitude")
    trained(model).save_pretrained(tmp_path / "dora")
    finding = of_rule("frozen-magnitude", found(base(tmp_path), tmp_path / "dora"))
    assert finding.severity == "error"
    assert finding.evidence["equal_to_norm"] == finding.evidence["magnitudes"]
    assert finding.message.endswith("no optimizer step reached them")


def test_magnitudes_frozen_in_some_layers_are_named(tmp_path: Path) -> None:
    model = adapted(base_model())
    for name, parameter in model.named_parameters():
        if "magnitude" in name and _of_layer(name, 1):
            parameter.requires_grad_(False)
    trained(model).save_pretrained(tmp_path / "dora")
    finding = of_rule("frozen-magnitude", found(base(tmp_path), tmp_path / "dora"))
    assert finding.severity == "warning"
    assert len(finding.tensors) == 3
    assert all(_of_layer(name, 1) for name in finding.tensors)


def test_merged_checkpoints_of_a_frozen_magnitude_keep_one_dm(tmp_path: Path) -> None:
    """Public replications plot this: dM is what rounding the norms once has left."""
    base(tmp_path)
    model = freeze(adapted(base_model()), "magnitude")
    for name, parameter in model.named_parameters():
        if "magnitude" in name:
            parameter.data = parameter.data.bfloat16().float()
    for step in (4, 8):
        trained(model, steps=4)
        model.merge_adapter()
        weights = {
            name.replace(".base_layer", "").removeprefix("base_model.model."): tensor.clone()
            for name, tensor in model.state_dict().items()
            if "lora_" not in name
        }
        write_full(tmp_path / f"merged/checkpoint-{step}", weights)
        model.unmerge_adapter()
    finding = of_rule(
        "frozen-magnitude", found(tmp_path / "base", f"merged:dora={tmp_path / 'merged'}")
    )
    assert len(finding.tensors) == 2 * len(TARGETS)
    assert finding.steps == (8,)


def test_a_lora_that_is_called_a_dora_is_silent(tmp_path: Path) -> None:
    trained(adapted(base_model(), dora=False)).save_pretrained(tmp_path / "lora")
    finding = of_rule("silent-lora", found(base(tmp_path), f"mine:dora={tmp_path / 'lora'}"))
    assert finding.severity == "error"
    assert len(finding.tensors) == 2 * len(TARGETS)


def test_nvlabs_dora_without_its_magnitudes_is_a_silent_lora(tmp_path: Path) -> None:
    trained(adapted(base_model())).save_pretrained(tmp_path / "dora")
    edited(
        tmp_path / "dora" / ADAPTER,
        lambda t: [t.pop(key) for key in list(t) if "magnitude" in key],
    )
    _edit_config(tmp_path / "dora", peft_type="DORA")
    of_rule("silent-lora", found(base(tmp_path), tmp_path / "dora"))


def test_magnitudes_that_a_large_step_took_below_zero_are_counted(tmp_path: Path) -> None:
    model = freeze(adapted(base_model()), "lora_A", "lora_B")
    trained(model, steps=3, lr=0.3).save_pretrained(tmp_path / "dora")
    everything = found(base(tmp_path), tmp_path / "dora")
    finding = next(each for each in everything if each.rule.id == "negative-magnitude")
    tensors = load_file(tmp_path / "dora" / ADAPTER)
    below = sum(int((t < 0).sum()) for key, t in tensors.items() if "magnitude" in key)
    assert finding.evidence["count"] == below > 0


def test_a_magnitude_of_zero_is_found(tmp_path: Path) -> None:
    folder = dora(tmp_path)
    edited(folder / ADAPTER, lambda t: t[MAGNITUDE].__setitem__(slice(3), 0.0))
    finding = of_rule("zero-magnitude", found(tmp_path / "base", folder))
    assert (finding.tensors, finding.evidence["count"]) == ((Q,), 3)


def test_a_zero_row_makes_nan_of_a_dora_and_is_found_before_and_after(tmp_path: Path) -> None:
    model = base_model()
    model.get_parameter(Q).data[5] = 0
    write_full(tmp_path / "base", {n: t.clone() for n, t in model.state_dict().items()})
    before = of_rule("zero-rows", found(tmp_path / "base", f"base={tmp_path / 'base'}"))
    assert (before.severity, before.tensors, before.evidence["count"]) == ("warning", (Q,), 1)
    trained(adapted(model), steps=2).save_pretrained(tmp_path / "dora")
    after = {each.rule.id: each for each in found(tmp_path / "base", tmp_path / "dora")}
    assert set(after) == {"zero-rows", "nonfinite"}
    assert after["zero-rows"].severity == after["nonfinite"].severity == "error"


def _tune_order(magnitude: Tensor, heads: int) -> Tensor:
    """As torchtune's export leaves them."""
    return magnitude.view(heads, 2, -1).transpose(1, 2).reshape(-1)


def test_torchtunes_order_of_rows_is_found_in_q_and_k(tmp_path: Path) -> None:
    def export(tensors: dict[str, Tensor]) -> None:
        for key, tensor in tensors.items():
            heads = next((n for part, n in (("q_proj", 4), ("k_proj", 2)) if part in key), None)
            if heads and "magnitude" in key:
                tensors[key] = _tune_order(tensor, heads)

    folder = dora(tmp_path)
    edited(folder / ADAPTER, export)
    finding = of_rule("misordered-magnitude", found(tmp_path / "base", folder))
    assert finding.severity == "error"
    assert len(finding.tensors) == 4
    assert not any("down" in name for name in finding.tensors)


@pytest.mark.parametrize("method", ["dora", "full"])
def test_decay_of_magnitudes_is_told_from_learning(method: str, tmp_path: Path) -> None:
    base(tmp_path)
    if method == "dora":
        trained(adapted(base_model()), decay=30.0).save_pretrained(tmp_path / "tuned")
        tuned = tmp_path / "tuned"
    else:
        tuned = _full(tmp_path, decay=30.0)
    finding = of_rule("decay-dominated", found(tmp_path / "base", tuned))
    # Six steps of AdamW, each of which takes lr·decay of what is left.
    shrunk = (1 - 3e-3 * 30) ** 6 - 1
    assert finding.evidence["growth_mean"] == pytest.approx(shrunk, rel=0.1)


# Factors and configs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("is_dora", [False, True], ids=["lora", "dora"])
def test_an_adapter_as_it_was_made_is_untrained(
    is_dora: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    adapted(base_model().to(dtype), is_dora).save_pretrained(tmp_path / "new")
    finding = of_rule("untrained", found(base(tmp_path, dtype=dtype), tmp_path / "new"))
    assert finding.severity == "error"
    assert len(finding.tensors) == 2 * len(TARGETS)


def test_magnitudes_that_were_trained_alone_are_said(tmp_path: Path) -> None:
    model = freeze(adapted(base_model()), "lora_A", "lora_B")
    trained(model).save_pretrained(tmp_path / "dora")
    of_rule("untrained-direction", found(base(tmp_path), tmp_path / "dora"))


def test_b_of_zero_in_one_layer_is_found(tmp_path: Path) -> None:
    model = adapted(base_model(), dora=False)
    for name, parameter in model.named_parameters():
        if _of_layer(name, 0) and "lora_" in name:
            parameter.requires_grad_(False)
    trained(model).save_pretrained(tmp_path / "lora")
    finding = of_rule("untrained", found(base(tmp_path), tmp_path / "lora"))
    assert finding.severity == "warning"
    assert all(_of_layer(name, 0) for name in finding.tensors)


def test_factors_padded_to_a_larger_rank_are_rank_deficient(tmp_path: Path) -> None:
    trained(adapted(base_model(), dora=False, r=2)).save_pretrained(tmp_path / "lora")

    def pad(tensors: dict[str, Tensor]) -> None:
        for key, t in tensors.items():
            a, b = torch.cat([t, t / 3]), torch.cat([t / 2, 3 * t / 2], 1 % t.ndim)  # rounded, too
            tensors[key] = a if "lora_A" in key else b

    edited(tmp_path / "lora" / ADAPTER, pad)
    _edit_config(tmp_path / "lora", r=4, lora_alpha=16)
    finding = of_rule("rank-deficient", found(base(tmp_path), tmp_path / "lora"))
    assert finding.severity == "warning"
    assert finding.evidence["numerical_rank"] == 2


def test_a_layer_that_was_lost_on_saving_is_missed(tmp_path: Path) -> None:
    trained(adapted(base_model())).save_pretrained(tmp_path / "dora")
    edited(
        tmp_path / "dora" / ADAPTER,
        lambda t: [t.pop(key) for key in list(t) if _of_layer(key, 1)],
    )
    finding = of_rule("partial-layers", found(base(tmp_path), tmp_path / "dora"))
    assert finding.message.count("is adapted in 1 of 2 layers (not in 1)") == 3


@pytest.mark.parametrize(
    "on_purpose",
    [
        {"layers_to_transform": [0]},
        {"target_modules": [f"layers.0.self_attn.{name}" for name in ("q_proj", "v_proj")]},
    ],
    ids=lambda config: next(iter(config)),
)
def test_layers_that_were_left_out_on_purpose_are_not_missed(
    on_purpose: dict[str, Any], tmp_path: Path
) -> None:
    model = adapted(base_model(), **on_purpose)
    trained(model).save_pretrained(tmp_path / "dora")
    assert found(base(tmp_path), tmp_path / "dora") == []


def test_a_scaling_of_twice_the_rank_overwhelms_the_weights(tmp_path: Path) -> None:
    """As in a public replication: 2r for alpha/r."""
    trained(adapted(base_model(), dora=False), lr=1e-2).save_pretrained(tmp_path / "lora")
    assert found(base(tmp_path), tmp_path / "lora") == []
    _edit_config(tmp_path / "lora", lora_alpha=4 * 64)
    finding = of_rule("overwhelming-change", found(tmp_path / "base", tmp_path / "lora"))
    assert finding.evidence["scaling"] == 64


def test_a_diffusers_file_without_metadata_has_no_alpha(tmp_path: Path) -> None:
    name = "transformer.blocks.0.attn.to_q"
    random = torch.Generator().manual_seed(0)
    a, b, w = (torch.randn(*s, generator=random) * 0.1 for s in ((4, 12), (20, 4), (20, 12)))
    save_file(
        {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b},
        tmp_path / "pytorch_lora_weights.safetensors",
    )
    write_full(tmp_path / "base", {f"{name}.weight": w})
    file = tmp_path / "pytorch_lora_weights.safetensors"
    of_rule("alpha-assumed", found(tmp_path / "base", file))


def test_patterns_whose_order_decides_are_found(tmp_path: Path) -> None:
    patterns = {"self_attn.q_proj": 7, ".*q_proj": 100, "k_proj": 3}
    model = adapted(base_model(), dora=False, alpha_pattern=patterns)
    trained(model, lr=1e-4).save_pretrained(tmp_path / "lora")
    finding = of_rule("pattern-order", found(base(tmp_path), tmp_path / "lora"))
    assert {name.split(".")[-2] for name in finding.tensors} == {"q_proj"}
    assert "'self_attn.q_proj'" in finding.message
    _edit_config(tmp_path / "lora", alpha_pattern=patterns | {".*q_proj": 7})
    assert found(tmp_path / "base", tmp_path / "lora") == []


# Bases


def _in_nf4(weights: Tensors) -> tuple[Tensors, Tensors]:
    """Linear weights in NF4 as bitsandbytes stores them, and what these stand for."""
    import bitsandbytes.functional as bnb

    stored, dense = dict(weights), dict(weights)
    for name, weight in weights.items():
        if name.endswith("proj.weight"):
            packed, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4")
            stored |= {f"{name}.{k}": v for k, v in state.as_dict(packed=True).items()}
            stored[name] = packed
            nibbles = torch.stack([packed.reshape(-1) >> 4, packed.reshape(-1) & 15], 1)
            scale = state.absmax.repeat_interleave(64)[: weight.numel()]
            values = state.code[nibbles.reshape(-1)[: weight.numel()].long()] * scale
            dense[name] = values.view(weight.shape)
    return stored, dense


def test_magnitudes_of_another_base_have_nothing_to_do_with_it(tmp_path: Path) -> None:
    folder = dora(tmp_path)
    right, wrong = tmp_path / "base", base(tmp_path / "other", seed=7)
    assert found(right, folder) == []
    finding = of_rule("base-mismatch", found(wrong, folder))
    assert finding.severity == "warning"
    results = [wdecomp.compare(each, folder, columns="none") for each in (wrong, right)]
    fits = [fit for each in results for fit in base_fits(each)]
    assert fits[1].distance < 0.05 < 0.2 < fits[0].distance
    [told] = base_findings(fits)
    assert (told.rule.id, told.severity) == ("base-mismatch", "error")
    assert str(right) in told.message
    assert base_findings(fits[::-1]) == []


def test_the_dequantised_base_of_a_qdora_is_nearer_than_the_unquantised_one(
    tmp_path: Path,
) -> None:
    model = base_model()
    stored, dense = _in_nf4({n: t.clone() for n, t in model.state_dict().items()})
    write_full(tmp_path / "nf4", stored)
    base(tmp_path)
    model.load_state_dict(dense)
    trained(adapted(model), lr=1e-4).save_pretrained(tmp_path / "qdora")
    results = [
        wdecomp.compare(tmp_path / each, tmp_path / "qdora", columns="none")
        for each in ("base", "nf4")
    ]
    fits = [fit for each in results for fit in base_fits(each)]
    assert [fit.dtype for fit in fits] == ["F32", "NF4"]
    [told] = base_findings(fits)
    assert (told.rule.id, told.severity) == ("quantised-base", "error")


def test_a_config_that_names_a_quantised_base_is_believed(tmp_path: Path) -> None:
    folder = dora(tmp_path)
    _edit_config(folder, base_model_name_or_path="unsloth/llama-3-8b-bnb-4bit")
    of_rule("quantised-base", found(tmp_path / "base", folder))


def test_a_lora_does_not_tell_its_base(tmp_path: Path) -> None:
    trained(adapted(base_model(), dora=False)).save_pretrained(tmp_path / "lora")
    bases = base(tmp_path), base(tmp_path / "other", seed=7)
    fits = [fit for each in bases for fit in base_fits(wdecomp.compare(each, tmp_path / "lora"))]
    assert all(math.isnan(fit.distance) for fit in fits)
    assert [each.rule.id for each in base_findings(fits)] == ["base-unknown"]


# Weights


@pytest.mark.parametrize("side", ["tuned", "base"])
def test_nan_is_found_on_the_side_that_has_it(side: str, tmp_path: Path) -> None:
    tensors = tiny_llama(2)
    broken = {**tensors, Q: tensors[Q].clone()}
    broken[Q][4, 7] = math.nan
    broken[Q][9] = math.inf
    base_folder = write_full(tmp_path / "base", broken if side == "base" else tensors)
    tuned = moved(tensors if side == "base" else broken)
    rule = "nonfinite-base" if side == "base" else "nonfinite"
    finding = of_rule(rule, found(base_folder, write_full(tmp_path / "ft", tuned)))
    assert (finding.severity, finding.tensors) == ("error", (Q,))
    assert finding.evidence["outputs"] == 2


def test_a_copy_of_the_base_was_not_trained(tmp_path: Path) -> None:
    folder = write_full(tmp_path / "base", tiny_llama(2))
    finding = of_rule("unchanged", found(folder, write_full(tmp_path / "ft", tiny_llama(2))))
    assert finding.severity == "error"


def test_biases_that_were_trained_alone_are_no_copy_of_the_base(tmp_path: Path) -> None:
    tuned = _full(tmp_path, frozen=("weight",))
    finding = of_rule("unchanged", found(base(tmp_path), tuned))
    assert finding.severity == "note"
    assert finding.message.endswith("matrices equal the base's, and 8 of 13 vectors do not")


def test_frozen_layers_and_frozen_kinds_are_told_apart(tmp_path: Path) -> None:
    tuned = _full(tmp_path, frozen=("layers.0.mlp.down_proj", "embed_tokens"))
    by = {each.severity: each for each in found(base(tmp_path), tuned)}
    assert by["warning"].tensors == ("model.layers.0.mlp.down_proj.weight",)
    assert by["note"].tensors == ("model.embed_tokens.weight",)
    assert {each.rule.id for each in by.values()} == {"unchanged"}


def test_modules_that_were_no_targets_are_not_missed(tmp_path: Path) -> None:
    """Two convolutions of one kind, of which one was trained."""
    weights = {f"blocks.{i}.{name}.weight": torch.randn(4, 3, 2, 2) for i in range(2)
               for name in ("conv1", "conv2")}  # fmt: skip
    write_full(tmp_path / "base", weights)
    tuned = {n: t + 0.01 * torch.randn_like(t) if "conv1" in n else t for n, t in weights.items()}
    finding = of_rule("unchanged", found(tmp_path / "base", write_full(tmp_path / "ft", tuned)))
    assert finding.severity == "note"
    assert finding.tensors == ("blocks.0.conv2.weight", "blocks.1.conv2.weight")


def test_a_layer_that_was_initialised_anew_is_no_change_of_the_old_one(tmp_path: Path) -> None:
    folder = _full(tmp_path)
    edited(folder / WEIGHTS, lambda t: t.update({Q: torch.randn_like(t[Q])}))
    finding = of_rule("replaced", found(base(tmp_path), folder))
    assert (finding.severity, finding.tensors) == ("warning", (Q,))


def test_weights_that_were_not_saved_are_missed(tmp_path: Path) -> None:
    folder = _full(tmp_path)
    edited(folder / WEIGHTS, lambda t: t.pop(Q))
    finding = of_rule("missing-tensors", found(base(tmp_path), folder))
    assert finding.tensors == (Q,)


def test_a_checkpoint_that_was_only_rounded_is_at_its_floor(tmp_path: Path) -> None:
    model = {n: t.bfloat16() for n, t in base_model().state_dict().items()}
    folder = write_full(tmp_path / "ft", model)
    finding = of_rule("at-floor", found(base(tmp_path), folder))
    assert finding.evidence["times_floor"] == pytest.approx(1, rel=0.1)
    assert finding.evidence["dtype"] == "BF16"


def test_steps_with_one_fault_are_one_finding(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        dora(tmp_path / str(step))
        folder = tmp_path / f"run/checkpoint-{step}"
        folder.parent.mkdir(exist_ok=True)
        (tmp_path / str(step) / "dora").rename(folder)
        edited(folder / ADAPTER, lambda t: t[MAGNITUDE].__setitem__(0, 0.0))
    [finding] = found(tmp_path / "10/base", tmp_path / "run")
    assert finding.steps == (10, 20, 30)
    assert finding.where == "run, steps 10 to 30"


def test_pooled_and_within_step_signs_that_differ_are_said(tmp_path: Path) -> None:
    """Decay shrinks long columns more and they turn less, while both changes grow in time."""
    weights = tiny_llama(6)
    lengths = {f"layers.{i}.": 1 + 0.1 * i for i in range(6)}
    for name in weights:
        weights[name] *= next((c for part, c in lengths.items() if part in name), 1.0)
    write_full(tmp_path / "base", weights)
    for step in (1, 2, 3, 4):
        tuned = moved({n: t * (1 - 0.01 * step) for n, t in weights.items()}, 2e-3 * step, step)
        write_full(tmp_path / f"ft/checkpoint-{step}", tuned)
    results = wdecomp.compare(tmp_path / "base", tmp_path / "ft", columns="none")
    told = {each.rule.id: each for each in findings(results)}
    assert set(told) == {"decay-dominated", "pooled-sign"}
    pooled, within = str(told["pooled-sign"].evidence["decoder.q"]).split(" / ")
    assert float(pooled) > 0.5
    assert float(within) < -0.5
    fits = results.fits.query("axis == 'output' and response == 'delta_magnitude'")
    fits = fits.query("estimator == 'pearson' and grouping in ('pooled', 'within_step')")
    intervals = fits.groupby("module")[["cluster_low", "cluster_high"]]
    settled = intervals.apply(lambda part: bool((part.prod(axis=1) > 0).all()))
    said = {part.split()[0].split(".")[1]: "open over layers" not in part
            for part in told["pooled-sign"].message.split("; ")}  # fmt: skip
    assert said == {kind: settled[kind] for kind in said}


def test_a_healthy_adapter_beside_a_faulty_one_keeps_its_peace(tmp_path: Path) -> None:
    tensors = tiny_llama(2)
    write_full(tmp_path / "base", tensors)
    factors = low_rank(tensors)
    write_adapter(tmp_path / "good", factors)
    write_adapter(tmp_path / "bad", {n: (a, 0 * b) for n, (a, b) in factors.items()})
    results = wdecomp.compare(tmp_path / "base", tmp_path / "good", tmp_path / "bad")
    assert [(each.run, each.rule.id) for each in findings(results)] == [("bad", "untrained")]
