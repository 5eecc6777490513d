"""The written-out gradients of both forms, where `test_train_layers.py` does not reach."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wdecomp.train import AdaptedLayer, Adapter, adapt
from wdecomp.train.forms import Activated, Folded, factored_norm, row_norm

IN, OUT, RANK, ALPHA, TOKENS = 19, 13, 3, 7.0, 30
GRADIENTS = pytest.mark.parametrize("norm_gradient", ["detached", "exact"])
FORMS = pytest.mark.parametrize("form", ["activation", "folded"])
BIAS = pytest.mark.parametrize("bias", [True, False])
FEW_AND_MANY = pytest.mark.parametrize("tokens", [4, IN + 2])  # g is put on outputs, or on weights


def moved(adapter: Adapter, bias: bool = True) -> AdaptedLayer:
    torch.manual_seed(1)
    block = nn.ModuleDict({"query": nn.Linear(IN, OUT, bias=bias)}).double()
    adapt(block, {"query": adapter})
    for parameter in block.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    layer = block["query"]
    assert isinstance(layer, AdaptedLayer)
    return layer


def inputs(*shape: int) -> Tensor:
    random = torch.Generator().manual_seed(2)
    return torch.randn(*shape, IN, generator=random, dtype=torch.float64, requires_grad=True)


def trained(layer: nn.Module) -> list[Tensor]:
    return [parameter for parameter in layer.parameters() if parameter.requires_grad]


@BIAS
@GRADIENTS
@FEW_AND_MANY
@pytest.mark.parametrize("method", ["lora", "dora", "dvora"])
def test_gradients_under_dropout_are_autograds(
    method: Any, tokens: int, norm_gradient: Any, bias: bool
) -> None:
    adapter = Adapter(method, RANK, ALPHA, dropout=0.4, norm_gradient=norm_gradient)
    layer, x = moved(adapter, bias), inputs(2, tokens)
    if method != "lora" and bias:
        layer.magnitude.data[3] = 1e-6  # which the bias hides in the output
    torch.manual_seed(3)
    y = layer(x)
    torch.manual_seed(3)
    dropped = F.dropout(x, 0.4)
    assert (dropped == 0).any()
    a, b = layer.factors()
    z = F.linear(x, layer.base.weight) + adapter.scaling * dropped @ a.T @ b.T
    if layer.magnitude is not None:
        norm = (layer.base.weight + adapter.scaling * b @ a).norm(dim=1)
        z = z * (layer.magnitude / (norm.detach() if norm_gradient == "detached" else norm))
    written = z if layer.base.bias is None else z + layer.base.bias
    torch.testing.assert_close(y, written)
    gy = torch.randn_like(y)
    found = torch.autograd.grad(y, [x, *trained(layer)], gy, retain_graph=True)
    wanted = torch.autograd.grad(written, [x, *trained(layer)], gy)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


@FORMS
@FEW_AND_MANY
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_the_exact_gradients_are_those_of_finite_differences(
    method: Any, tokens: int, form: Any
) -> None:
    layer = moved(Adapter(method, RANK, ALPHA, norm_gradient="exact", form=form))
    names = [name for name, p in layer.named_parameters() if p.requires_grad]

    def run(x: Tensor, *values: Tensor) -> Tensor:
        y: Tensor = torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))
        return y

    values = [layer.get_parameter(name) for name in names]
    assert torch.autograd.gradcheck(run, (inputs(tokens), *values))


@FORMS
@pytest.mark.parametrize("shape", [(), (1,), (2, 3, 4)], ids=str)
def test_inputs_may_have_any_number_of_dimensions(shape: tuple[int, ...], form: Any) -> None:
    layer, x = moved(Adapter("dora", RANK, ALPHA, form=form)), inputs(*shape)
    y = layer(x)
    written = F.linear(x, layer.merged(), layer.base.bias)
    torch.testing.assert_close(y, written)
    found = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(found, torch.autograd.grad(written.sum(), x))


@FORMS
def test_no_gradient_of_the_input_is_formed_where_none_is_wanted(form: Any) -> None:
    layer = moved(Adapter("dora", RANK, ALPHA, form=form))
    shown, alone = inputs(TOKENS), inputs(TOKENS).detach()
    found = []
    for x in (shown, alone):
        found.append(torch.autograd.grad(layer(x).sin().sum(), trained(layer)))
    for with_, without in zip(*found, strict=True):
        assert torch.equal(with_, without)


def test_the_output_may_be_changed_in_place() -> None:
    for form in ("activation", "folded"):
        layer = moved(Adapter("lora", RANK, ALPHA, form=form))  # type: ignore[arg-type]
        F.relu(layer(inputs(2, TOKENS)), inplace=True).sum().backward()


def test_many_tokens_are_folded_and_few_or_dropped_ones_are_not() -> None:
    def form_of(tokens: int, training: bool = True, **options: Any) -> Any:
        layer = moved(Adapter("dora", RANK, ALPHA, **options)).train(training)
        return type(layer(inputs(tokens)).grad_fn)

    last = 3 * IN * OUT // (IN + OUT)
    folded, activated = (form_of(8, form=form) for form in ("folded", "activation"))
    assert folded is not activated
    assert (folded.__name__, activated.__name__) == (
        f"{Folded.__name__}Backward",
        f"{Activated.__name__}Backward",
    )
    assert form_of(last) is activated
    assert form_of(last + 1) is folded
    assert form_of(last + 1, dropout=0.1) is activated
    assert form_of(last + 1, form="folded", dropout=0.1) is activated
    assert form_of(last + 1, training=False, dropout=0.1) is folded


def test_the_factored_norm_is_the_norm() -> None:
    layer = moved(Adapter("dora", RANK, ALPHA))
    a, b = layer.factors()
    v = layer.direction(a, b)
    w0 = layer.base.weight
    norm, va = factored_norm(layer.square, w0 @ a.T, a, b, layer.adapter.scaling)
    torch.testing.assert_close(norm, row_norm(v))
    torch.testing.assert_close(va, v @ a.T)
