"""torchtune's export leaves DoRA's magnitudes of q and k in its own order of rows."""

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from wdecomp.adapter.torchtune import in_order, interleaved, misordered
from wdecomp.checkpoint import read_header, read_whole
from wdecomp.dtypes import Floats

HEADS = {"q_proj": 4, "k_proj": 2}
SIZE = 16  # of a head


def _to_torchtune(rows: Tensor, heads: int) -> Tensor:
    """As torchtune's hf_to_tune has it, of one column."""
    return rows.view(heads, 2, SIZE // 2, 1).transpose(1, 2).reshape(-1)


def _dora(folder: Path, trained: float) -> dict[str, tuple[Floats, Floats]]:
    """Magnitude as PEFT saved it, and norms of the base's rows, of every q_proj and k_proj."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=SIZE, vocab_size=40,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.split(".")[-2] in HEADS:  # as in a trained model, rows are not all of one length
            parameter.data *= 1 + 0.3 * torch.rand(len(parameter), 1)
    norms = {n: p.detach().norm(dim=1) for n, p in model.named_parameters() if p.dim() == 2}
    adapted = get_peft_model(model, LoraConfig(r=2, use_dora=True, target_modules=list(HEADS)))
    for name, parameter in adapted.named_parameters():
        if "magnitude" in name:
            parameter.data *= 1 + trained * torch.randn_like(parameter)
    adapted.save_pretrained(folder)
    tensors = read_header(folder / "adapter_model.safetensors").tensors
    found = {}
    for key, tensor in tensors.items():
        if "magnitude" in key:
            module = key.removeprefix("base_model.model.").removesuffix(".lora_magnitude_vector")
            m = read_whole(tensor).astype(np.float64)
            found[module] = m, norms[f"{module}.weight"].double().numpy()
    return found


@pytest.mark.parametrize("trained", [0.0, 0.005, 0.03])
def test_a_misordered_magnitude_is_told_from_one_in_order(trained: float, tmp_path: Path) -> None:
    found = _dora(tmp_path, trained)
    assert len(found) == 4
    for module, (m, norms) in found.items():
        heads = HEADS[module.rpartition(".")[2]]
        exported = _to_torchtune(torch.from_numpy(m), heads).numpy()
        assert misordered(exported, norms, heads)
        assert not misordered(m, norms, heads)
        assert not misordered(exported, norms, 1)  # another permutation
        np.testing.assert_array_equal(in_order(exported, heads), m)
        np.testing.assert_array_equal(interleaved(m, heads), exported)


def test_in_doubt_the_answer_is_no(tmp_path: Path) -> None:
    for m, norms in _dora(tmp_path, 2.0).values():  # moved further than rows differ
        assert not misordered(interleaved(m, 2), norms, 2)
    rising = np.arange(32.0)  # close to its neighbours in either order
    noise = np.random.default_rng(0).normal(size=32)
    assert not misordered(rising, rising, 2)
    assert misordered(interleaved(rising, 2), rising, 2)
    assert not misordered(interleaved(rising, 2) + 10 * noise, rising, 2)
    flat = np.full(32, 3.0)
    assert not misordered(flat, flat, 2)
    assert not misordered(flat, flat[:-2], 2)
    assert not misordered(flat, np.where(np.arange(32) == 3, np.nan, flat), 2)
    assert not misordered(np.arange(30.0), np.arange(30.0)[::-1], 4)
    assert not misordered(np.arange(32.0), np.arange(32.0), 0)
