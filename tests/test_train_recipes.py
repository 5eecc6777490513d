"""The paper's recipes: their counts against the paper and PEFT, their estimate against autograd."""

import functools
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, VeraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from wdecomp.errors import TrainingError
from wdecomp.train.adapting import adapt
from wdecomp.train.dry_run import DryRun, as_text, dry_run, dry_run_recipe, model_on_meta
from wdecomp.train.layers import Adapter
from wdecomp.train.memory import NF4
from wdecomp.train.recipe import Recipe, read_recipe, recipe_names

# What no source gives, and no default can: see the recipes.
UNSTATED = {
    "alpaca-llama-7b": {"alpha": 128},
    "orca-math-llama2-7b": {"targets": ["q_proj"], "rank": 8, "alpha": 16},
    "orca-math-llama3-8b": {"targets": ["q_proj"], "rank": 8, "alpha": 16},
    "sdxl-dreambooth": {"rank": 8, "alpha": 16},
}
METHODS = {
    "alpaca-llama-7b": ["lora", "dora", "vera", "dvora"],
    "commonsense-llama-13b": ["lora", "dora", "dora-half", "dora-granularity"],
    "commonsense-llama-7b": ["lora", "dora", "dora-half", "dora-granularity"],
    "commonsense-llama2-7b": ["lora", "dora", "dora-half"],
    "commonsense-llama3-8b": ["lora", "dora", "dora-half"],
    "llava-1.5-7b": ["lora", "dora"],
    "orca-math-llama2-7b": ["full", "qlora", "qdora"],
    "orca-math-llama3-8b": ["full", "qlora", "qdora"],
    "sdxl-dreambooth": ["lora", "dora"],
    "vl-bart": ["full-image", "lora-image", "dora-image", "dora-video"],
}
# Two of the models' 32 or 40 layers: k and v of LLaMA3 are not square, nor are up and down.
SMALL = {
    **{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 96},
    **{"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2},
}


@functools.cache
def counted(name: str, method: str) -> DryRun:
    return dry_run_recipe(read_recipe(name, method))


@pytest.mark.parametrize(
    ("name", "method", "percent"),
    [
        ("commonsense-llama-7b", "lora", "0.83"),
        ("commonsense-llama-7b", "dora", "0.84"),
        ("commonsense-llama-7b", "dora-half", "0.43"),
        ("commonsense-llama-7b", "dora-granularity", "0.39"),
        ("commonsense-llama-13b", "lora", "0.67"),
        ("commonsense-llama-13b", "dora", "0.68"),
        ("commonsense-llama-13b", "dora-half", "0.35"),
        ("commonsense-llama3-8b", "lora", "0.70"),
        ("commonsense-llama3-8b", "dora", "0.71"),
    ],
)
def test_percentages_are_the_papers_to_the_digit(name: str, method: str, percent: str) -> None:
    assert f"{counted(name, method).percentage:.2f}" == percent
    assert read_recipe(name, method).paper_percent == float(percent)


def test_half_rank_of_llama3_is_not_the_papers_which_leaves_magnitudes_out() -> None:
    found = counted("commonsense-llama3-8b", "dora-half")
    layers, magnitudes = 32, 4096 + 1024 + 1024 + 14336 + 4096
    factors = 16 * layers * (8192 + 2 * 5120 + 2 * 18432)
    assert found.trainable == factors + layers * magnitudes
    assert f"{found.percentage:.2f}" == "0.36"
    assert read_recipe("commonsense-llama3-8b", "dora-half").paper_percent == 0.35
    base = found.total - found.trainable
    assert base == 8_030_261_248  # the published model
    assert f"{100 * factors / (base + factors):.2f}" == "0.35"


def test_granularity_of_13b_is_not_the_papers_which_one_magnitude_less_would_give() -> None:
    found = counted("commonsense-llama-13b", "dora-granularity")
    factors, magnitudes = 40 * 3 * 32 * 10240, 40 * (4 * 5120 + 2 * 13824 + 5120)
    assert found.trainable == factors + magnitudes
    assert f"{found.percentage:.2f}" == "0.32"
    assert read_recipe("commonsense-llama-13b", "dora-granularity").paper_percent == 0.31
    base = found.total - found.trainable
    assert base == 13_015_864_320  # the published model
    fewer = found.trainable - 40 * 13824
    assert f"{100 * fewer / (base + fewer):.2f}" == "0.31"
    assert math.floor(100 * found.percentage) == 31  # and so would digits that are cut off


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("name", ["commonsense-llama3-8b", "llava-1.5-7b"])
def test_counts_are_pefts(name: str, dora: bool) -> None:
    config = read_recipe(name, "lora").config | {"num_hidden_layers": 2}
    recipe = read_recipe(name, "dora" if dora else "lora", {"config": config})
    adapter = next(iter(recipe.adapters.values()))
    peft = LoraConfig(r=adapter.rank, target_modules=list(recipe.adapters), use_dora=dora)
    with torch.device("meta"):
        theirs = get_peft_model(model_on_meta(config), peft).get_nb_trainable_parameters()
    found = dry_run_recipe(recipe)
    assert (found.trainable, found.total) == theirs


def test_vera_counts_are_pefts() -> None:
    targets = ["k_proj", "up_proj"]
    model = get_peft_model(model_on_meta(SMALL), VeraConfig(r=7, target_modules=targets))
    found = dry_run(model_on_meta(SMALL), dict.fromkeys(targets, Adapter("vera", rank=7)))
    assert (found.trainable, found.total) == model.get_nb_trainable_parameters()


def test_targets_are_counted_by_name_and_shape() -> None:
    found = {t.name: t for t in counted("commonsense-llama3-8b", "dora").targets}
    assert [(t.outputs, t.inputs, t.layers) for t in found.values()] == [
        *((4096, 4096, 32), (1024, 4096, 32), (1024, 4096, 32)),
        *((14336, 4096, 32), (4096, 14336, 32)),
    ]
    assert found["k_proj"].trainable == 32 * (32 * (1024 + 4096) + 1024)
    text = as_text(counted("commonsense-llama3-8b", "dora"), 0.71)
    assert "57,409,536 of 8,087,670,784: 0.7098 % (the paper prints 0.71 %)" in text
    assert re.search(r"k_proj +dora +32 +1024 +4096 +32 +5,275,648\n", text)


def test_vl_bart_has_its_adapters_in_both_stacks_and_in_cross_attention() -> None:
    found = counted("vl-bart", "dora-image")
    assert {t.name: t.layers for t in found.targets} == {"q_proj": 18, "v_proj": 18}
    assert found.trainable == 36 * (128 * (768 + 768) + 768)
    assert found.total - found.trainable == 139_420_416  # the published model
    assert counted("vl-bart", "full-image").percentage == 100


def test_sdxls_unet_has_the_targets() -> None:
    from diffusers import UNet2DConditionModel  # seconds, which no other test needs

    with torch.device("meta"):  # the published config.json, as far as shapes depend on it
        unet = UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
        assert sum(p.numel() for p in unet.parameters()) == 2_567_463_684  # the published model
        recipe = read_recipe("sdxl-dreambooth", "lora", UNSTATED["sdxl-dreambooth"])
        peft = get_peft_model(unet, LoraConfig(r=8, target_modules=list(recipe.adapters)))
    adapted = [name for name, _ in peft.named_modules() if name.endswith(".base_layer")]
    assert len(adapted) == 70 * 2 * 4  # transformer blocks, their attentions, q k v out


def test_every_recipe_is_read_and_says_what_it_trains() -> None:
    assert recipe_names() == list(METHODS)
    for name, methods in METHODS.items():
        for method in methods:
            recipe = read_recipe(name, method, UNSTATED.get(name))
            assert (recipe.name, recipe.variant) == (name, method)
            assert recipe.model.count("/") == 1
            assert bool(recipe.adapters) == (recipe.method != "full")
    with pytest.raises(TrainingError, match=r"one of lora, dora, dora-half, dora-granularity was"):
        read_recipe("commonsense-llama-7b")


def test_settings_are_the_papers() -> None:
    recipe = read_recipe("commonsense-llama-13b", "dora")
    assert recipe.adapters["up_proj"] == Adapter("dora", rank=32, alpha=64, dropout=0.05)
    plain = (recipe.lr, recipe.schedule, recipe.warmup, recipe.batch, recipe.epochs)
    assert plain == (2e-4, "linear", 100, 16, 3)
    assert read_recipe("commonsense-llama-13b", "lora").lr is None  # no source gives it
    half = read_recipe("commonsense-llama-13b", "dora-half")
    assert half.adapters["up_proj"] == recipe.adapters["up_proj"].halved()
    granular = read_recipe("commonsense-llama-13b", "dora-granularity").adapters
    assert [a.method for a in granular.values()] == ["dora"] * 3 + ["magnitude"] * 4
    assert read_recipe("vl-bart", "dora-image").adapters["q_proj"].scaling == 1
    dvora = read_recipe("alpaca-llama-7b", "dvora")
    assert (dvora.adapters["o_proj"].rank, dvora.lr, dvora.schedule) == (1024, 4e-3, "cosine")
    assert read_recipe("orca-math-llama3-8b", "full").precision is None


@pytest.mark.parametrize("name", list(UNSTATED))
def test_what_no_source_gives_has_to_be_given(name: str) -> None:
    with pytest.raises(TrainingError, match=rf"^{name}.toml: methods.\w+.\w+ is not given, ") as e:
        read_recipe(name, METHODS[name][-1] if name != "alpaca-llama-7b" else "dora")
    assert "\n" not in str(e.value)


def test_overrides_go_first_and_the_users_own_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        'model = "a/b"\ntargets = ["k_proj"]\nrank = 6\n[methods.x]\nmethod = "dora"\nalpha = 3\n'
    )
    recipe = read_recipe(file, overrides={"rank": 4, "axis": "input", "magnitude_targets": ["up"]})
    assert recipe == Recipe(
        name="mine",
        variant="x",
        model="a/b",
        method="dora",
        adapters={
            "k_proj": Adapter("dora", rank=4, alpha=3, axis="input"),
            "up": Adapter("magnitude", axis="input"),
        },
    )
    assert read_recipe(str(file)) == replace(
        recipe, adapters={"k_proj": Adapter("dora", rank=6, alpha=3)}
    )


