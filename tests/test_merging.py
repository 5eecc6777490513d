"""A merged checkpoint beside PEFT's own merge: whole files, in every storage, and when it fails."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import numpy as np
import pytest
import torch
from builders import low_rank, tiny_llama, write_adapter, write_full
from numpy.testing import assert_allclose, assert_array_equal
from peft import LNTuningConfig, LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft_cases import experts, move, save_model
from peft_cases import write as write_experts
from peft_models import Attention, Make, Mixed, away_from_start, bert, gpt2, llama, write_case
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BertModel, LlamaConfig, LlamaForCausalLM

import wdecomp
from wdecomp.cli import commands, main
from wdecomp.cli.merge import merge as merge_command
from wdecomp.merging import merge
from wdecomp.merging.weights import rounded

commands.add_command(merge_command)  # once more does no harm

# Of the largest weight: float32 products and norms, summed in another order than PEFT's.
MERGED = 1e-6
BLOCKS = (600, 1 << 20)  # bytes: some rows, fewer than a part of a fused weight has; all
QVD = ["q_proj", "v_proj", "down_proj"]
WEIGHTS = "model.safetensors"


def _config(**config: Any) -> LoraConfig:
    return LoraConfig(r=4, lora_alpha=9, **config)


CASES: dict[str, tuple[Make, PeftConfig]] = {
    "lora": (llama, _config(target_modules=QVD)),
    "lora, rank-stabilised": (llama, _config(target_modules=QVD, use_rslora=True)),
    "lora, biases on top of all biases": (
        llama,
        _config(target_modules=["q_proj", "v_proj"], bias="all", lora_bias=True),
    ),
    "lora, a head saved": (llama, _config(target_modules=QVD, modules_to_save=["lm_head"])),
    "lora, new tokens": (llama, _config(target_modules=QVD, trainable_token_indices=[3, 7])),
    "lora of fused attention": (Attention, _config(target_modules=["attn"])),
    "lora of an embedding": (Mixed, _config(target_modules=["embed_in"])),
    "dora": (llama, _config(target_modules=QVD, use_dora=True)),
    "dora of conv1d": (
        gpt2,
        _config(target_modules=["c_attn", "c_proj", "c_fc"], use_dora=True, fan_in_fan_out=True),
    ),
    "dora of convolutions": (
        Mixed,
        _config(target_modules=["conv1", "conv2", "conv3", "point", "linear"], use_dora=True),
    ),
    "dora of an embedding": (Mixed, _config(target_modules=["embed_in"], use_dora=True)),
    "norms alone": (llama, LNTuningConfig(target_modules=["input_layernorm", "norm"])),
}


def _load(folder: Path, file: str = WEIGHTS) -> dict[str, Tensor]:
    return load_file(folder / file)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("case", CASES)
def test_a_merge_in_float32_is_pefts(
    case: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wdecomp.merging.weights.BLOCK_BYTES", block)
    monkeypatch.setattr("wdecomp.adapter.updates.BLOCK_BYTES", block)
    write_case(tmp_path, *CASES[case])
    found = merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out", dtype="float32")
    got, want, base = (_load(tmp_path / side) for side in ("out", "merged", "base"))
    assert got.keys() == want.keys()
    moved = 0
    for name, theirs in want.items():
        limit = MERGED * float(theirs.abs().max())
        torch.testing.assert_close(got[name], theirs, rtol=0, atol=limit, msg=name)
        moved += not torch.equal(theirs, base[name])
        if torch.equal(theirs, base[name]):
            assert torch.equal(got[name], base[name]), name
    assert moved == found.changed > 0


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_experts_are_written_at_their_place_in_the_stack(family: str, tmp_path: Path) -> None:
    """Gate and up of gpt-oss take turns, and its experts are stored (input, output)."""
    target = [f"model.layers.{i}.mlp.experts.gate_up_proj" for i in range(2)]
    config = _config(target_modules=["q_proj"], target_parameters=target)
    write_experts(tmp_path, lambda: experts(family), config)
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    got, want, base = (_load(tmp_path / side) for side in ("out", "merged", "base"))
    assert got.keys() == base.keys()
    assert set(want) <= set(got)
    moved = [name for name in want if not torch.equal(want[name], base[name])]
    assert any("expert" in name for name in moved)
    for name, theirs in want.items():
        limit = MERGED * float(theirs.abs().max())
        torch.testing.assert_close(got[name], theirs, rtol=0, atol=limit, msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
def test_a_merge_in_16_bits_is_the_float32_merge_rounded_once(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    make, config = CASES["dora"]
    write_case(tmp_path, make, config, dtype)
    found = merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    got, want = _load(tmp_path / "out"), _load(tmp_path / "merged")
    off = total = 0
    for name, theirs in want.items():
        assert got[name].dtype == dtype
        steps = got[name].view(torch.int16).int() - theirs.to(dtype).view(torch.int16).int()
        assert steps.abs().max() <= 1, name
        off, total = off + int((steps != 0).sum()), total + steps.numel()
    assert off / total < 1e-3
    base = _load(tmp_path / "base")
    same = sum(int((got[name] == base[name]).sum()) for name in QVD_NAMES)
    assert found.rounding.moved == sum(base[name].numel() for name in QVD_NAMES)
    assert found.rounding.lost == same > 0


QVD_NAMES = [
    f"model.layers.{i}.{module}.weight"
    for i in range(2)
    for module in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
]


def test_rounding_is_torchs_on_every_kind_of_number() -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32)
    ties = (bits & 0xFFFF0000) | 0x8000
    numbers = np.concatenate([bits, ties]).view(np.float32)
    finite = numbers[np.isfinite(numbers)]
    for dtype, name in ((torch.bfloat16, "BF16"), (torch.float16, "F16")):
        with np.errstate(over="ignore"):
            got = rounded(finite, name).view(np.int16)
        assert_array_equal(got, torch.from_numpy(finite).to(dtype).view(torch.int16).numpy())
    assert np.isnan(rounded(np.array([np.nan], np.float32), "F16").view(np.float16)).all()
    all_ones = np.array([0x7FFFFFFF, 0xFFFFFFFF], np.uint32).view(np.float32)  # they would carry
    assert rounded(all_ones, "BF16").tolist() == [0x7FC0] * 2


def _tied(**config: Any) -> nn.Module:
    sizes = {"hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2, "vocab_size": 96}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    return LlamaForCausalLM(LlamaConfig(**sizes | heads | config))


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings")
@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ],
    ids=["adapted", "saved"],
)
def test_a_tied_head_that_is_tuned_alone_becomes_a_tensor_of_its_own(
    config: dict[str, Any], tmp_path: Path
) -> None:
    """PEFT's merge changes the embedding with it; what was trained is what PEFT runs unmerged."""
    torch.manual_seed(0)
    model = _tied()
    model.save_pretrained(tmp_path / "base")
    adapted = get_peft_model(model, _config(**config)).eval()
    away_from_start(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    # transformers 5 sees by the tensors that they differ; others believe the config.
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert written["tie_word_embeddings"] is False
    reloaded = PeftModel.from_pretrained(
        LlamaForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter"
    ).eval()
    tokens = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        want, got = reloaded(tokens).logits, loaded.eval()(tokens).logits
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * float(want.abs().max()))
    assert torch.equal(_load(tmp_path / "out")["model.embed_tokens.weight"],
                       _load(tmp_path / "base")["model.embed_tokens.weight"])  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings")
