"""What autograd keeps: against PEFT's layers, and section 4.3's saving to the byte."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from wdecomp.errors import TrainingError
from wdecomp.train import Adapter, adapt
from wdecomp.train.saved import PlainLayer, plain_layers, saved_bytes

RANK, ALPHA = 5, 15.0
HIDDEN, INNER, LAYERS = 48, 80, 2
TARGETS = ("query", "value", "intermediate.dense", "layer.*.output.dense")
# Of every layer: query, value, attention.output, intermediate and output.
WEIGHTS = LAYERS * (3 * HIDDEN * HIDDEN + 2 * HIDDEN * INNER) * 4
DETACHED = pytest.mark.parametrize("norm_gradient", ["detached", "exact"])


def encoder() -> BertModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS}
    config = BertConfig(vocab_size=50, num_attention_heads=2, **sizes)
    return BertModel(config, add_pooling_layer=False).eval()


def plain(method: Any = "dora", norm_gradient: Any = "detached") -> BertModel:
    model = encoder()
    plain_layers(model, TARGETS, method, RANK, ALPHA, norm_gradient)
    return model


def saved(model: nn.Module, tokens: int = 64, device: str = "cpu") -> int:
    ids = torch.zeros(tokens // 16, 16, dtype=torch.long, device=device)
    return saved_bytes(lambda: model.to(device)(input_ids=ids).last_hidden_state, model)


@pytest.mark.parametrize("tokens", [32, 64, 256])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_detaching_saves_one_tensor_of_the_weights_size_per_module(
    tokens: int, device: str
) -> None:
    exact, detached = (
        saved(plain(norm_gradient=each), tokens, device) for each in ("exact", "detached")
    )
    assert exact - detached == WEIGHTS


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_plain_layers_keep_what_pefts_keep(method: Any) -> None:
    targets = r".*(query|value|dense)"
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets, use_dora=method == "dora")
    theirs = get_peft_model(encoder(), config)
    assert saved(plain(method)) == saved(theirs)


def test_our_exact_gradient_keeps_nothing_more_in_the_folded_form() -> None:
    found = []
    for norm_gradient in ("exact", "detached"):
        model = encoder()
        options = {"norm_gradient": norm_gradient, "form": "folded"}
        adapt(model, dict.fromkeys(TARGETS, Adapter("dora", RANK, ALPHA, **options)))  # type: ignore[arg-type]
        found.append(saved(model))
    assert found[0] == found[1] < saved(plain())


@DETACHED
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_plain_layers_are_the_adapted_ones(method: Any, norm_gradient: Any) -> None:
    base = nn.ModuleDict({"query": nn.Linear(HIDDEN, INNER)}).double()
    ours, theirs = copy.deepcopy(base), copy.deepcopy(base)
    adapt(ours, {"query": Adapter(method, RANK, ALPHA, norm_gradient=norm_gradient)})
    plain_layers(theirs, ["query"], method, RANK, ALPHA, norm_gradient)
    names = {name for name, p in theirs.named_parameters() if p.requires_grad}
    assert names == {name for name, p in ours.named_parameters() if p.requires_grad}
    for name in names:
        moved = ours.get_parameter(name).data
        moved += 0.1 * torch.randn_like(moved)
        theirs.get_parameter(name).data.copy_(moved)
    x = torch.randn(3, 7, HIDDEN, dtype=torch.float64)
    y, their_y = ours["query"](x), theirs["query"](x)
    torch.testing.assert_close(y, their_y)
    y.sin().sum().backward()
    their_y.sin().sum().backward()
    for name in names:
        torch.testing.assert_close(ours.get_parameter(name).grad, theirs.get_parameter(name).grad)


def test_only_what_the_graph_holds_counts_and_each_storage_once() -> None:
    layer = nn.Linear(8, 8)
    x = torch.randn(16, 8, requires_grad=True)

    def twice_and_more() -> Tensor:
        (layer(x).exp() * x).sum()  # is gone before the end
        y = x.exp()  # is kept for itself,
        return y * y.view(4, 32).view(16, 8) + layer(x)  # for both factors, and for the layer x

    assert saved_bytes(twice_and_more, layer) == 2 * 16 * 8 * 4
    assert saved_bytes(lambda: layer(x.detach()), nn.Module()) == 16 * 8 * 4


def test_a_name_without_a_layer_is_one_line_and_leaves_the_model_alone() -> None:
    model = encoder()
    with pytest.raises(TrainingError, match=r"^targets: 'q_proj' is the name of no linear layer"):
        plain_layers(model, ["query", "q_proj"])
    assert not any(isinstance(module, PlainLayer) for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
