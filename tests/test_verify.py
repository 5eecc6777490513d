"""What PEFT merged, rightly and wrongly, beside what `wdecomp verify` says of it."""

from pathlib import Path

import pytest
import torch
from peft_models import write_case
from safetensors.torch import load_file
from test_merging import CASES
from verify_cases import DTYPES, KINDS, WEIGHTS, WRONG, merge, save, write_kind, write_nf4

from wdecomp import merging
from wdecomp.verifying import Verification, as_text, verify

# ‖ΔW‖ by the size of B: about a third and 3 % of ‖W0‖.
LARGE, SMALL = 0.02, 0.002


def _verify(folder: Path, merged: str, **options: object) -> Verification:
    paths = folder / merged, folder / "base", folder / "adapter"
    return verify(*paths, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_peft_merges_is_base_and_adapter(kind: str, dtype: str, tmp_path: Path) -> None:
    """By default, as `safe_merge`, and with all that it does in the base's 16 bits."""
    for size in (LARGE, SMALL):
        folder = tmp_path / str(size)
        write_kind(folder, kind, DTYPES[dtype], size)
        merge(folder, "merged", kind, DTYPES[dtype])
        merge(folder, "safe", kind, DTYPES[dtype], safe=True)
        merge(folder, "narrow", kind, DTYPES[dtype], autocast=False)
        for merged in ("merged", "safe", "narrow"):
            found = _verify(folder, merged)
            assert found.is_right, as_text(found)
            touched = [tensor for tensor in found.tensors if tensor.is_touched]
            assert len(touched) == (8 if kind == "conv1d" else 6)
            assert {tensor.state for tensor in touched} == {"merged"}
            assert {tensor.dtype for tensor in touched} == {dtype}
            factors = [tensor.factor for tensor in touched]
            assert factors == pytest.approx([1] * len(factors), abs=0.02)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["lora", "dora", "conv1d"])
def test_each_wrong_merge_is_named(kind: str, dtype: str, tmp_path: Path) -> None:
    write_kind(tmp_path, kind, DTYPES[dtype], SMALL)
    write_nf4(tmp_path, DTYPES[dtype])
    is_dora, layers = kind != "lora", 2
    for name, make in WRONG.items():
        if (name == "magnitude-ignored" and not is_dora) or (
            name == "other-base" and kind == "conv1d"
        ):
            continue
        make(tmp_path, name, kind, DTYPES[dtype])
        found = _verify(tmp_path, name)
        assert [finding.kind for finding in found.findings] == [name], as_text(found)
        named = set(found.findings[0].tensors)
        touched = {tensor.parameter for tensor in found.tensors if tensor.is_touched}
        if name == "not-merged":
            assert named == {parameter for parameter in touched if ".1." in parameter}
        elif name == "other-base":
            assert touched < named
            assert len(named) == 7 * layers
        else:
            assert named == touched


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_another_scaling_is_told_with_its_value(kind: str, dtype: str, tmp_path: Path) -> None:
    write_kind(tmp_path, kind, DTYPES[dtype], LARGE)
    WRONG["other-scaling"](tmp_path, "merged", kind, DTYPES[dtype])
    [finding] = _verify(tmp_path, "merged").findings
    assert "with scaling 5 instead of 2" in finding.message


def test_an_rslora_merged_as_lora_is_told(tmp_path: Path) -> None:
    write_kind(tmp_path, "rslora", torch.bfloat16)
    config = tmp_path / "adapter/adapter_config.json"
    text = config.read_text()
    config.write_text(text.replace('"use_rslora": true', '"use_rslora": false'))
    merge(tmp_path, "merged", "rslora", torch.bfloat16)
    config.write_text(text)
    [finding] = _verify(tmp_path, "merged").findings
    assert finding.kind == "other-scaling"
    assert "with scaling 2 instead of 4, as without use_rslora" in finding.message


def test_the_base_that_it_was_merged_into_is_found_among_others(tmp_path: Path) -> None:
    write_kind(tmp_path, "dora", torch.bfloat16)
    write_nf4(tmp_path, torch.bfloat16)
    torch.manual_seed(5)
    tensors = load_file(tmp_path / "base" / WEIGHTS)
    save({n: t + 0.001 * torch.randn_like(t) for n, t in tensors.items()}, tmp_path / "elsewhere")
    save({"other.weight": torch.ones(2, 2)}, tmp_path / "stranger")
    WRONG["other-base"](tmp_path, "merged", "dora", torch.bfloat16)
    others = [tmp_path / name for name in ("elsewhere", "nf4", "stranger")]
    found = _verify(tmp_path, "merged", candidates=others)
    here, elsewhere, nf4, stranger = found.candidates
    assert [each.fits for each in found.candidates] == [False, False, True, False]
    assert "as far as quantising to 4 bits brings them" in found.findings[0].message
    assert elsewhere.relative > here.relative > 10 * nf4.relative
    assert "different models" in stranger.reason
    assert f"{tmp_path / 'nf4'}: " in as_text(found)
    right = verify(tmp_path / "merged", tmp_path / "nf4", tmp_path / "adapter")
    assert right.is_right, as_text(right)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_base_that_was_dequantised_in_16_bits_is_the_quantised_one(
    kind: str, dtype: str, tmp_path: Path
) -> None:
    write_kind(tmp_path, kind, torch.bfloat16)
    write_nf4(tmp_path, torch.bfloat16)
    merge(tmp_path, "merged", kind, DTYPES[dtype], base="dequantised")
    found = verify(tmp_path / "merged", tmp_path / "nf4", tmp_path / "adapter")
    assert found.is_right, as_text(found)
    for name, wrong in WRONG.items():
        if name == "other-base" or (name == "magnitude-ignored" and kind == "lora"):
            continue
        wrong(tmp_path, name, kind, DTYPES[dtype], base="dequantised")
        found = verify(tmp_path / name, tmp_path / "nf4", tmp_path / "adapter")
        assert [finding.kind for finding in found.findings] == [name], as_text(found)
    merge(tmp_path, "plain", kind, DTYPES[dtype])
    found = verify(tmp_path / "plain", tmp_path / "nf4", tmp_path / "adapter")
    assert [finding.kind for finding in found.findings] == ["other-base"], as_text(found)


