"""Folders as transformers, diffusers, PEFT and mlx-lm leave them."""

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import low_rank, moved, tiny_llama, write_adapter, write_full
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
)

import wdecomp
from wdecomp.checkpoint import Checkpoint, open_checkpoint
from wdecomp.cli import main
from wdecomp.comparison import plan_comparison
from wdecomp.errors import CheckpointError, PairingError


def _llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, vocab_size=40,
        )
    )  # fmt: skip


def _shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in checkpoint.tensors.items()}


@pytest.mark.parametrize("size", ["1GB", "8KB"])
@pytest.mark.parametrize("variant", [None, "fp16", "my-variant"])
def test_a_variant_of_transformers_is_read_like_the_plain_files(
    variant: str | None, size: str, tmp_path: Path
) -> None:
    model = _llama()
    model.save_pretrained(tmp_path / "plain")
    model.save_pretrained(tmp_path / "variant", variant=variant, max_shard_size=size)
    plain, other = (open_checkpoint(tmp_path / name) for name in ("plain", "variant"))
    assert _shapes(plain) == _shapes(other)
    assert len(plain.tensors) > 10
    assert (len(other.shards) > 1) == (size == "8KB")
    assert plain.metadata == {"format": "pt"} == other.metadata
    assert other.model_type == "llama" == other.model_type_of("model.norm.weight")
    assert not other.is_adapter


def test_the_plain_file_goes_before_variants_and_one_variant_is_taken(tmp_path: Path) -> None:
    for variant in ("fp16", "bf16", None):
        write_full(tmp_path, {f"{variant}.weight": torch.ones(2, 3)})
        if variant:
            name = f"model.{variant}.safetensors"
            (tmp_path / "model.safetensors").rename(tmp_path / name)
    assert list(open_checkpoint(tmp_path).tensors) == ["None.weight"]
    (tmp_path / "model.safetensors").unlink()
    several = r"holds model\.bf16\.safetensors and model\.fp16\.safetensors\. Name the file"
    with pytest.raises(CheckpointError, match=several):
        open_checkpoint(tmp_path)
    assert list(open_checkpoint(tmp_path / "model.bf16.safetensors").tensors) == ["bf16.weight"]
    (tmp_path / "model.bf16.safetensors").unlink()
    assert list(open_checkpoint(tmp_path).tensors) == ["fp16.weight"]


def _pipeline(folder: Path) -> StableDiffusionPipeline:
    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    text = CLIPTextConfig(
        hidden_size=8, intermediate_size=12, num_attention_heads=2, num_hidden_layers=1,
        vocab_size=3, projection_dim=8, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, norm_num_groups=4,
        block_out_channels=(8, 16), cross_attention_dim=8, attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4),
        text_encoder=CLIPTextModel(text),
        tokenizer=CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")),
        unet=unet,
        scheduler=DDPMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> StableDiffusionPipeline:
    return _pipeline(tmp_path_factory.mktemp("pipeline") / "tokenizer")


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("options", [{}, {"variant": "fp16"}, {"max_shard_size": "20KB"}])
def test_a_pipeline_of_diffusers_is_one_checkpoint(
    options: dict[str, Any], listed: bool, pipeline: StableDiffusionPipeline, tmp_path: Path
) -> None:
    pipeline.save_pretrained(tmp_path, **options)
    if not listed:
        (tmp_path / "model_index.json").unlink()
    opened = open_checkpoint(tmp_path)
    parts = {"unet": pipeline.unet, "vae": pipeline.vae, "text_encoder": pipeline.text_encoder}
    want = {
        f"{part}.{name}": tuple(tensor.shape)
        for part, model in parts.items()
        for name, tensor in model.state_dict().items()
    }
    found = _shapes(opened)
    assert {n: s for n, s in found.items() if not n.startswith("text_")} == {
        n: s for n, s in want.items() if not n.startswith("text_")
    }
    assert sum(name.startswith("text_encoder.") for name in found) > 10
    assert all(name == tensor.name for name, tensor in opened.tensors.items())
    assert set(opened.components) == set(parts)
    assert opened.config_of("unet.conv_in.weight")["cross_attention_dim"] == 8
    assert opened.model_type_of("text_encoder.x.weight") == "clip_text_model"
    assert opened.model_type_of("unet.conv_in.weight") is None
    assert opened.config_of("tokenizer.x") == {} == opened.config_of("unet")
    assert opened.left_out == ()
    assert not opened.is_adapter