GOOD = 'model = "a/b"\ntargets = ["q"]\nalpha = 4\nrank = 2\n[methods.dora]\nmethod = "dora"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"rnk = 3\n{GOOD}", "rnk is no field of a recipe, one of model, config, data, "),
        (f"{GOOD}rnk = 3\n", "methods.dora.rnk is no field of a recipe, "),
        (f"{GOOD}rank = 0\n", "methods.dora.rank is 0, a whole number from 1 up was expected."),
        (f"{GOOD}rank = true\n", "methods.dora.rank is True, a whole number from 1 up was "),
        (f"{GOOD}rank = 2.0\n", "methods.dora.rank is 2.0, a whole number from 1 up was "),
        (f"{GOOD}lr = nan\n", "methods.dora.lr is nan, a number above 0 was expected."),
        (f"{GOOD}lr = inf\n", "methods.dora.lr is inf, a number above 0 was expected."),
        (f"{GOOD}lr = '1e-4'\n", "methods.dora.lr is '1e-4', a number above 0 was expected."),
        (f"{GOOD}dropout = 1\n", "methods.dora.dropout is 1, a number from 0 to below 1 was "),
        (f"{GOOD}targets = []\n", "methods.dora.targets is [], a list of different names was "),
        (f"{GOOD}targets = 'q'\n", "methods.dora.targets is 'q', a list of different names was "),
        (f"{GOOD}targets = ['q', 'q']\n", "methods.dora.targets is ['q', 'q'], a list of "),
        (f"{GOOD}precision = 'int4'\n", "methods.dora.precision is 'int4', one of float32, "),
        (f"{GOOD}magnitude_targets = ['q']\n", "magnitude_targets has 'q', which is one of "),
        (GOOD.replace("alpha = 4\n", ""), "methods.dora.alpha is not given, a number above 0 was "),
        (GOOD.replace('method = "dora"', ""), "methods.dora.method is not given, one of full, "),
        (GOOD.replace('model = "a/b"\n', ""), "methods.dora.model is not given, text was "),
        ("model = 'a/b'\n", "methods is None, a table for each method was expected, "),
        ("methods = 3\n", "methods is 3, a table for each method was expected, "),
        ("[methods]\ndora = 3\n", "methods is {'dora': 3}, a table for each method was expected"),
        ("model = [\n", "is not TOML ("),
    ],
)
def test_a_mistake_is_one_line_with_file_and_field(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(TrainingError) as caught:
        read_recipe(file)
    assert str(caught.value).startswith(f"{file}: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "method", "overrides", "message"),
    [
        ("no-such", None, {}, "recipe: is 'no-such', the path of a .toml file or one of alpaca-"),
        ("no/such.toml", None, {}, "no/such.toml: cannot be read (No such file or directory), "),
        ("vl-bart", "dora", {}, "vl-bart.toml: method is 'dora', one of full-image, lora-image, "),
        ("llava-1.5-7b", "dora", {"rank": -1}, "llava-1.5-7b.toml: rank is -1, a whole number "),
        ("llava-1.5-7b", "dora", {"size": 1}, "llava-1.5-7b.toml: size is no field of a recipe, "),
    ],
)
def test_a_mistake_of_the_call_is_one_line(
    source: str, method: str | None, overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(TrainingError) as caught:
        read_recipe(source, method, overrides)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def _folder(path: Path, **config: Any) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(SMALL | config))
    return path


def test_a_local_folder_stands_in_for_the_model(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "model")
    found = dry_run_recipe(read_recipe("commonsense-llama3-8b", "dora"), folder)
    assert {t.name: (t.outputs, t.inputs, t.layers) for t in found.targets} == {
        **{"q_proj": (64, 64, 2), "k_proj": (32, 64, 2), "v_proj": (32, 64, 2)},
        **{"up_proj": (176, 64, 2), "down_proj": (64, 176, 2)},
    }
    encoder = model_on_meta(_folder(tmp_path / "other", architectures=["LlamaModel"]))
    assert type(encoder).__name__ == "LlamaModel"
    assert all(p.is_meta for p in encoder.parameters())


def test_code_in_a_folder_is_never_run(tmp_path: Path) -> None:
    remote = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    folder = _folder(tmp_path / "model", model_type="its-own", auto_map=remote)
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(TrainingError, match="transformers builds no model from it") as caught:
        model_on_meta(folder)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "no-such"}, "ValueError: Unrecognized model identifier: no-such. "),
        ({"model_type": ""}, "ValueError: Unrecognized model identifier: . "),
        ({"hiden_size": 3}, "ValueError: llama has no hiden_size), the config of one of its own "),
        ({"hidden_size": "3"}, "StrictDataclassFieldValidationError: "),
        ({"num_attention_heads": 0}, "ZeroDivisionError: "),
        ({"hidden_act": "no-such"}, "KeyError: 'no-such'), the config of one of its own models "),
        ({"architectures": ["BartForConditionalGeneration"]}, "ValueError: it has no BartFor"),
    ],
)
def test_a_config_of_no_model_is_one_line(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(TrainingError) as caught:
        model_on_meta(SMALL | change)
    assert str(caught.value).startswith(f"config: transformers builds no model from it ({reason}")
    assert "\n" not in str(caught.value)


def test_folders_without_a_config_and_recipes_without_one_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"config.json: is not there, a model's config was"):
        model_on_meta(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(TrainingError, match=r"config.json: transformers builds no model from it"):
        model_on_meta(tmp_path)
    recipe = read_recipe("sdxl-dreambooth", "dora", UNSTATED["sdxl-dreambooth"])
    with pytest.raises(TrainingError, match=r"^sdxl-dreambooth: has no config, one that"):
        dry_run_recipe(recipe)


def test_memory_of_weights_gradients_and_moments_is_what_it_says() -> None:
    adapters = {"k_proj": Adapter("dora", rank=4)}
    base = sum(p.numel() for p in model_on_meta(SMALL).parameters())
    trained = 2 * (4 * (32 + 64) + 32)
    found = dry_run(model_on_meta(SMALL), adapters, "bfloat16").memory
    # Magnitudes' squares, and the frequencies of rotary positions, which transformers holds twice.
    constants = 4 * (2 * 32 + 2 * 8)
    assert found.weights == 2 * base + 4 * trained + constants
    assert (found.gradients, found.moments) == (4 * trained, 8 * trained)
    packed = 2 * (64 * (64 + 32 + 32 + 64) + 3 * 64 * 176)
    coded = dry_run(model_on_meta(SMALL), adapters, "nf4").memory
    assert coded.weights == round(found.weights - 2 * packed + NF4 * packed)
    assert math.isclose(8 * NF4, 4.127, abs_tol=5e-4)  # QLoRA, section 3
    whole = dry_run(model_on_meta(SMALL), {}, "bfloat16").memory
    assert (whole.gradients, whole.moments) == (2 * base, 4 * base)


def _saved_bytes(model: nn.Module, tokens: torch.Tensor) -> int:
    """What autograd keeps of one forward pass: distinct storages, parameters and buffers not."""
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.detach()
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(inputs_embeds=tokens.requires_grad_()).logits
    fixed = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    del output
    return sum(t.untyped_storage().nbytes() for place, t in kept.items() if place not in fixed)


# The model's own share is an estimate; the adapters' leaves out norms ‖V‖ and VeRA's products d∘A
# and b∘B, whose sizes do not grow with the tokens.
BACKBONE, ADAPTERS = 0.15, 0.05


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("method", ["lora", "dora", "vera", "magnitude"])
def test_saved_activations_are_about_what_autograd_keeps(
    method: Any, dropout: float, precision: Any
) -> None:
    targets = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
    adapter = Adapter(method, rank=8, dropout=dropout, form="activation")
    adapters = dict.fromkeys(targets, adapter)
    found = dry_run(model_on_meta(SMALL), adapters, precision, tokens=16 * 32).memory
    dtype = getattr(torch, precision)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**SMALL), dtype=dtype)
    tokens = torch.randn(16, 32, SMALL["hidden_size"], dtype=dtype)
    plain = _saved_bytes(model.train().requires_grad_(False), tokens)
    adapt(model, adapters)
    kept = _saved_bytes(model, tokens)
    inputs = 2 * (4 * 64 + 176) if dropout and method != "magnitude" else 0
    mask = 16 * 32 * inputs * (dtype.itemsize - 1)  # on a CPU of the input's dtype, not of bytes
    assert found.backbone == pytest.approx(plain, rel=BACKBONE)
    assert found.adapters == pytest.approx(kept - plain - mask, rel=ADAPTERS)
