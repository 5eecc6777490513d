"""The adapted layers against PEFT, and against the paper's equations written out by autograd."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, VeraConfig, get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from wdecomp.errors import TrainingError
from wdecomp.train import AdaptedLayer, Adapter, adapt, adapted_layers, norms_kept, weights_kept

# Sums of up to 1000 terms in another order; relative to the largest element of the tensor.
ROUNDING = {torch.float32: 2e-6, torch.float64: 1e-13}
IN, OUT, RANK, ALPHA, TOKENS = 37, 23, 5, 15.0, 90
METHODS = ("lora", "dora", "vera", "dvora", "magnitude")
FORMS = pytest.mark.parametrize("form", ["activation", "folded"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])


class Block(nn.Module):
    """A layer of every kind."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.query = nn.Linear(IN, OUT, bias=bias)
        self.c_attn = Conv1D(OUT, IN)
        self.conv = nn.Conv2d(6, OUT, (3, 2), stride=2, padding=1, bias=bias)
        self.tokens = nn.Embedding(IN, OUT)
        self.norm = nn.LayerNorm(OUT)
        nn.init.normal_(self.c_attn.bias)


def inputs(kind: str, dtype: torch.dtype) -> Tensor:
    random = torch.Generator().manual_seed(2)
    if kind == "tokens":
        return torch.randint(0, IN, (3, TOKENS // 3), generator=random)
    shape = (2, 6, 9, 8) if kind == "conv" else (3, TOKENS // 3, IN)
    return torch.randn(shape, generator=random, dtype=torch.float64).to(dtype).requires_grad_()


def moved(kind: str, adapter: Adapter, dtype: torch.dtype, bias: bool = True) -> Block:
    """A block with one adapted layer that has left its initial state."""
    torch.manual_seed(1)
    block = Block(bias).to(dtype)
    adapt(block, {kind: adapter})
    for parameter in block.get_submodule(kind).parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * parameter.abs().mean() + 0.1 * torch.randn_like(parameter)
    return block


def near(ours: Tensor | None, theirs: Tensor | None, scale: float = 1.0) -> None:
    assert ours is not None
    assert theirs is not None
    bound = scale * ROUNDING[ours.dtype] * theirs.abs().max().item()
    torch.testing.assert_close(ours, theirs.view_as(ours), rtol=0, atol=bound)


def in_peft(block: Block, kind: str) -> Any:
    """PEFT's layer around the same weights, in the same state."""
    layer = block.get_submodule(kind)
    assert isinstance(layer, AdaptedLayer)
    plain = copy.deepcopy(block)
    setattr(plain, kind, copy.deepcopy(layer.base))
    dora = layer.magnitude is not None
    config = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        target_modules=[kind],
        use_dora=dora,
        use_rslora=layer.adapter.rslora,
        fan_in_fan_out=kind == "c_attn",
    )
    theirs = get_peft_model(plain, config).base_model.model.get_submodule(kind)
    theirs.to(layer.wide)
    for tensor, ours in zip(_of_peft(theirs), _of_ours(layer), strict=True):
        tensor.data.copy_(ours.data.reshape(tensor.shape))
    return theirs


def _of_peft(layer: Any) -> list[Tensor]:
    if "default" in layer.lora_embedding_A:
        found = [layer.lora_embedding_A["default"], layer.lora_embedding_B["default"]]
    else:
        found = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
    if "default" in layer.lora_magnitude_vector:
        found.append(layer.lora_magnitude_vector["default"].weight)
    return found


def _of_ours(layer: AdaptedLayer) -> list[Tensor]:
    found = [layer.lora_A, layer.lora_B, layer.magnitude]
    return [tensor for tensor in found if tensor is not None]


@FORMS
@DTYPES
@pytest.mark.parametrize("kind", ["query", "c_attn", "conv", "tokens"])
@pytest.mark.parametrize("method", ["lora", "dora", "rslora"])
def test_outputs_gradients_and_merged_weights_are_pefts(
    kind: str, method: str, dtype: torch.dtype, form: Any
) -> None:
    name = "lora" if method == "rslora" else method
    adapter = Adapter(name, RANK, ALPHA, rslora=method == "rslora", form=form)
    block = moved(kind, adapter, dtype)
    ours, theirs = block.get_submodule(kind), in_peft(block, kind)
    x = inputs(kind, dtype)
    their_x = x.detach().clone().requires_grad_(x.requires_grad)
    y, their_y = ours(x), theirs(their_x)
    near(y, their_y)
    gy = torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    y.backward(gy.to(dtype))
    their_y.backward(gy.to(dtype))
    if x.requires_grad:
        near(x.grad, their_x.grad)
    for mine, other in zip(_of_ours(ours), _of_peft(theirs), strict=True):
        near(mine.grad, other.grad)
    theirs.merge()
    near(ours.kind.stored(ours.merged(), ours.base), theirs.base_layer.weight.data)


@DTYPES
@pytest.mark.parametrize("bias", [True, False])
def test_vera_is_pefts(dtype: torch.dtype, bias: bool) -> None:
    block = moved("query", Adapter("vera", RANK), dtype, bias)
    ours = block.query
    plain = copy.deepcopy(block)
    plain.query = copy.deepcopy(ours.base)
    config = VeraConfig(r=RANK, target_modules=["query"])
    theirs = get_peft_model(plain, config).base_model.model.query.to(dtype)
    theirs.vera_lambda_d["default"].data.copy_(ours.vera_lambda_d.data)
    theirs.vera_lambda_b["default"].data.copy_(ours.vera_lambda_b.data)
    x = inputs("query", dtype)
    their_x = x.detach().clone().requires_grad_()
    y, their_y = ours(x), theirs(their_x)
    near(y, their_y)
    y.square().sum().backward()
    their_y.square().sum().backward()
    near(x.grad, their_x.grad)
    near(ours.vera_lambda_d.grad, theirs.vera_lambda_d["default"].grad)
    near(ours.vera_lambda_b.grad, theirs.vera_lambda_b["default"].grad)


@FORMS
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("norm_gradient", ["detached", "exact"])
@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_the_equations(
    method: Any, norm_gradient: Any, bias: bool, form: Any
) -> None:
    """Beside autograd through the weight, written out as in the paper."""
    adapter = Adapter(method, RANK, ALPHA, norm_gradient=norm_gradient, form=form)
    layer = moved("query", adapter, torch.float64, bias).query
    x = inputs("query", torch.float64)
    y = layer(x)
    gy = torch.randn_like(y)
    trained = [p for p in layer.parameters() if p.requires_grad]
    found = torch.autograd.grad(y, [x, *trained], gy, retain_graph=True)
    a, b = layer.factors()
    v = layer.base.weight if a is None else layer.base.weight + adapter.scaling * b @ a
    norm = v.norm(dim=1, keepdim=True)
    norm = norm.detach() if norm_gradient == "detached" else norm
    w = v if layer.magnitude is None else layer.magnitude[:, None] * v / norm
    written = nn.functional.linear(x, w, layer.base.bias)
    near(y, written)
    for mine, theirs in zip(found, torch.autograd.grad(written, [x, *trained], gy), strict=True):
        near(mine, theirs)


@pytest.mark.parametrize("norm_gradient", ["detached", "exact"])
def test_magnitudes_of_inputs_are_the_equations_turned_round(norm_gradient: Any) -> None:
    adapter = Adapter("dora", RANK, ALPHA, axis="input", norm_gradient=norm_gradient)
    layer = moved("query", adapter, torch.float64).query
    assert layer.magnitude.shape == (IN,)
    x = inputs("query", torch.float64)
    v = layer.base.weight + adapter.scaling * layer.lora_B @ layer.lora_A
    norm = v.norm(dim=0)
    norm = norm.detach() if norm_gradient == "detached" else norm
    w = layer.magnitude * v / norm
    near(layer.merged(), w.detach())
    y, written = layer(x), nn.functional.linear(x, w, layer.base.bias)
    near(y, written)
    trained = [x, layer.lora_A, layer.lora_B, layer.magnitude]
    found = torch.autograd.grad(y.square().sum(), trained, retain_graph=True)
    for mine, theirs in zip(
        found, torch.autograd.grad(written.square().sum(), trained), strict=True
    ):
        near(mine, theirs, 10)


@pytest.mark.parametrize("m", [0.0, 1e-12, 1e-4])
@pytest.mark.parametrize("norm_gradient", ["detached", "exact"])
def test_a_magnitude_that_the_bias_hides_has_its_gradient(m: float, norm_gradient: Any) -> None:
    found = []
    for form in ("folded", "activation"):
        adapter = Adapter("dora", RANK, ALPHA, form=form, norm_gradient=norm_gradient)  # type: ignore[arg-type]
        layer = moved("query", adapter, torch.float32).query
        layer.magnitude.data[3] = m
        layer(inputs("query", torch.float32)).sin().sum().backward()
        found.append([p.grad for p in (layer.magnitude, layer.lora_A, layer.lora_B)])
    for folded, activation in zip(*found, strict=True):
        near(folded, activation)
    torch.testing.assert_close(found[0][0][3], found[1][0][3], rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", ["query", "c_attn", "conv", "tokens"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_training_starts_from_the_base_to_the_last_bit(
    kind: str, method: Any, dtype: torch.dtype
) -> None:
    torch.manual_seed(3)
    block = Block().to(dtype)
    weight = block.get_submodule(kind).weight.data.clone()
    adapt(block, {kind: Adapter(method, RANK, ALPHA, dropout=0.5)})
    layer = block.get_submodule(kind)
    assert torch.equal(layer.kind.stored(layer.merged(), layer.base), weight.float())
    with weights_kept(block):
        assert torch.equal(layer.kind.stored(layer.kept_weight, layer.base), weight)


@pytest.mark.parametrize("form", ["folded", "activation"])
def test_the_gain_is_one_to_the_last_bit_at_the_start(form: Any) -> None:
    torch.manual_seed(3)
    block = nn.ModuleDict({"query": nn.Linear(700, 300, bias=False)})
    x = torch.randn(64, 700)
    y = block["query"](x).detach()
    adapt(block, {"query": Adapter("dora", 8, 16, form=form)})
    assert torch.equal(block["query"](x), y)


@FORMS
@pytest.mark.parametrize("norm_gradient", ["detached", "exact"])
@pytest.mark.parametrize("method", ["dora", "dvora", "magnitude"])
def test_zero_rows_stay_finite_and_can_be_trained(
    method: Any, norm_gradient: Any, form: Any
) -> None:
    block = Block()
    block.query.weight.data[3] = 0
    adapt(block, {"query": Adapter(method, RANK, ALPHA, norm_gradient=norm_gradient, form=form)})
    trained = [p for p in block.query.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01)
    for _ in range(3):
        block.query(inputs("query", torch.float32)).square().sum().backward()
        optimizer.step()
        for tensor in (block.query.merged(), *trained, *(p.grad for p in trained)):
            assert tensor.isfinite().all()


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("method", ["lora", "dora", "vera", "magnitude"])
def test_in_bf16_magnitudes_and_norms_are_float32(method: Any, autocast: bool) -> None:
    """Beside the layer in float32: outputs differ by a few roundings to BF16."""
    exact = moved("query", Adapter(method, RANK, ALPHA), torch.float32).query
    layer = copy.deepcopy(exact)
    if not autocast:
        layer.base.to(torch.bfloat16)
        exact.base.weight.data.copy_(layer.base.weight.float())
        exact.base.bias.data.copy_(layer.base.bias.float())
    x = inputs("query", torch.float32)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = layer(x if autocast else x.bfloat16())
    want = exact(x if autocast else x.bfloat16().float())
    assert y.dtype == torch.bfloat16
    assert {p.dtype for p in layer.parameters() if p.requires_grad} == {torch.float32}
    assert (y.float() - want).abs().max() <= 4 * 2**-8 * want.abs().max()


def test_dropout_is_of_the_low_rank_part_alone_and_only_while_training() -> None:
    torch.manual_seed(0)
    layer = moved("query", Adapter("dora", RANK, ALPHA, dropout=0.5), torch.float64).query
    x = inputs("query", torch.float64)
    still = layer.eval()(x)
    near(still, nn.functional.linear(x, layer.merged(), layer.base.bias))
    layer.train()
    drawn = torch.stack([layer(x) for _ in range(4000)])
    spread = drawn.std(0) / len(drawn) ** 0.5
    assert ((drawn.mean(0) - still).abs() < 6 * spread).all()  # its mean is the layer without
    layer.lora_B.data.zero_()
    assert torch.equal(layer(x), layer(x))


def test_norms_are_kept_while_gradients_accumulate_and_not_beyond() -> None:
    block = moved("query", Adapter("dora", RANK, ALPHA, form="activation"), torch.float64)
    layer, x = block.query, inputs("query", torch.float64)
    before = layer(x)
    with norms_kept(block):
        assert torch.equal(layer(x), before)
        layer.lora_B.data *= 2
        kept = layer(x)
    assert layer.kept_norm is None
    assert (layer(x) - kept).abs().max() > 1e-3


def test_kept_weights_are_the_layer() -> None:
    for kind in ("query", "c_attn", "conv", "tokens"):
        block = moved(kind, Adapter("dora", RANK, ALPHA), torch.float64)
        layer, x = block.get_submodule(kind), inputs(kind, torch.float64)
        plain = layer(x)
        with weights_kept(block):
            near(layer(x), plain)
        assert layer.kept_weight is None


def test_a_starts_as_kaiming_uniform_and_magnitude_as_row_norms() -> None:
    torch.manual_seed(4)
    block = Block()
    adapt(block, {"query": Adapter("dora", 50, ALPHA)})
    bound = IN**-0.5  # Kaiming-uniform with a = √5: U(−1/√in, 1/√in)
    largest = block.query.lora_A.abs().max().item()
    assert 0.95 * bound < largest <= bound
    norms = torch.tensor([row.norm().item() for row in block.query.base.weight.data])
    near(block.query.magnitude.detach(), norms)


def test_layers_may_have_adapters_of_their_own() -> None:
    block = Block()
    adapt(block, {"query": Adapter("dora", RANK, ALPHA), "c_attn": Adapter("magnitude")})
    trained = {name: tuple(p.shape) for name, p in block.named_parameters() if p.requires_grad}
    assert trained == {
        "query.lora_A": (RANK, IN),
        "query.lora_B": (OUT, RANK),
        "query.magnitude": (OUT,),
        "c_attn.magnitude": (OUT,),
    }
    assert list(adapted_layers(block)) == ["query", "c_attn"]


def test_half_the_rank_has_alpha_twice_that() -> None:
    half = Adapter("dora", 32, 64).halved()
    assert (half.rank, half.alpha, half.scaling) == (16, 32, 2.0)


def test_nothing_of_the_weights_size_is_saved_for_the_backward_pass() -> None:
    """Section 4.3's saving, for the exact gradient too."""
    wide = nn.ModuleDict({"query": nn.Linear(512, 256)})
    x = torch.randn(300, 512, requires_grad=True)
    for form in ("activation", "folded"):
        for norm_gradient in ("detached", "exact"):
            block = copy.deepcopy(wide)
            adapter = Adapter("dora", 4, 8, form=form, norm_gradient=norm_gradient)  # type: ignore[arg-type]
            adapt(block, {"query": adapter})
            sizes: list[int] = []

            def note(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
                if not isinstance(tensor, nn.Parameter) and tensor.data_ptr() != x.data_ptr():
                    sizes.append(tensor.numel())
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
                block["query"](x)
            views = {block["query"].base.weight.numel()}
            assert max(s for s in sizes if s not in views) <= 300 * 256
            if form == "folded":
                assert 512 * 256 not in sizes


@pytest.mark.parametrize(
    ("adapters", "message"),
    [
        ({"query": Adapter("lora", 0)}, "rank: is 0, at least 1 was expected."),
        ({"query": Adapter("lora"), "key": Adapter("lora")}, "targets: 'key' is the name of no"),
        ({"norm": Adapter("dora")}, "norm: is a LayerNorm, expected a Linear (or one in NF4)"),
        ({"conv": Adapter("dora", axis="input")}, "conv: is a Conv2d, a Linear layer was"),
        ({"query": Adapter("vera", 3), "c_attn": Adapter("vera", 4)}, "rank: is 3, 4 in different"),
        ({"grouped": Adapter("lora")}, "grouped: is a convolution in 2 groups"),
    ],
)
def test_bad_input_is_one_line_and_leaves_the_model_alone(
    adapters: dict[str, Adapter], message: str
) -> None:
    block = Block()
    block.grouped = nn.Conv2d(4, 8, 3, groups=2)
    with pytest.raises(TrainingError) as caught:
        adapt(block, adapters)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert isinstance(block.query, nn.Linear)
    assert all(parameter.requires_grad for parameter in block.parameters())


def test_a_model_may_be_cast_after_it_was_adapted() -> None:
    layer = moved("query", Adapter("dora", RANK, ALPHA), torch.float32).double().query
    x = inputs("query", torch.float64)
    want = nn.functional.linear(x, layer.merged(), layer.base.bias)
    near(layer(x).float(), want.float())  # ‖w0‖² was summed in float32
