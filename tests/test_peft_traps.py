"""Where the obvious reading of a PEFT adapter is wrong: the library's merge is far from it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
from peft import LoraConfig
from peft_cases import Plain, experts, gpt2, llama, write
from peft_oracle import base_of, check_merge, merged_of
from safetensors.torch import load_file

from wdecomp.dtypes import Floats

FAR = 0.05  # of ‖ΔW‖; wdecomp is within 1e-6 of the library in all of these

Tensors = Callable[[str], Floats]
Q = "model.layers.1.self_attn.q_proj"


def _assert_far(folder: Path, name: str, naive: Floats) -> None:
    merged = merged_of(folder, name)
    change = np.linalg.norm(merged - base_of(folder, name))
    assert np.linalg.norm(naive - merged) > FAR * change


def _tensors(folder: Path) -> Tensors:
    found = load_file(folder / "adapter" / "adapter_model.safetensors")
    return lambda key: found[f"base_model.model.{key}"].double().numpy()


def _product(of: Tensors, module: str, scaling: float) -> Floats:
    return scaling * of(f"{module}.lora_B.weight") @ of(f"{module}.lora_A.weight")


def _lora(**config: Any) -> LoraConfig:
    return LoraConfig(**{"r": 4, "lora_alpha": 9, **config})


def test_dora_has_one_magnitude_for_each_output_also_where_the_matrix_is_square(
    tmp_path: Path,
) -> None:
    write(tmp_path, llama, _lora(target_modules=["q_proj"], use_dora=True))
    check_merge(tmp_path)
    of = _tensors(tmp_path)
    v = base_of(tmp_path, f"{Q}.weight") + _product(of, Q, 9 / 4)
    naive = of(f"{Q}.lora_magnitude_vector")[None] * v / np.linalg.norm(v, axis=0)
    _assert_far(tmp_path, f"{Q}.weight", naive)


def test_a_square_conv1d_is_transposed_although_the_config_denies_it(tmp_path: Path) -> None:
    adapted = write(tmp_path, gpt2, _lora(target_modules=["c_proj", "lm_head"]))
    assert adapted.peft_config["default"].fan_in_fan_out is False
    check_merge(tmp_path)
    module = "transformer.h.1.attn.c_proj"
    naive = base_of(tmp_path, f"{module}.weight") + _product(_tensors(tmp_path), module, 9 / 4).T
    _assert_far(tmp_path, f"{module}.weight", naive)


def test_the_order_of_patterns_is_that_of_the_file_not_of_the_training(tmp_path: Path) -> None:
    patterns = {"self_attn.q_proj": 7, ".*q_proj": 100}
    write(tmp_path, llama, _lora(target_modules=["q_proj"], alpha_pattern=patterns))
    check_merge(tmp_path)
    trained = base_of(tmp_path, f"{Q}.weight") + _product(_tensors(tmp_path), Q, 7 / 4)
    _assert_far(tmp_path, f"{Q}.weight", trained)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_unconverted_adapter_is_none_of_its_base(init: str, tmp_path: Path) -> None:
    write(tmp_path, llama, _lora(target_modules=["q_proj"], init_lora_weights=init))
    check_merge(tmp_path, error=5e-6)
    naive = base_of(tmp_path, f"{Q}.weight") + _product(_tensors(tmp_path), Q, 9 / 4)
    _assert_far(tmp_path, f"{Q}.weight", naive)


# PEFT looks for AdaLoRA's masks among LoRA's patterns, and applies them all the same.
@pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match:RuntimeWarning")
def test_adalora_is_scaled_by_its_first_rank(tmp_path: Path) -> None:
    config = peft.AdaLoraConfig(
        target_modules=["q_proj"], init_r=6, target_r=4, lora_alpha=9, total_step=10
    )
    keep = {f"{Q}.lora_E.default": [True, False, True, True, False, True]}

    def prune(model: peft.PeftModel) -> None:
        model.peft_config["default"].rank_pattern = keep

    write(tmp_path, llama, config, prepare=prune)
    found = check_merge(tmp_path)
    of, update = _tensors(tmp_path), found.matrices[f"{Q}.weight"].tuned.update  # type: ignore[union-attr]
    assert (update.rank, update.scaling) == (4, 9 / (6 + 1e-5))
    product = of(f"{Q}.lora_B") @ (of(f"{Q}.lora_A") * of(f"{Q}.lora_E"))
    for rank in (4, 8):  # of what is left; the config's r
        _assert_far(tmp_path, f"{Q}.weight", base_of(tmp_path, f"{Q}.weight") + 9 / rank * product)


def test_saved_modules_biases_and_tokens_replace(tmp_path: Path) -> None:
    config = _lora(
        target_modules=["q_proj"],
        modules_to_save=["lm_head"],
        trainable_token_indices=[3, 17],
        bias="all",
    )
    write(tmp_path, llama, config)
    check_merge(tmp_path)
    of = _tensors(tmp_path)
    head, bias = "lm_head.weight", "model.layers.0.self_attn.k_proj.bias"
    _assert_far(tmp_path, head, base_of(tmp_path, head) + of(head))
    _assert_far(tmp_path, bias, base_of(tmp_path, bias) + of(bias))
    words = "model.embed_tokens.weight"
    naive = base_of(tmp_path, words)
    naive[:, [3, 17]] += of("model.embed_tokens.token_adapter.trainable_tokens_delta").T
    _assert_far(tmp_path, words, naive)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "llama4_text"])
def test_experts_run_fastest_in_b_and_square_ones_lie_as_the_family_has_them(
    family: str, tmp_path: Path
) -> None:
    module = "feed_forward" if family.startswith("llama4") else "mlp"
    stack = f"model.layers.1.{module}.experts"
    config = _lora(r=2, target_modules=["q_proj"], target_parameters=[f"{stack}.down_proj"])
    write(tmp_path, partial(experts, family, 32), config)
    found = check_merge(tmp_path)
    name = next(n for n in found.matrices if "1" in n.split("experts")[-1] and "experts" in n)
    assert base_of(tmp_path, name).shape == (32, 32)
    of, expert, s = _tensors(tmp_path), 1, 9 / 2
    a, b = of(f"{stack}.lora_A.weight"), of(f"{stack}.lora_B.weight")
    b_slow = b.reshape(32, 3, 2)[:, expert]
    b_fast = b.reshape(32, 2, 3)[:, :, expert]
    a_slow = a.reshape(3, 2, 32)[expert]
    a_fast = a.reshape(2, 3, 32)[:, expert]
    w0 = base_of(tmp_path, name)
    right, turned = s * b_fast @ a_slow, (s * b_fast @ a_slow).T
    change = merged_of(tmp_path, name) - w0
    assert min(np.abs(change - right).max(), np.abs(change - turned).max()) < 1e-6
    right_is = np.abs(change - right).max() < 1e-6
    assert right_is == (family != "llama4_text")  # stored (in, out), and added as it is stored
    for naive in (s * b_slow @ a_slow, s * b_fast @ a_fast, turned if right_is else right):
        _assert_far(tmp_path, name, w0 + naive)


def test_the_first_parameter_is_the_innermost_layer(tmp_path: Path) -> None:
    stack = "model.layers.1.mlp.experts"
    targets = [f"{stack}.down_proj", f"{stack}.gate_up_proj"]
    config = _lora(r=2, target_modules=["q_proj"], target_parameters=targets)
    write(tmp_path, partial(experts, "mixtral", 16), config)
    check_merge(tmp_path)
    of = _tensors(tmp_path)
    a, b = of(f"{stack}.base_layer.lora_A.weight"), of(f"{stack}.base_layer.lora_B.weight")
    assert (a.shape, b.shape) == ((6, 32), (32, 6))  # gate_up: 32 in, 2·16 out


def test_the_out_proj_of_an_attention_is_changed_twice(tmp_path: Path) -> None:
    write(tmp_path, Plain, _lora(target_modules=["attn"]))
    check_merge(tmp_path)
    w0, name = base_of(tmp_path, "attn.out_proj.weight"), "attn.out_proj.weight"
    once = _product(_tensors(tmp_path), "attn.base_layer.out_proj", 9 / 4)
    _assert_far(tmp_path, name, w0 + once)