@pytest.mark.filterwarnings("ignore:.*tied")
def test_an_embedding_with_a_tied_head_stays_tied_as_pefts_merge_has_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    _tied().save_pretrained(tmp_path / "base")
    model = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    adapted = get_peft_model(model, _config(target_modules=["embed_tokens"]))
    away_from_start(adapted)
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    want = adapted.merge_and_unload().state_dict()
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    for name, theirs in loaded.state_dict().items():
        torch.testing.assert_close(theirs, want[name], rtol=0, atol=1e-6)


def test_shards_index_and_all_that_stands_beside_are_the_bases(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = llama()
    model.save_pretrained(tmp_path / "base", max_shard_size="30KB")  # type: ignore[operator]
    beside = {"tokenizer.json": "{}", "vocab.txt": "a\nb", "modeling_own.py": "x = 1"}
    unwanted = {"pytorch_model.bin": "old", "optimizer.pt": "old", ".hidden.json": "{}"}
    for name, text in (beside | unwanted).items():
        (tmp_path / "base" / name).write_text(text)
    adapted = get_peft_model(model, _config(target_modules=QVD))
    move(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    base, out = tmp_path / "base", tmp_path / "out"
    names = {file.name for file in base.iterdir()} - unwanted.keys()
    assert {file.name for file in out.iterdir()} == names
    shards = sorted(file.name for file in base.glob("*.safetensors"))
    assert len(shards) > 2
    for shard in shards:
        with safe_open(base / shard, "pt") as one, safe_open(out / shard, "pt") as other:
            assert set(one.keys()) == set(other.keys())
            assert other.metadata() == {"format": "pt"}
    index, theirs = (json.loads((f / f"{WEIGHTS}.index.json").read_text()) for f in (out, base))
    assert index == theirs
    for name in (*beside, "config.json", "generation_config.json"):
        assert (out / name).read_bytes() == (base / name).read_bytes()
    loaded, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info.values())
    want = adapted.merge_and_unload().state_dict()
    for name, got in loaded.state_dict().items():
        torch.testing.assert_close(got, want[name], rtol=0, atol=1e-6, msg=name)


def test_a_float32_merge_of_a_bf16_base_is_loaded_as_float32(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_model(llama().bfloat16(), tmp_path / "base")  # type: ignore[arg-type]
    adapted = get_peft_model(llama(), _config(target_modules=QVD))
    move(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out", dtype="float32")
    stored = {name: tensor.dtype for name, tensor in _load(tmp_path / "out").items()}
    wide = {name for name, dtype in stored.items() if dtype == torch.float32}
    assert wide == set(QVD_NAMES)
    assert {stored[name] for name in stored.keys() - wide} == {torch.bfloat16}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def test_the_merged_checkpoint_has_the_adapters_own_table(tmp_path: Path) -> None:
    write_case(tmp_path, *CASES["dora"])
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out", dtype="float32")
    found = wdecomp.compare(tmp_path / "base", tmp_path / "adapter", tmp_path / "out").modules
    figures = ["delta_magnitude", "delta_direction", "relative_delta_magnitude"]
    mine, merged = (
        found[found["run"] == run].set_index(["parameter", "axis"])[figures]
        for run in ("adapter", "out")
    )
    assert list(mine.index) == list(merged.index)
    # W' is rounded to float32 once more: by 6e-8 of a weight, where ΔM is a tenth of it.
    assert_allclose(merged, mine, rtol=1e-6, atol=1e-8)


def test_a_classifier_that_only_the_adapter_has_is_added(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = bert()
    model.bert.save_pretrained(tmp_path / "base")  # type: ignore[union-attr, operator]
    config = _config(target_modules=["query"], modules_to_save=["classifier"])
    adapted = get_peft_model(model, config)
    move(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    found = merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    want = adapted.merge_and_unload().state_dict()
    got = _load(tmp_path / "out")
    assert {name for name in got if "classifier" in name} == {
        "classifier.weight",
        "classifier.bias",
    }
    for name, tensor in got.items():
        theirs = want[name] if name in want else want[f"bert.{name}"]
        torch.testing.assert_close(tensor, theirs, rtol=0, atol=1e-6, msg=name)
    assert "classifier.weight is not in the base: added" in found.notes
    assert BertModel.from_pretrained(tmp_path / "out") is not None


def _nf4(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Linear weights in NF4 as transformers stores them, and what they stand for."""
    stored, dense = dict(tensors), dict(tensors)
    for name, weight in tensors.items():
        if "proj" in name:
            packed, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4")
            stored |= {f"{name}.{k}": v for k, v in state.as_dict(packed=True).items()}
            stored[name] = packed
            dense[name] = bnb.dequantize_4bit(packed, state)
    return stored, dense


def test_a_quantised_base_is_decoded_and_says_so(tmp_path: Path) -> None:
    stored, dense = _nf4(tiny_llama(1))
    config = {"model_type": "llama", "torch_dtype": "bfloat16"}
    quantized = {"quantization_config": {"quant_method": "bitsandbytes"}}
    write_full(tmp_path / "base", stored, 2, config | quantized)
    factors = low_rank(tiny_llama(1))
    write_adapter(tmp_path / "adapter", factors)
    with pytest.raises(wdecomp.WdecompError, match=r"is stored as NF4.*--dtype"):
        merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out", dtype="float32")
    index = json.loads((tmp_path / f"out/{WEIGHTS}.index.json").read_text())
    assert index["weight_map"].keys() == dense.keys()
    got = {n: t for f in (tmp_path / "out").glob("*.safetensors") for n, t in load_file(f).items()}
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in got.values())
    for name, weight in dense.items():
        a, b = factors.get(name.removesuffix(".weight"), (torch.zeros(1), torch.zeros(1)))
        torch.testing.assert_close(got[name], weight + 2 * (b @ a), rtol=0, atol=1e-6, msg=name)
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert written == {"model_type": "llama", "torch_dtype": "float32"}


def test_what_the_adapter_leaves_alone_may_stay_quantised(tmp_path: Path) -> None:
    stored, _ = _nf4(tiny_llama(1))
    write_full(tmp_path / "base", stored)
    key = "model.embed_tokens"
    tensors = {
        f"base_model.model.{key}.lora_embedding_A": torch.ones(2, 50),
        f"base_model.model.{key}.lora_embedding_B": torch.ones(24, 2),
    }
    write_adapter(tmp_path / "adapter", {key: (torch.ones(2, 50), torch.ones(24, 2))})
    save_file(tensors, tmp_path / "adapter/adapter_model.safetensors")
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    got = _load(tmp_path / "out")
    assert got.keys() == stored.keys()
    for name, tensor in stored.items():
        want = tensor + 4 if name.startswith(key) else tensor
        torch.testing.assert_close(got[name], want, rtol=0, atol=1e-6)


def test_packed_rows_that_are_inputs_come_out_as_outputs(tmp_path: Path) -> None:
    """GPTQ packs (input, output); the model that is written has nn.Linear's (output, input)."""
    name, inputs, outputs = "model.layers.0.self_attn.q_proj", 64, 40
    codes = torch.randint(0, 16, (inputs, outputs), generator=torch.Generator().manual_seed(0))
    shifts = 4 * torch.arange(8)
    packed = (codes.reshape(-1, 8, outputs).long() << shifts[:, None]).sum(1)
    words = (packed - ((packed >> 31) << 32)).to(torch.int32)
    zeros = torch.full((1, outputs // 8), 0x77777777, dtype=torch.int32)
    scales = 0.01 * (1 + torch.arange(outputs))[None].float()
    stored = {
        f"{name}.qweight": words,
        f"{name}.qzeros": zeros,
        f"{name}.scales": scales,
        f"{name}.g_idx": torch.zeros(inputs, dtype=torch.int32),
    }
    settings = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    write_full(tmp_path / "base", stored, config=settings)
    a, b = torch.randn(2, inputs), torch.randn(outputs, 2)
    write_adapter(tmp_path / "adapter", {name: (a, b)})
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out", dtype="float32")
    want = ((codes - 8) * scales).T + 2 * b @ a
    got = _load(tmp_path / "out")[f"{name}.weight"]
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6 * float(want.abs().max()))


OUTPUTS, INPUTS, RANK = 4096, 11008, 64
MOST_MB = 30  # its factors have 4, the matrix 90 in BF16 and 180 in float32
# What is measured begins after a small merge: compiled code and libraries are no weights.
MEASURE = """
import json, sys, threading, psutil
import wdecomp.merging
process, peak, done = psutil.Process(), [0], threading.Event()
def sample():
    while not done.wait(0.005):
        peak[0] = max(peak[0], process.memory_full_info().pss)
wdecomp.merging.merge(*sys.argv[4:])
start = process.memory_full_info().pss
thread = threading.Thread(target=sample)
thread.start()
wdecomp.merging.merge(*sys.argv[1:4])
done.set()
thread.join()
print(json.dumps({"mb": (peak[0] - start) / 1e6}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="PSS is Linux's")
def test_a_wide_matrix_is_merged_in_less_memory_than_it_has(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.down_proj"
    random = torch.Generator().manual_seed(0)
    for side, outputs, inputs in (("wide", OUTPUTS, INPUTS), ("small", 40, 24)):
        weight = torch.randn(8, inputs, generator=random).mul_(0.02).repeat(outputs // 8, 1)
        a = torch.randn(RANK, inputs, generator=random) * 0.01
        b = torch.randn(outputs, RANK, generator=random) * 0.01
        write_full(tmp_path / side / "base", {f"{name}.weight": weight.bfloat16()})
        write_adapter(tmp_path / side / "adapter", {name: (a, b)}, {name: weight.norm(dim=1)})
    paths = [tmp_path / side / n for side in ("wide", "small") for n in ("base", "adapter", "out")]
    command = [sys.executable, "-c", MEASURE, *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)["mb"]
    assert found < MOST_MB, f"{found:.0f} MB"
    assert (tmp_path / "wide/out" / WEIGHTS).stat().st_size > 2 * OUTPUTS * INPUTS


def _base(folder: Path) -> Path:
    return write_full(folder / "base", tiny_llama(1), config={"model_type": "llama"})


def _lora(folder: Path) -> Path:
    return write_adapter(folder / "lora", low_rank(tiny_llama(1)))


def _missing_adapter(folder: Path) -> list[Path]:
    return [_base(folder), folder / "nowhere", folder / "out"]


def _of_another_base(folder: Path) -> list[Path]:
    module = "model.layers.0.self_attn.q_proj"
    bad = write_adapter(folder / "lora", {module: (torch.ones(2, 24), torch.ones(40, 2))})
    return [_base(folder), bad, folder / "out"]


def _full_checkpoint(folder: Path) -> list[Path]:
    return [_base(folder), write_full(folder / "ft", tiny_llama(1)), folder / "out"]


def _not_empty(folder: Path) -> list[Path]:
    (folder / "out").mkdir()
    (folder / "out/thesis.txt").write_text("mine")
    return [_base(folder), _lora(folder), folder / "out"]


def _a_file(folder: Path) -> list[Path]:
    (folder / "out").write_text("mine")
    return [_base(folder), _lora(folder), folder / "out"]


def _below_a_file(folder: Path) -> list[Path]:
    (folder / "file").write_text("mine")
    return [_base(folder), _lora(folder), folder / "file/out"]


def _nan_in_the_adapter(folder: Path) -> list[Path]:
    factors = low_rank(tiny_llama(1))
    next(iter(factors.values()))[0][0, 0] = torch.nan
    return [_base(folder), write_adapter(folder / "lora", factors), folder / "new/out"]


def _a_resized_embedding(folder: Path) -> list[Path]:
    lora = _lora(folder)
    tensors = load_file(lora / "adapter_model.safetensors")
    tensors["base_model.model.model.embed_tokens.weight"] = torch.ones(52, 24)
    save_file(tensors, lora / "adapter_model.safetensors")
    return [_base(folder), lora, folder / "out"]


def _a_bias_without_a_place(folder: Path) -> list[Path]:
    lora = write_adapter(folder / "lora", low_rank(tiny_llama(1)), lora_bias=True)
    tensors = load_file(lora / "adapter_model.safetensors")
    for name in [key for key in tensors if "lora_B" in key]:
        tensors[name.replace("weight", "bias")] = torch.ones(tensors[name].shape[0])
    save_file(tensors, lora / "adapter_model.safetensors")
    return [_base(folder), lora, folder / "out"]


BAD: dict[Callable[[Path], list[Path]], str] = {
    _missing_adapter: "nowhere: there is no such file or folder",
    _of_another_base: "It was trained on another base",
    _full_checkpoint: "is a full checkpoint, expected an adapter",
    _not_empty: "out: holds thesis.txt, expected an empty folder or none",
    _a_file: "out: is a file, expected a folder",
    _below_a_file: "file: is a file, expected a folder",
    _nan_in_the_adapter: "are infinite or NaN once",
    _a_resized_embedding: "Resize the base first",
    _a_bias_without_a_place: "the base has no such bias",
}


def _run(paths: list[Path], *options: str) -> int:
    base, adapter, out = map(str, paths)
    with pytest.raises(SystemExit) as stopped:
        main(["merge", base, adapter, "-o", out, "-q", *options])
    return int(stopped.value.code or 0)


@pytest.mark.parametrize("build", BAD, ids=lambda build: build.__name__.strip("_"))
def test_bad_input_is_one_line_and_leaves_nothing(
    build: Callable[[Path], list[Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = build(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert _run(paths) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("wdecomp: ")
    assert err.count("\n") == 1
    assert BAD[build] in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("call", range(6))
@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (OSError(28, "No space left on device"), 1, "cannot be written (No space left on device)"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=["disk full", "interrupted"],
)
def test_a_merge_that_stops_leaves_nothing(
    error: BaseException,
    code: int,
    said: str,
    call: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = [_base(tmp_path), _lora(tmp_path), tmp_path / "a/b/out"]
    before, done, write = sorted(tmp_path.rglob("*")), [0], os.pwrite

    def fails_at_last(*arguments: Any) -> int:
        done[0] += 1
        if done[0] > call:
            raise error
        return write(*arguments)

    monkeypatch.setattr("os.pwrite", fails_at_last)
    assert _run(paths) == code
    out, err = capsys.readouterr()
    assert (out, err.strip().count("\n")) == ("", 0)  # click ends the line of a ^C
    assert said in err
    assert sorted(tmp_path.rglob("*")) == before


def test_writes_that_the_disk_takes_in_pieces_are_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, lora, write = _base(tmp_path), _lora(tmp_path), os.pwrite
    merge(base, lora, tmp_path / "whole")
    monkeypatch.setattr("os.pwrite", lambda to, data, at: write(to, data[:1000], at))
    merge(base, lora, tmp_path / "pieces")
    whole, pieces = ((tmp_path / side / WEIGHTS).read_bytes() for side in ("whole", "pieces"))
    assert whole == pieces


def test_the_command_says_where_the_result_is_and_what_rounding_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = {name: tensor.bfloat16() for name, tensor in tiny_llama(1).items()}
    base = write_full(tmp_path / "base", tensors)
    factors = {name: (a, b * 1e-3) for name, (a, b) in low_rank(tiny_llama(1)).items()}
    lora = write_adapter(tmp_path / "lora", factors)
    (tmp_path / "out").mkdir()
    main(["merge", str(base), str(lora), "-o", str(tmp_path / "out")])
    out, err = capsys.readouterr()
    assert out.startswith(f"Wrote {tmp_path}/out/: ")
    assert "2 tensors changed by lora" in out
    got = _load(tmp_path / "out")
    names = [f"{name}.weight" for name in factors]
    same = sum(int((got[name] == tensors[name]).sum()) for name in names)
    total = sum(tensors[name].numel() for name in names)
    assert f"leaves {same:,} of the {total:,} weights" in err
    assert same > total / 2
