"""Damage, lost and foreign tensors, bad input, and the sums themselves beside plain numpy."""

import json
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import Tensors, low_rank, tiny_llama, write_adapter, write_full
from numpy.testing import assert_allclose
from peft import LoraConfig, get_peft_model
from peft_cases import experts
from peft_cases import write as write_experts
from peft_models import away_from_start, seeded
from safetensors.torch import load_file, save_file
from verify_cases import WEIGHTS, llama, loaded, merge, save, write_kind, write_nf4

from wdecomp.cli import main
from wdecomp.merging import merge as merge_by_wdecomp
from wdecomp.verifying import Finding, Verification, as_json, verify
from wdecomp.verifying.allowance import least, products, roundoff
from wdecomp.verifying.sums import Adding

Q = "model.layers.0.self_attn.q_proj.weight"
K = "model.layers.0.self_attn.k_proj.weight"
NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DoRA merged in BF16."""
    folder = tmp_path_factory.mktemp("dora")
    write_kind(folder, "dora", torch.bfloat16)
    merge(folder, "merged", "dora", torch.bfloat16)
    return folder


def _edited(healthy: Path, folder: Path, change: Callable[[Tensors], object]) -> Verification:
    tensors = load_file(healthy / "merged" / WEIGHTS)
    change(tensors)
    save(tensors, folder / "edited")
    return verify(folder / "edited", healthy / "base", healthy / "adapter")


def _one(found: Verification, kind: str, *tensors: str) -> Finding:
    assert [finding.kind for finding in found.findings] == [kind], found.findings
    assert found.findings[0].tensors == tensors
    return found.findings[0]


def _weight_is_off(tensors: Tensors) -> None:
    weight = tensors[Q][5, 7]
    tensors[Q][5, 7] = weight * 1.1 + 0.01


def _output_is_the_bases(base: Tensors) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[Q][3] = base[Q][3]

    return change


def test_one_weight_and_one_output_that_are_off_are_seen(healthy: Path, tmp_path: Path) -> None:
    found = _edited(healthy, tmp_path, _weight_is_off)
    assert _one(found, "unexplained", Q).message.startswith("1 weights are further")
    base = load_file(healthy / "base" / WEIGHTS)
    found = _edited(healthy, tmp_path, _output_is_the_bases(base))
    assert "in 1 of 64 columns" in _one(found, "unexplained", Q).message


def test_what_the_adapter_does_not_touch_must_be_the_bases(healthy: Path, tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        tensors[NORM][0] += 0.01
        tensors[K][1, 2] = -tensors[K][1, 2]

    found = _edited(healthy, tmp_path, change)
    assert set(found.findings[0].tensors) == {NORM, K}
    assert found.findings[0].kind == "changed"
    assert "2 of their weights are not the base's" in found.findings[0].message


def test_what_is_missing_and_what_is_more_is_named(healthy: Path, tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        del tensors[K]
        tensors["model.vision.weight"] = torch.ones(3, 4)

    kinds = {each.kind: each.tensors for each in _edited(healthy, tmp_path, change).findings}
    assert kinds == {"missing": (K,), "extra": ("model.vision.weight",)}
    found = _edited(healthy, tmp_path, lambda tensors: tensors.pop(Q))
    _one(found, "missing", Q)


def test_buffers_that_models_compute_are_no_weights(healthy: Path, tmp_path: Path) -> None:
    """LLaMA 2's own files have them, and what transformers saves today has not."""
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    found = _edited(healthy, tmp_path, lambda tensors: tensors.update({name: torch.rand(8)}))
    assert found.is_right, found.findings
    assert f"{name} is not looked at" in found.notes[0]
    base = load_file(healthy / "base" / WEIGHTS)
    save(base | {name: torch.rand(8)}, tmp_path / "older")
    shutil.copy(healthy / "base/config.json", tmp_path / "older")
    assert verify(healthy / "merged", tmp_path / "older", healthy / "adapter").is_right


def test_another_adapter_is_told_from_another_base(healthy: Path, tmp_path: Path) -> None:
    """k, o, gate and up are the base's still."""
    write_kind(tmp_path, "dora", torch.bfloat16, seed=7)
    found = verify(healthy / "merged", healthy / "base", tmp_path / "adapter")
    [finding] = found.findings
    assert finding.kind == "other-adapter", finding
    assert finding.message.endswith("all others are the base's: not of this adapter")
    assert len(finding.tensors) == 6


