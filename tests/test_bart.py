"""A BART fine-tuned three ways, end to end: its attentions are three stacks, as in VL-BART."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import BartConfig, BartForConditionalGeneration

import wdecomp
from wdecomp.audit import findings

STACKS = ["cross", "decoder", "encoder"]
LAYERS = 2


def _bart() -> BartForConditionalGeneration:
    torch.manual_seed(0)
    sizes = {"d_model": 24, "vocab_size": 60, "max_position_embeddings": 20}
    sides = {
        f"{side}_{key}": value
        for side in ("encoder", "decoder")
        for key, value in {"layers": LAYERS, "attention_heads": 3, "ffn_dim": 40}.items()
    }
    return BartForConditionalGeneration(BartConfig(**sizes, **sides, dropout=0.0))


def _train(model: torch.nn.Module, steps: int = 5) -> None:
    random = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(steps):
        ids = torch.randint(4, 60, (4, 9), generator=random)
        model(input_ids=ids, labels=ids.flip(1)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> wdecomp.Results:
    folder = tmp_path_factory.mktemp("bart")
    _bart().save_pretrained(folder / "base")
    full = _bart()
    _train(full)
    full.save_pretrained(folder / "ft")
    for method in ("lora", "dora"):
        config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], use_dora=method == "dora")
        adapted = get_peft_model(_bart(), config)
        _train(adapted)
        adapted.save_pretrained(folder / method)
    return wdecomp.compare(*(folder / name for name in ("base", "ft", "lora", "dora")))


@pytest.mark.parametrize("run", ["ft", "lora", "dora"])
def test_encoder_decoder_and_cross_attention_are_three_stacks(
    run: str, results: wdecomp.Results
) -> None:
    modules = results.modules
    mine = modules[
        (modules["run"] == run) & (modules["axis"] == "output") & modules["module"].isin(["q", "v"])
    ]
    assert sorted(mine["stack"].unique()) == STACKS
    counted = mine.groupby(["stack", "module"])["layer"].apply(sorted)
    assert all(layers == list(range(LAYERS)) for layers in counted)
    assert (mine["delta_direction"] > 0).all()
    cross = mine[mine["stack"] == "cross"]["parameter"]
    assert cross.str.contains("encoder_attn").all()


def test_every_stack_has_its_own_correlation(results: wdecomp.Results) -> None:
    fits = results.fits
    pooled = fits[(fits["estimator"] == "pearson") & (fits["grouping"] == "pooled")]
    assert sorted(pooled[pooled["run"] == "dora"]["stack"].unique()) == STACKS


def test_methods_are_told_from_what_is_on_disk(results: wdecomp.Results) -> None:
    methods = results.modules.drop_duplicates("run").set_index("run")["method"]
    assert methods.to_dict() == {"ft": "full", "lora": "lora", "dora": "dora"}


def test_the_audit_finds_nothing_wrong(results: wdecomp.Results) -> None:
    assert [each for each in findings(results) if each.severity != "note"] == []
