"""The adapter layers against PEFT, and against the paper's equations written out."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from wdecomp.errors import TrainingError
from wdecomp.train import AdapterLinear, adapt

METHODS = pytest.mark.parametrize("method", ["lora", "dora"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
# Sums of up to 60 terms in another order; relative to the largest element of the tensor.
ROUNDING = {torch.float32: 1e-6, torch.float64: 1e-14}
IN, OUT, RANK, ALPHA = 37, 23, 5, 15.0


class Block(nn.Module):
    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.query = nn.Linear(IN, OUT, bias=bias)
        self.norm = nn.LayerNorm(OUT)


def moved(method: str, dtype: torch.dtype, bias: bool = True) -> tuple[Block, Block]:
    """A block, and its copy with an adapter that has left its initial state."""
    torch.manual_seed(1)
    block = Block(bias).to(dtype)
    adapted = copy.deepcopy(block)
    adapt(adapted, ["query"], method, RANK, ALPHA)
    adapted.query.lora_B.data.normal_(std=0.2)
    if method == "dora":
        adapted.query.magnitude.data *= 0.5 + torch.rand(OUT, dtype=dtype)
    return block, adapted


def in_peft(block: Block, adapter: AdapterLinear) -> nn.Module:
    """PEFT's layer around the same weights, in the same state."""
    dora = adapter.magnitude is not None
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["query"], use_dora=dora)
    layer = get_peft_model(copy.deepcopy(block), config).base_model.model.query
    layer.lora_A["default"].weight.data.copy_(adapter.lora_A.data)
    layer.lora_B["default"].weight.data.copy_(adapter.lora_B.data)
    if dora:
        layer.lora_magnitude_vector["default"].weight.data.copy_(adapter.magnitude.data)
    return layer.to(adapter.lora_A.dtype)


def assert_near(ours: Tensor, theirs: Tensor) -> None:
    bound = ROUNDING[ours.dtype] * theirs.abs().max().item()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=bound)


def inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """An input (2, 9, in) and the gradient (2, 9, out) of a loss at the output."""
    torch.manual_seed(2)
    x = torch.randn(2, 9, IN, dtype=dtype, requires_grad=True)
    return x, torch.randn(2, 9, OUT, dtype=dtype)


@METHODS
@DTYPES
@pytest.mark.parametrize("bias", [True, False])
def test_forward_and_gradients_are_pefts(method: str, dtype: torch.dtype, bias: bool) -> None:
    block, adapted = moved(method, dtype, bias)
    ours, theirs = adapted.query, in_peft(block, adapted.query)
    x, gy = inputs(dtype)
    their_x = x.detach().clone().requires_grad_()
    y, their_y = ours(x), theirs(their_x)
    assert_near(y, their_y)
    y.backward(gy)
    their_y.backward(gy)
    assert_near(x.grad, their_x.grad)
    assert_near(ours.lora_A.grad, theirs.lora_A["default"].weight.grad)
    assert_near(ours.lora_B.grad, theirs.lora_B["default"].weight.grad)
    if method == "dora":
        assert_near(ours.magnitude.grad, theirs.lora_magnitude_vector["default"].weight.grad)


@METHODS
@DTYPES
def test_merged_weight_is_pefts(method: str, dtype: torch.dtype) -> None:
    block, adapted = moved(method, dtype)
    theirs = in_peft(block, adapted.query)
    theirs.merge()
    merged = adapted.query.merged()
    assert merged.dtype == torch.float32
    assert_near(merged, theirs.base_layer.weight.data.float())


@METHODS
def test_output_is_that_of_the_merged_weight(method: str) -> None:
    _, adapted = moved(method, torch.float32)
    x, _ = inputs(torch.float32)
    whole = nn.functional.linear(x, adapted.query.merged(), adapted.query.base.bias)
    assert_near(adapted.query(x), whole)