def test_a_second_adapter_is_something_besides(tmp_path: Path) -> None:
    write_kind(tmp_path, "lora", torch.float32)
    write_kind(tmp_path / "second", "lora", torch.float32, seed=7)
    once = merge(tmp_path, "merged", "lora", torch.float32)
    (tmp_path / "second/merged").symlink_to(once)
    merge(tmp_path / "second", "both", "lora", torch.float32, base="merged")
    found = verify(tmp_path / "second/both", tmp_path / "base", tmp_path / "adapter")
    [finding] = found.findings
    assert finding.kind == "other-adapter", finding
    assert finding.message.endswith("with something else in them besides")


def test_weights_that_float16_cannot_hold_as_well_are_the_bases(tmp_path: Path) -> None:
    """Below 2^-14 float16 has steps of 2^-24, bfloat16 finer ones; the numbers look like BF16's."""
    write_kind(tmp_path, "lora", torch.bfloat16)
    merge(tmp_path, "merged", "lora", torch.bfloat16)
    for side in ("base", "merged"):
        tensors = load_file(tmp_path / side / WEIGHTS)
        tensors[K][0] *= 2.0**-12
        save(tensors, tmp_path / side)
    narrow = {n: t.half() for n, t in load_file(tmp_path / "merged" / WEIGHTS).items()}
    assert not torch.equal(narrow[K].float(), load_file(tmp_path / "base" / WEIGHTS)[K].float())
    save(narrow, tmp_path / "merged")
    found = verify(tmp_path / "merged", tmp_path / "base", tmp_path / "adapter")
    assert found.is_right, found.findings


