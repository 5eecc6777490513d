"""Adapters read back into a model: ours and PEFT's, and what is refused."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoHaConfig, LoraConfig, PeftModel, VeraConfig, get_peft_model
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, BertModel
from transformers.pytorch_utils import Conv1D

from wdecomp.errors import WdecompError
from wdecomp.train import Adapter, adapt, adapted_layers, save_adapter, save_full
from wdecomp.train.loading import load_adapter

# A float32 sum of a few terms in another order, for weights of about 0.1.
ROUNDING = {"rtol": 1e-6, "atol": 1e-7}
SIZES = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}


class Block(nn.Module):
    """Layers of every shape, none of them square."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 9)
        self.query = nn.Linear(9, 7)
        self.turned = Conv1D(5, 7)
        self.pixels = nn.Conv2d(5, 6, (2, 3))
        self.head = nn.Linear(6, 2)


def block() -> Block:
    torch.manual_seed(0)
    return Block()


def moved(adapters: dict[str, Adapter]) -> Block:
    """The block with adapters that have left their initial state."""
    model = block()
    adapt(model, adapters, projection_key=3)
    torch.manual_seed(1)
    for layer in adapted_layers(model).values():
        for name, parameter in layer.named_parameters():
            if not name.startswith("base."):
                parameter.data += 0.2 * torch.rand_like(parameter)
    return model


def merged(model: nn.Module) -> dict[str, Tensor]:
    return {name: layer.merged() for name, layer in adapted_layers(model).items()}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, weight in found.items():
        torch.testing.assert_close(weight, wanted[name], rtol=0, atol=0)
        start = block().get_submodule(name)
        assert not torch.equal(weight.flatten(), start.weight.flatten())


NAMES = ("words", "query", "turned", "pixels")
EVERY = {
    "lora": dict.fromkeys(NAMES, Adapter("lora", 3, 7)),
    "rsLoRA": dict.fromkeys(NAMES, Adapter("lora", 3, 7, rslora=True)),
    "two ranks": {"query": Adapter("lora", 3, 7), "turned": Adapter("lora", 2, 5)},
    "dora": dict.fromkeys(NAMES, Adapter("dora", 3, 7)),
    "dora of inputs": dict.fromkeys(("query", "turned"), Adapter("dora", 3, 7, axis="input")),
    "vera": dict.fromkeys(("query", "turned"), Adapter("vera", 3)),
    "dvora": dict.fromkeys(("query", "turned"), Adapter("dvora", 3)),
    "magnitude": dict.fromkeys(NAMES, Adapter("magnitude")),
}


@pytest.mark.parametrize("case", EVERY)
def test_what_was_saved_comes_back_to_the_last_bit(case: str, tmp_path: Path) -> None:
    model, again = moved(EVERY[case]), block()
    save_adapter(model, tmp_path, "base")
    load_adapter(again, tmp_path)
    if case == "dvora":  # its product was formed for PEFT; the vectors themselves are in compact/
        for name, weight in merged(again).items():
            torch.testing.assert_close(weight, merged(model)[name], **ROUNDING)
        again = block()
        load_adapter(again, tmp_path / "compact")
    assert_same(merged(again), merged(model))
    trained = {name for name, p in again.named_parameters() if p.requires_grad}
    assert trained
    assert not any(name.startswith("head") or ".base." in name for name in trained)


def test_parameters_that_were_trained_whole_come_back(tmp_path: Path) -> None:
    model, again = moved({"query": Adapter("lora", 3, 7)}), block()
    model.head.weight.data += 1
    save_adapter(model, tmp_path, "base", ("head",))
    load_adapter(again, tmp_path)
    assert torch.equal(again.head.weight, model.head.weight)
    assert not again.head.weight.requires_grad


def test_tied_parameters_come_back_under_either_name(tmp_path: Path) -> None:
    model, again = moved({"query": Adapter("lora", 3, 7)}), block()
    model.head.weight.data += 1
    for each in (model, again):
        each.tail = nn.Linear(6, 2)
        each.tail.weight = each.head.weight
    save_adapter(model, tmp_path, "base", ("tail",))
    load_adapter(again, tmp_path)
    assert torch.equal(again.head.weight, model.head.weight)


def bert(head: bool = False) -> Any:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=50, num_attention_heads=2, **SIZES)
    return BertForSequenceClassification(config) if head else BertModel(config)