def test_gradients_are_those_of_equation_11() -> None:
    _, adapted = moved("dora", torch.float64)
    layer = adapted.query
    x, gy = inputs(torch.float64)
    layer(x).backward(gy)

    a, b, m, s = layer.lora_A.data, layer.lora_B.data, layer.magnitude.data, ALPHA / RANK
    v = layer.base.weight.data + s * b @ a
    n = (v * v).sum(1).sqrt()
    g = torch.einsum("bto,bti->oi", gy, x.detach())  # ∂L/∂W
    dv = (m / n)[:, None] * g  # Eq. (11): no (I − V Vᵀ/n²)
    assert_near(layer.lora_A.grad, s * b.T @ dv)
    assert_near(layer.lora_B.grad, s * dv @ a.T)
    assert_near(layer.magnitude.grad, (g * v).sum(1) / n)
    assert_near(x.grad, gy @ ((m / n)[:, None] * v))


@METHODS
@pytest.mark.parametrize(("width_in", "width_out"), [(1536, 384), (4096, 64), (5, 700)])
def test_training_starts_from_the_base_to_the_last_bit(
    method: str, width_in: int, width_out: int
) -> None:
    # Wide inputs: there the product and the bias, added separately, round differently.
    torch.manual_seed(3)
    model = nn.ModuleDict({"query": nn.Linear(width_in, width_out)})
    model["query"].bias.data.normal_()
    x = torch.randn(64, width_in)
    weight, y = model["query"].weight.data.clone(), model["query"](x).detach()
    adapt(model, ["query"], method, 8, 16, dropout=0.5)
    torch.testing.assert_close(model["query"].merged(), weight, rtol=0, atol=0)
    torch.testing.assert_close(model["query"](x).detach(), y, rtol=0, atol=0)


@METHODS
def test_zero_rows_stay_finite_and_can_be_trained(method: str) -> None:
    block = Block()
    block.query.weight.data[3] = 0
    adapt(block, ["query"], method, RANK, ALPHA)
    optimizer = torch.optim.AdamW(block.query.parameters(), lr=0.01)
    x, gy = inputs(torch.float32)
    for _ in range(3):
        block.query(x).backward(gy)
        assert block.query.lora_B.grad[3].abs().sum() > 0
        optimizer.step()
        for tensor in (block.query.merged(), *block.query.parameters()):
            assert tensor.isfinite().all()


def test_a_starts_as_kaiming_uniform_and_magnitude_as_row_norms() -> None:
    torch.manual_seed(4)
    block = Block()
    adapt(block, ["query"], "dora", 50, ALPHA)
    bound = IN**-0.5  # Kaiming-uniform with a = √5: U(−1/√in, 1/√in)
    largest = block.query.lora_A.abs().max().item()
    assert 0.95 * bound < largest <= bound
    norms = torch.tensor([row.norm().item() for row in block.query.base.weight.data])
    assert_near(block.query.magnitude.detach(), norms)


def test_only_the_adapter_is_trained() -> None:
    block = Block()
    adapt(block, ["query"], "dora", RANK, ALPHA)
    trained = {name: p.shape for name, p in block.named_parameters() if p.requires_grad}
    assert trained == {
        "query.lora_A": (RANK, IN),
        "query.lora_B": (OUT, RANK),
        "query.magnitude": (OUT,),
    }


def test_dropout_follows_the_mode_of_the_layer_that_it_wraps() -> None:
    block = Block().eval()
    adapt(block, ["query"], "lora", RANK, ALPHA, dropout=0.5)
    block.query.lora_B.data.normal_()
    x, _ = inputs(torch.float32)
    torch.testing.assert_close(block.query(x), block.query(x), rtol=0, atol=0)
    block.train()
    assert not torch.equal(block.query(x), block.query(x))


@pytest.mark.parametrize(
    ("targets", "rank", "message"),
    [
        (["query"], 0, "rank: is 0, at least 1 was expected."),
        (["query", "key"], 2, "targets: 'key' is the name of no module. "),
        (["norm"], 2, "norm: is a LayerNorm, a Linear layer was expected."),
        (["half"], 2, "half: its weight is torch.bfloat16, torch.float32 was expected. "),
    ],
)
def test_bad_input_is_one_line_and_leaves_the_model_alone(
    targets: list[str], rank: int, message: str
) -> None:
    block = Block()
    block.half = nn.Linear(3, 4, dtype=torch.bfloat16)
    with pytest.raises(TrainingError) as caught:
        adapt(block, targets, "lora", rank, ALPHA)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert isinstance(block.query, nn.Linear)
    assert all(parameter.requires_grad for parameter in block.parameters())