def test_two_pipelines_are_compared_by_component(
    pipeline: StableDiffusionPipeline, tmp_path: Path
) -> None:
    tuned = copy.deepcopy(pipeline)
    with torch.no_grad():
        for part in (tuned.unet, tuned.vae, tuned.text_encoder):
            for weight in part.parameters():
                weight.add_(0.01 * torch.randn_like(weight))
    pipeline.save_pretrained(tmp_path / "base")
    tuned.save_pretrained(tmp_path / "ft", variant="fp16")
    modules = wdecomp.compare(tmp_path / "base", tmp_path / "ft", axis="output").modules
    parts = {"unet": (pipeline.unet, tuned.unet), "vae": (pipeline.vae, tuned.vae)}
    for part, (old, new) in parts.items():
        name = "conv_in.weight" if part == "unet" else "encoder.conv_in.weight"
        left, right = (side.state_dict()[name].detach().flatten(1) for side in (old, new))
        want = wdecomp.column_delta(left, right, axis="output").delta_direction.mean()
        found = modules.set_index("parameter")["delta_direction"]
        assert found[f"{part}.{name}"] == pytest.approx(float(want), rel=1e-6)
    assert modules["parameter"].str.startswith("text_encoder.").any()


def test_a_component_that_is_pickled_or_absent_is_left_out_with_the_reason(
    pipeline: StableDiffusionPipeline, tmp_path: Path
) -> None:
    pipeline.save_pretrained(tmp_path)
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    pipeline.vae.save_pretrained(tmp_path / "vae", safe_serialization=False)
    (tmp_path / "text_encoder" / "model.safetensors").unlink()
    reasons = dict(open_checkpoint(tmp_path).left_out)
    assert set(reasons) == {"vae", "text_encoder"}
    assert "pickled (diffusion_pytorch_model.bin), which --allow-pickle opens" in reasons["vae"]
    assert "holds no weights" in reasons["text_encoder"]
    opened = open_checkpoint(tmp_path, allow_pickle=True)
    assert set(opened.components) == {"unet", "vae"}
    assert {t.name for n, t in opened.tensors.items() if n.startswith("vae.")} == {
        f"vae.{name}" for name in pipeline.vae.state_dict()
    }
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"vae: .*diffusion_pytorch_model\.bin may run code"):
        open_checkpoint(tmp_path)
    (tmp_path / "vae" / "diffusion_pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match="no weights found in the folders that model_index"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["../base", "/etc", "a.b", ""])
def test_a_component_is_a_folder_beside_its_index(name: str, tmp_path: Path) -> None:
    write_full(tmp_path / "base", tiny_llama(1))
    write_full(tmp_path / "p" / "unet", tiny_llama(1))
    index = {"unet": ["diffusers", "X"], name: ["diffusers", "X"]}
    (tmp_path / "p" / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="expected the name of a folder beside it"):
        open_checkpoint(tmp_path / "p")


def test_a_pipeline_beside_other_weights_is_named_or_asked_about(tmp_path: Path) -> None:
    write_full(tmp_path / "vae", tiny_llama(1))
    write_full(tmp_path, tiny_llama(2))
    opened = open_checkpoint(tmp_path)
    assert _shapes(opened) == {n: tuple(t.shape) for n, t in tiny_llama(2).items()}
    assert [name for name, _ in opened.left_out] == ["vae/"]
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_lora_weights.safetensors")
    with pytest.raises(CheckpointError, match=r"holds an adapter .* and a pipeline"):
        open_checkpoint(tmp_path)


ADAPTER_KEYS = [
    "unet.a.lora_A.weight", "unet.a.lora.down.weight", "a.processor.to_q_lora.down.weight",
    "lora_unet_a.lora_down.weight", "a.lora_linear_layer.up.weight", "layers.0.q_proj.lora_a",
    "layers.0.attn.q_proj.lora_b.weight", "lycoris_a.hada_w1_a", "lycoris_a.lokr_w1",
    "lycoris_a.lokr_w1_a", "lycoris_a.oft_blocks", "lora_te_a.diff", "lora_unet_a.w_norm",
    "lycoris_a.on_input", "lora_unet_a.dora_scale", "a.ia3_l", "a.vera_lambda_b", "a.oft_R",
    "a.boft_R", "a.hra_u", "a.delora_A", "a.ln_tuning_layers.weight", "a.lora_A",
    "e.token_adapter.trainable_tokens_delta", "a.weight_m_wdecomp.weight", "a.lora_embedding_A",
    "layers.0.q.magnitude_layer.magnitude", "a.lora_A.default.weight",
]  # fmt: skip
FULL_KEYS = [
    "model.layers.0.self_attn.q_proj.weight", "text.diff.weight", "block.w_norm.weight",
    "blocks.0.attn.w_lora.lora.0.weight", "linear_q_lora_A_list.0.weight", "a.magnitude",
    "on_input.weight", "q_a_proj.weight",
]  # fmt: skip


@pytest.mark.parametrize("key", [*ADAPTER_KEYS, *FULL_KEYS])
def test_an_adapter_is_known_by_its_keys(key: str, tmp_path: Path) -> None:
    file = tmp_path / "some.safetensors"
    save_file({key: torch.ones(2, 3)}, file, {"ss_network_dim": "2"})
    opened = open_checkpoint(file)
    assert opened.is_adapter == (key in ADAPTER_KEYS)
    assert opened.adapter_config is None
    assert opened.metadata == {"ss_network_dim": "2"}


@pytest.mark.parametrize(
    "name",
    ["adapter_model.safetensors", "pytorch_lora_weights.safetensors", "adapters.safetensors"],
)
def test_an_adapter_is_found_in_its_folder_by_its_name(name: str, tmp_path: Path) -> None:
    save_file({"a.lora_A.weight": torch.ones(2, 3)}, tmp_path / name)
    if name == "adapter_model.safetensors":
        with pytest.raises(CheckpointError, match="there is no adapter_config"):
            open_checkpoint(tmp_path)
    else:
        assert open_checkpoint(tmp_path).adapter_config is None
    (tmp_path / "adapter_config.json").write_text('{"fine_tune_type": "dora"}')
    opened = open_checkpoint(tmp_path)
    assert opened.is_adapter
    assert opened.adapter_config == {"fine_tune_type": "dora"}


def test_a_full_fine_tune_of_mlx_is_no_adapter_although_its_file_is_named_so(
    tmp_path: Path,
) -> None:
    save_file(tiny_llama(1), tmp_path / "adapters.safetensors")
    assert not open_checkpoint(tmp_path).is_adapter


def test_two_adapters_in_one_folder_are_asked_about(tmp_path: Path) -> None:
    write_adapter(tmp_path, low_rank(tiny_llama(1)))
    save_file({"a.lora_A.weight": torch.ones(2, 3)}, tmp_path / "adapters.safetensors")
    with pytest.raises(CheckpointError, match="Name the file that is meant"):
        open_checkpoint(tmp_path)


def test_the_tensors_of_a_whole_peft_model_are_an_adapter(tmp_path: Path) -> None:
    model = get_peft_model(_llama(), LoraConfig(r=2, target_modules=["q_proj"]))
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    opened = open_checkpoint(tmp_path)
    assert opened.is_adapter
    assert opened.adapter_config is None
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')
    assert open_checkpoint(tmp_path).adapter_config == {"peft_type": "LORA", "r": 2}


def _named_adapters(folder: Path, *names: str) -> Path:
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model = get_peft_model(_llama(), config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    model.save_pretrained(folder)
    return folder


def _names(base: Path, *tuned: str | Path) -> list[tuple[str, int | None]]:
    return [(run.name, run.step) for run in plan_comparison(base, *tuned).runs]


def test_every_named_adapter_of_peft_is_a_run(tmp_path: Path) -> None:
    base, folder = tmp_path / "base", tmp_path / "both"
    _llama().save_pretrained(base)
    _named_adapters(folder, "default", "second", "v_proj")
    assert _names(base, folder) == [("both", None), ("second", None), ("v_proj", None)]
    assert _names(base, f"x={folder}") == [("x", None), ("x.second", None), ("x.v_proj", None)]
    assert _names(base, folder / "second") == [("second", None)]
    runs = wdecomp.compare(base, folder).modules["run"].unique().tolist()
    assert runs == ["both", "second", "v_proj"]


def test_adapters_that_all_have_names_need_none_at_the_root(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base"
    _llama().save_pretrained(base)
    folder = _named_adapters(tmp_path / "lora", "0")
    assert _names(base, folder) == [("0", None)]
    assert _names(base, f"mine={folder}") == [("mine", None)]
    main(["inspect", str(folder)])
    assert f"{folder / '0'}: adapter" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["inspect", str(folder), str(base)])
    assert "no base is given" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match=r"adapters in folders of their own \(0\)"):
        open_checkpoint(folder)


def test_named_adapters_have_the_steps_of_their_run(tmp_path: Path) -> None:
    base, run = tmp_path / "base", tmp_path / "run"
    _llama().save_pretrained(base)
    for step in (20, 10):
        _named_adapters(run / f"checkpoint-{step}", "default", "other")
    _named_adapters(run, "default", "other")
    plan = plan_comparison(base, run)
    assert [(r.name, r.step) for r in plan.runs] == [
        ("run", 10), ("run", 20), ("other", 10), ("other", 20),
    ]  # fmt: skip
    for each in plan.runs:
        gone = [left.tensor for left in each.pairing.left_out if "of no known step" in left.reason]
        assert gone == ["adapter_model.safetensors", "other/"]


def test_steps_that_are_named_one_by_one_are_one_run(tmp_path: Path) -> None:
    base = write_full(tmp_path / "base", tiny_llama(1))
    for step in (10, 20, 30):
        write_full(tmp_path / "run" / f"checkpoint-{step}", moved(tiny_llama(1)))
    steps = [tmp_path / "run" / f"checkpoint-{step}" for step in (20, 10)]
    assert _names(base, *steps) == [("run", 10), ("run", 20)]
    with pytest.raises(PairingError, match="would both be run 'run'"):
        _names(base, steps[0], steps[0])
    other = write_full(tmp_path / "b" / "run" / "checkpoint-30", moved(tiny_llama(1)))
    with pytest.raises(PairingError, match="would both be run 'run'"):
        _names(base, steps[0], other)


def test_a_last_checkpoint_half_written_says_what_to_do(tmp_path: Path) -> None:
    base = write_full(tmp_path / "base", tiny_llama(1))
    for step in (10, 20, 30):
        write_full(tmp_path / "run" / f"checkpoint-{step}", moved(tiny_llama(1)))
    last = tmp_path / "run" / "checkpoint-30" / "model.safetensors"
    advice = r"checkpoint-30.*If checkpoint-30 is only half written, remove it or name the steps"
    last.write_bytes(last.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match=advice):
        plan_comparison(base, tmp_path / "run")
    last.unlink()
    with pytest.raises(CheckpointError, match=advice):
        plan_comparison(base, tmp_path / "run")
    assert _names(base, *(tmp_path / "run" / f"checkpoint-{s}" for s in (10, 20))) == [
        ("run", 10), ("run", 20),
    ]  # fmt: skip


def test_the_layout_of_the_hubs_cache_is_followed_through_its_links(tmp_path: Path) -> None:
    plain = write_full(tmp_path / "plain", tiny_llama(1), shards=3, config={"model_type": "llama"})
    blobs, snapshot = tmp_path / "models--a" / "blobs", tmp_path / "models--a" / "snapshots" / "f0"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for i, file in enumerate(sorted(plain.iterdir())):
        file.rename(blobs / f"{i:064x}")
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", f"{i:064x}"))
    opened = open_checkpoint(snapshot)
    assert len(opened.tensors) == len(tiny_llama(1))
    assert opened.model_type == "llama"
    blobs.joinpath(f"{2:064x}").unlink()
    with pytest.raises(CheckpointError, match=r"which is not there\. The download is incomplete"):
        open_checkpoint(snapshot)


def _fifo(file: Path) -> None:
    os.mkfifo(file)


def _dangling(file: Path) -> None:
    file.symlink_to("nowhere")


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (_fifo, "model.safetensors is a pipe or device, no file"),
        (Path.mkdir, "model.safetensors is a folder, expected a file"),
        (_dangling, "model.safetensors is a link to nothing"),
    ],
)
def test_what_is_no_file_under_a_models_name_is_said(make: Any, what: str, tmp_path: Path) -> None:
    make(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"no weights found. {what}"):
        open_checkpoint(tmp_path)