PEFT = {
    "lora": LoraConfig(r=4, lora_alpha=6, target_modules=["query"], alpha_pattern={"1.*query": 9}),
    "dora": LoraConfig(r=4, use_rslora=True, use_dora=True, target_modules=["query", "dense"]),
    "vera": VeraConfig(r=4, target_modules=["query", "dense"], save_projection=True),
    "vera, not saved": VeraConfig(
        r=4, target_modules=["query", "dense"], save_projection=False, projection_prng_key=5
    ),
}


@pytest.mark.filterwarnings("ignore:Specified to not save vera_A")
@pytest.mark.parametrize("case", PEFT)
def test_adapters_of_peft_are_what_peft_merges(case: str, tmp_path: Path) -> None:
    base, again = bert(), bert()
    model = get_peft_model(copy.deepcopy(base), PEFT[case])
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.rand_like(parameter)
    model.save_pretrained(tmp_path)
    theirs = PeftModel.from_pretrained(base, tmp_path).merge_and_unload()
    load_adapter(again, tmp_path)
    for name, weight in merged(again).items():
        wanted = theirs.get_submodule(name).weight.data
        torch.testing.assert_close(weight, wanted, **ROUNDING)
        assert not torch.equal(wanted, bert().get_submodule(name).weight)


def of_loha(folder: Path) -> None:
    config = LoHaConfig(r=2, target_modules=["query"], init_weights=False)
    get_peft_model(bert(), config).save_pretrained(folder)


def with_a_bias(folder: Path) -> None:
    config = LoraConfig(r=2, target_modules=["query"], lora_bias=True, init_lora_weights=False)
    get_peft_model(bert(), config).save_pretrained(folder)


def of_a_classifier(folder: Path) -> None:
    config = LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS")
    get_peft_model(bert(head=True), config).save_pretrained(folder)


def with_a_head(folder: Path) -> None:
    config = LoraConfig(r=2, target_modules=["self.query"], modules_to_save=["pooler"])
    model = get_peft_model(bert(), config)
    pooler: Any = model.base_model.model.pooler.modules_to_save["default"]
    pooler.dense = nn.Linear(24, 25)
    model.save_pretrained(folder)


def of_a_wider_model(folder: Path) -> None:
    config = BertConfig(num_attention_heads=2, **(SIZES | {"hidden_size": 32}))
    get_peft_model(BertModel(config), LoraConfig(r=2, target_modules=["query"])).save_pretrained(
        folder
    )


def of_a_model_with_narrow_projections(folder: Path) -> None:
    model = bert()
    adapt(model, {"query": Adapter("vera", 2)})
    layer = next(iter(adapted_layers(model).values()))
    assert layer.projections is not None
    object.__setattr__(layer.projections, "b", layer.projections.b[:-1])
    save_adapter(model, folder, "base")


def of_a_run(folder: Path) -> None:
    of_a_wider_model(folder / "checkpoint-2")
    of_a_wider_model(folder / "checkpoint-10")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            of_loha,
            r"self.query.weight by .* \(loha\), LoRA, DoRA, VeRA or",
        ),
        (with_a_bias, "changes encoder.layer.0.attention.self.query.bias by"),
        (of_a_classifier, "changes bert.encoder.layer.0.attention.self.query, which the model has"),
        (with_a_head, r"pooler.dense.\w+ has shape \(25.*\), the model's has \(24"),
        (of_a_wider_model, r"by a matrix of \(32, 32\), the model has \(24, 24\)"),
        (of_a_model_with_narrow_projections, "It was trained on another base"),
        (lambda folder: save_full(bert(), None, folder), "is a whole model, an adapter was"),
        (lambda folder: folder.mkdir(exist_ok=True), "no weights found"),
        (of_a_run, "holds 2 checkpoints, one was expected. Name it: .*/checkpoint-10."),
    ],
)
def test_what_cannot_be_loaded_is_one_line_and_changes_nothing(
    write: Any, message: str, tmp_path: Path
) -> None:
    write(tmp_path)
    model = bert()
    with pytest.raises(WdecompError, match=message) as error:
        load_adapter(model, tmp_path)
    assert "\n" not in str(error.value)
    assert not adapted_layers(model)
    assert all(parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(model.state_dict(), bert().state_dict(), rtol=0, atol=0)