@pytest.mark.parametrize("dtype", ["base", "float32", "bfloat16", "float16"])
def test_what_wdecomp_merges_is_base_and_adapter(dtype: str, tmp_path: Path) -> None:
    write_kind(tmp_path, "dora", torch.bfloat16)
    merging.merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged", dtype=dtype)
    found = _verify(tmp_path, "merged")
    assert found.is_right, as_text(found)
    assert found.notes == ()


@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_layer_that_peft_merges(case: str, tmp_path: Path) -> None:
    """Biases, saved heads, new tokens, embeddings, fused attention, convolutions."""
    write_case(tmp_path, *CASES[case])
    found = _verify(tmp_path, "merged")
    assert found.is_right, as_text(found)
    assert any(tensor.is_touched for tensor in found.tensors)
    again = save(load_file(tmp_path / "base" / WEIGHTS), tmp_path / "unmerged")
    found = verify(again, tmp_path / "base", tmp_path / "adapter")
    assert {finding.kind for finding in found.findings} == {"not-merged"}, as_text(found)


def test_a_bf16_merge_that_is_stored_in_float32_is_bf16s(tmp_path: Path) -> None:
    write_kind(tmp_path, "dora", torch.bfloat16, SMALL)
    merge(tmp_path, "narrow", "dora", torch.bfloat16, autocast=False)
    tensors = load_file(tmp_path / "narrow" / WEIGHTS)
    save({name: tensor.float() for name, tensor in tensors.items()}, tmp_path / "merged")
    found = _verify(tmp_path, "merged")
    assert found.is_right, as_text(found)
    assert "stored in F32 with numbers of BF16" in found.notes[0]


def test_a_base_that_is_rounded_to_be_merged_is_the_base(tmp_path: Path) -> None:
    write_kind(tmp_path, "dora", torch.float32, SMALL)
    for name, dtype in DTYPES.items():
        merge(tmp_path, name, "dora", dtype)
        found = _verify(tmp_path, name)
        assert found.is_right, as_text(found)


def test_a_base_that_hardly_differs_is_another_base_still(tmp_path: Path) -> None:
    """By half a step of BF16: no column is off, single weights are."""
    write_kind(tmp_path, "lora", torch.bfloat16)
    torch.manual_seed(5)
    base = load_file(tmp_path / "base" / WEIGHTS)
    other = {n: (t + 0.003 * t.std() * torch.randn(t.shape)).bfloat16() for n, t in base.items()}
    save(other, tmp_path / "other")
    merge(tmp_path, "merged", "lora", torch.bfloat16, base="other")
    found = _verify(tmp_path, "merged", candidates=[tmp_path / "other"])
    assert [finding.kind for finding in found.findings] == ["other-base"], as_text(found)
    assert found.findings[0].message.endswith("merged into another base")
    assert found.candidates[1].fits


def test_what_float32_could_hold_and_is_the_base_still_was_not_merged(tmp_path: Path) -> None:
    """Numbers of BF16 in F32, of a base that was widened: nobody rounded a merge."""
    write_kind(tmp_path, "lora", torch.bfloat16, 1e-7)
    base = load_file(tmp_path / "base" / WEIGHTS)
    save({name: tensor.float() for name, tensor in base.items()}, tmp_path / "widened")
    found = verify(tmp_path / "widened", tmp_path / "widened", tmp_path / "adapter")
    assert [finding.kind for finding in found.findings] == ["not-merged"], as_text(found)
    assert verify(tmp_path / "base", tmp_path / "base", tmp_path / "adapter").is_right


def test_a_change_that_16_bits_cannot_hold_is_not_told_from_none(tmp_path: Path) -> None:
    write_kind(tmp_path, "lora", torch.bfloat16, 1e-9)
    merge(tmp_path, "merged", "lora", torch.bfloat16)
    found = _verify(tmp_path, "merged")
    assert found.is_right
    assert "too small for BF16 to show" in found.notes[0]
    assert {t.state for t in found.tensors if t.is_touched} == {"too-small"}