def test_a_pipe_is_no_checkpoint(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="pipe: is a pipe or device, no file"):
        open_checkpoint(tmp_path / "pipe")


def test_shards_without_their_index_are_said_to_be_that(tmp_path: Path) -> None:
    folder = write_full(tmp_path, tiny_llama(1), shards=2)
    (folder / "model.safetensors.index.json").unlink()
    for suffix in ("safetensors", "bin"):
        for file in folder.iterdir():
            file.rename(file.with_suffix(f".{suffix}"))
        with pytest.raises(CheckpointError, match="are shards, and there is no index of them"):
            open_checkpoint(folder)


@pytest.mark.parametrize("command", ["compare", "inspect"])
def test_an_empty_path_is_not_the_folder_one_is_in(
    command: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = write_full(tmp_path, tiny_llama(1))
    monkeypatch.chdir(tmp_path)
    for paths in (["", str(base)], [str(base), ""], ["", ""]):
        with pytest.raises(SystemExit) as stopped:
            main([command, *paths])
        assert stopped.value.code == 1
        assert "is an empty path" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="is an empty path"):
        wdecomp.compare("", base)
    with pytest.raises(CheckpointError, match="is an empty path"):
        wdecomp.compare(base, "")


def test_an_adapter_whose_base_is_an_empty_name_asks_for_the_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_full(tmp_path, tiny_llama(1))
    lora = write_adapter(tmp_path / "l", low_rank(tiny_llama(1)), base_model_name_or_path="")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no base is given"):
        plan_comparison(None, lora)