def test_magnitudes_in_another_order_are_told_from_no_magnitudes(
    healthy: Path, tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for file in (healthy / "adapter").iterdir():
        (adapter / file.name).write_bytes(file.read_bytes())
    tensors = load_file(adapter / "adapter_model.safetensors")
    for name in tensors:
        if "magnitude" in name:
            tensors[name] = tensors[name].roll(1)
    save_file(tensors, adapter / "adapter_model.safetensors")
    found = verify(healthy / "merged", healthy / "base", adapter)
    assert [finding.kind for finding in found.findings] == ["other-magnitude"]


def test_the_nan_that_peft_makes_of_a_zero_column_is_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = llama().state_dict()
    base[Q][2] = 0
    save(base, tmp_path / "base")
    (tmp_path / "base/config.json").write_text(json.dumps(llama().config.to_dict(), default=str))
    model = loaded(tmp_path, "dora", torch.float32)
    config = LoraConfig(r=4, target_modules=["q_proj"], use_dora=True, init_lora_weights=True)
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    merge(tmp_path, "merged", "dora", torch.float32)
    found = verify(tmp_path / "merged", tmp_path / "base", tmp_path / "adapter")
    assert "64 weights are NaN or infinite" in _one(found, "not-finite", Q).message


def test_an_adapter_that_gives_nan_is_not_the_merges_fault(healthy: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for file in (healthy / "adapter").iterdir():
        (adapter / file.name).write_bytes(file.read_bytes())
    tensors = load_file(adapter / "adapter_model.safetensors")
    name = next(name for name in tensors if "layers.0.self_attn.q_proj.lora_B" in name)
    tensors[name][4] = torch.inf
    save_file(tensors, adapter / "adapter_model.safetensors")
    _one(verify(healthy / "merged", healthy / "base", adapter), "not-finite-adapter", Q)


def test_a_head_that_is_tied_in_the_merged_checkpoint_is_its_embedding(tmp_path: Path) -> None:
    """The base stores both; transformers drops one of two tensors that are the same."""
    write_kind(tmp_path, "lora", torch.float32)
    base = load_file(tmp_path / "base" / WEIGHTS)
    base["lm_head.weight"] = base["model.embed_tokens.weight"].clone()
    save(base, tmp_path / "base")
    merge(tmp_path, "merged", "lora", torch.float32)
    tensors = load_file(tmp_path / "merged" / WEIGHTS)
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "merged" / WEIGHTS)
    assert verify(tmp_path / "merged", tmp_path / "base", tmp_path / "adapter").is_right
    tensors["model.embed_tokens.weight"] += 1
    save_file(tensors, tmp_path / "merged" / WEIGHTS)
    found = verify(tmp_path / "merged", tmp_path / "base", tmp_path / "adapter")
    assert set(found.findings[0].tensors) == {"lm_head.weight", "model.embed_tokens.weight"}


def test_a_head_of_the_adapters_own_shape_is_held_beside_the_adapters(tmp_path: Path) -> None:
    write_kind(tmp_path, "lora", torch.float32)
    model = seeded(llama)
    model.lm_head = torch.nn.Linear(64, 7, bias=False)
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"])
    adapted = get_peft_model(model, config)
    away_from_start(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    merged = adapted.merge_and_unload().state_dict()
    save(merged, tmp_path / "merged")
    found = verify(tmp_path / "merged", tmp_path / "base", tmp_path / "adapter")
    assert found.is_right, found.findings
    merged["lm_head.weight"] = merged["lm_head.weight"] + 1
    save(merged, tmp_path / "merged")
    found = verify(tmp_path / "merged", tmp_path / "base", tmp_path / "adapter")
    assert "lm_head.weight" in found.findings[0].tensors


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_experts_are_verified_one_by_one(family: str, tmp_path: Path) -> None:
    target = [f"model.layers.{i}.mlp.experts.gate_up_proj" for i in range(2)]
    config = LoraConfig(r=4, target_modules=["q_proj"], target_parameters=target)
    write_experts(tmp_path, lambda: experts(family), config)
    paths = tmp_path / "base", tmp_path / "adapter"
    found = verify(tmp_path / "merged", *paths)
    assert found.is_right, found.findings
    assert sum("experts" in t.parameter and t.is_touched for t in found.tensors) == 2 * 3 * 2
    [finding] = verify(tmp_path / "base", *paths).findings
    assert finding.kind == "not-merged"


@pytest.mark.parametrize("axis", ["output", "input"])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("dtype", "of_base"), [("BF16", ""), ("F16", ""), ("F32", "BF16")])
def test_sums_are_those_of_plain_float64(axis: Any, turned: bool, dtype: str, of_base: str) -> None:
    random = np.random.default_rng(0)
    shape = 7, 1100  # two strips and a part of one
    base, change, plain, error = (
        size * random.standard_normal(shape) for size in (0.02, 1e-3, 2e-3, 1e-4)
    )
    merged = base + change + error
    merged[2, 3], change[4, 5], base[1, 600] = np.nan, np.inf, np.inf
    blocks = [np.asarray(block, order="F" if turned else "C")
              for block in (base, change, plain, merged)]  # fmt: skip
    rows, height = (shape[1], 300) if turned else (shape[0], 3)
    sums = Adding(shape[0 if axis == "output" else 1], axis, dtype, of_base)
    for top in range(0, rows, height):
        here, all_ = slice(top, min(top + height, rows)), slice(0, shape[0 if turned else 1])
        outputs, inputs = (all_, here) if turned else (here, all_)
        sums.add(*(block[outputs, inputs] for block in blocks), outputs, inputs)
    columns, tensor = sums.total()
    good = np.isfinite(merged) & np.isfinite(change) & np.isfinite(base)
    squares = np.where(np.isfinite(change), change, 0) ** 2
    of_rows = np.sqrt(squares.mean(axis=0 if turned else 1, keepdims=True))
    allowed = roundoff(of_base or dtype) * abs(base) + roundoff(dtype) * abs(base + change)
    allowed += products(dtype) * of_rows + least(dtype)
    w, x, z, y, e = (
        np.where(good, each, 0.0) / np.where(good, allowed, 1.0)
        for each in (base, change, plain, merged - base, merged - base - change)
    )
    along = 1 if axis == "output" else 0
    for found, (one, other) in {
        "ww": (w, w), "wz": (w, z), "zz": (z, z), "wy": (w, y), "zy": (z, y),
        "yy": (y, y), "wx": (w, x), "zx": (z, x), "ee": (e, e),
    }.items():  # fmt: skip
        want = (one * other).sum(axis=along)
        atol = 1e-12 * np.abs(one * other).sum(axis=along).max()
        assert_allclose(getattr(columns, found), want, rtol=1e-9, atol=atol, err_msg=found)
    assert columns.count.sum() == good.sum()
    assert (tensor.damaged, tensor.broken) == (1, 1)  # not where the base itself is infinite
    assert tensor.largest == pytest.approx(np.abs(e).max())
    assert tensor.over == (np.abs(e) > 4).sum()
    seen = np.abs(x) >= 2
    assert tensor.seen_xx == pytest.approx((x[seen] ** 2).sum())
    assert tensor.error == pytest.approx((np.where(good, error, 0) ** 2).sum(), rel=1e-6)


OUTPUTS, INPUTS = 4096, 2752
MOST_MB = 24  # the matrix has 23 in BF16, and 45 in float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "f32"])
def test_a_wide_matrix_is_verified_in_less_memory_than_it_has(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    name = "model.layers.0.mlp.down_proj"
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(8, INPUTS, generator=random).mul_(0.02).repeat(OUTPUTS // 8, 1)
    a = torch.randn(8, INPUTS, generator=random) * 0.01
    b = torch.randn(OUTPUTS, 8, generator=random) * 0.01
    base = write_full(tmp_path / "base", {f"{name}.weight": weight.to(dtype)})
    adapter = write_adapter(tmp_path / "dora", {name: (a, b)}, {name: weight.norm(dim=1)})
    merge_by_wdecomp(base, adapter, tmp_path / "merged")
    tracemalloc.start()
    found = verify(tmp_path / "merged", base, adapter, workers=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.is_right
    assert peak < MOST_MB * 1e6, f"{peak / 1e6:.0f} MB"


def _llama(folder: Path) -> tuple[Path, Path, Path]:
    """Merged, base and adapter."""
    base = write_full(folder / "base", tiny_llama(1), config={"model_type": "llama"})
    adapter = write_adapter(folder / "lora", low_rank(tiny_llama(1)))
    merge_by_wdecomp(base, adapter, folder / "merged")
    return folder / "merged", base, adapter


def _nowhere(folder: Path) -> tuple[Path, Path, Path]:
    return folder / "nowhere", *_llama(folder)[1:]


def _adapter_for_merged(folder: Path) -> tuple[Path, Path, Path]:
    _, base, adapter = _llama(folder)
    return adapter, base, adapter


def _merged_for_adapter(folder: Path) -> tuple[Path, Path, Path]:
    merged, base, _ = _llama(folder)
    return merged, base, merged


def _other_model(folder: Path) -> tuple[Path, Path, Path]:
    merged, _, adapter = _llama(folder)
    return merged, write_full(folder / "other", {"a.weight": torch.ones(2, 3)}), adapter


def _quantised(folder: Path) -> tuple[Path, Path, Path]:
    write_kind(folder, "lora", torch.float32)
    write_nf4(folder, torch.float32)
    return folder / "nf4", folder / "base", folder / "adapter"


def _cut(folder: Path) -> tuple[Path, Path, Path]:
    merged, base, adapter = _llama(folder)
    file = merged / WEIGHTS
    file.write_bytes(file.read_bytes()[:-100])
    return merged, base, adapter


BAD: dict[Callable[[Path], tuple[Path, Path, Path]], str] = {
    _nowhere: "nowhere: there is no such file or folder",
    _adapter_for_merged: "lora: is an adapter, expected a merged checkpoint",
    _merged_for_adapter: "merged: is a full checkpoint, expected the adapter",
    _other_model: "different models",
    _quantised: "is stored as NF4, whose rounding hides most adapters",
    _cut: "model.safetensors",
}


def _run(merged: Path, base: Path, adapter: Path, *options: str) -> int:
    arguments = [str(merged), "--base", str(base), "--adapter", str(adapter), "-q", *options]
    try:
        main(["verify", *arguments])
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


@pytest.mark.parametrize("build", BAD, ids=lambda build: build.__name__.strip("_"))
def test_bad_input_is_one_line(
    build: Callable[[Path], tuple[Path, Path, Path]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert _run(*build(tmp_path)) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("wdecomp: ")
    assert err.count("\n") == 1
    assert BAD[build] in err


def test_the_command_says_it_and_exits_with_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    merged, base, adapter = _llama(tmp_path)
    assert _run(merged, base, adapter) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{merged}: is {base} + {adapter} (lora): 2 of 2 tensors that the")
    assert err == ""
    assert _run(base, base, adapter, "--candidate-base", str(merged)) == 3
    out = capsys.readouterr().out
    assert f"{base}: is NOT {base} + {adapter}" in out
    assert "\nnot-merged: they are the base's" in out
    assert f"tensors (2): {Q}" in out


def test_json_has_the_verdict_and_every_tensor_that_matters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    merged, base, adapter = _llama(tmp_path)
    assert _run(base, base, adapter, "--json") == 3
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(json.dumps(as_json(verify(base, base, adapter))))
    assert found["is_base_plus_adapter"] is False
    assert found["counts"] == {"touched": 2, "touched_right": 0, "other": 3, "other_right": 3}
    assert [finding["kind"] for finding in found["findings"]] == ["not-merged"]
    assert {tensor["state"] for tensor in found["tensors"]} == {"not-merged"}
    assert found["tensors"][0]["factor"] == 0
    assert _run(merged, base, adapter, "--json") == 0
