"""Bases in NF4: codes against bitsandbytes, layers against layers of the decoded weight."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import pytest
import torch
from numpy.testing import assert_allclose
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, BertConfig, BertModel

import wdecomp
from wdecomp.errors import TrainingError
from wdecomp.train import AdaptedLayer, Adapter, Settings, adapt, adapted_layers, save_full, train
from wdecomp.train.layers import row_norm
from wdecomp.train.nf4 import (
    CODE,
    NESTED,
    SCALES,
    Nf4Linear,
    decode_nf4,
    encode_nf4,
    nf4_rounded,
)
from wdecomp.train.nf4_base import quantize_linears, save_nf4_base

DOUBLE = pytest.mark.parametrize("double", [False, True], ids=["plain", "double"])
# One block and more, a block that goes over rows, ends that no block divides, odd sizes, one
# number; 640 rows have scales enough for several blocks of scales, and for rare roundings.
SHAPES = [(16, 128), (48, 96), (33, 50), (23, 37), (5, 77), (3, 11), (1, 1), (640, 192)]
# Sums of up to 140 terms, formed in another order; relative to the tensor's largest number.
ROUNDING = 2e-6


def weights(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    random = torch.Generator().manual_seed(sum(shape))
    return (0.05 * torch.randn(shape, generator=random)).to(dtype)


def in_bnb(weight: Tensor, double: bool, block: int) -> tuple[Tensor, Any]:
    return bnb.quantize_4bit(weight, blocksize=block, quant_type="nf4", compress_statistics=double)


def decoded_by_bnb(codes: Tensor, state: Any) -> Tensor:
    """By its table look-up for bytes: that for 4 bits is wrong for some column counts."""
    absmax = state.absmax
    if state.nested:
        absmax = bnb.dequantize_blockwise(absmax, state.state2) + state.offset
    nibbles = torch.stack([codes.view(-1) >> 4, codes.view(-1) & 15], 1).view(-1)
    nibbles = nibbles[: state.shape.numel()].contiguous()
    table = torch.cat([state.code, torch.zeros(240)])
    found = bnb.dequantize_blockwise(nibbles, absmax=absmax, code=table, blocksize=state.blocksize)
    return found.view(state.shape)


def same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs.view_as(ours), rtol=0, atol=0)


@DOUBLE
@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_codes_scales_and_weights_are_those_of_bitsandbytes(
    shape: tuple[int, int], dtype: torch.dtype, block: int, double: bool
) -> None:
    weight = weights(*shape, dtype=dtype)
    same_as_bnb(weight, double, block)
    if shape[1] % block == 0:  # where its own look-up for 4 bits can be relied on
        codes, state = in_bnb(weight, double, block)
        same(nf4_rounded(weight, double, block), bnb.dequantize_4bit(codes, state))


def same_as_bnb(weight: Tensor, double: bool, block: int = 64) -> None:
    codes, state = in_bnb(weight, double, block)
    ours = encode_nf4(weight, double, block)
    assert (ours.shape, ours.block) == (weight.shape, block)
    same(ours.codes, codes)
    same(ours.absmax, state.absmax)
    if double:
        same(ours.nested_absmax, state.state2.absmax)
        same(ours.nested_offset, state.offset)
    same(decode_nf4(ours), decoded_by_bnb(codes, state))


@pytest.mark.parametrize("columns", [64, 50])
def test_numbers_between_two_codes_fall_as_in_bitsandbytes(columns: int) -> None:
    """Middles of the code times a scale: their codes hang on how the last bit is rounded."""
    random = torch.Generator().manual_seed(7)
    middles = (CODE[1:] + CODE[:-1]) / 2
    shares = middles[torch.randint(0, 15, (81, columns), generator=random)].view(-1)
    shares[::32] = 1  # of every block, too, that is not whole
    scales = torch.rand(-(-shares.numel() // 64), generator=random) + 0.5
    weight = shares * scales.repeat_interleave(64)[: shares.numel()]
    same_as_bnb(weight.view(81, columns), double=False)


def test_the_tables_are_those_of_bitsandbytes() -> None:
    _, state = in_bnb(weights(4, 64), True, 64)
    same(SCALES, state.state2.code)
    assert state.state2.blocksize == NESTED


@DOUBLE
def test_blocks_of_zeros_stay_zeros_and_others_come_near(double: bool) -> None:
    weight = weights(8, 96)
    weight[2:5] = 0  # four whole blocks, and shares of two
    weight[7, -40:] = 0
    same_as_bnb(weight, double)
    same_as_bnb(weight[:, :90].contiguous(), double)  # the last block is not whole
    found = nf4_rounded(weight, double)
    # Half the widest gap of the code, (1 − 0.696)/2, of each block's largest number; a scale that
    # is quantised moves by half the widest gap of its code, 1/128 of the scales' own spread.
    largest = weight.view(-1, 64).abs().amax(1)
    moved = (largest - largest.mean()).abs().max() / 128 if double else 0.0
    bound = (0.152 * largest + moved).repeat_interleave(64).view(8, 96)
    assert ((found - weight).abs() <= bound).all()
    assert (found - weight).abs().max() > 0.05 * largest.max()
    if not double:
        assert not found[2:5].any()


def test_what_is_rounded_once_stays_as_it_is() -> None:
    once = nf4_rounded(weights(23, 50), double_quant=False)
    same(nf4_rounded(once, double_quant=False), once)


def test_a_block_that_bitsandbytes_does_not_open_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"^blocksize: is 48, expected one of \(32, 64, "):
        encode_nf4(weights(4, 96), blocksize=48)


def test_scales_that_a_cast_has_rounded_are_refused() -> None:
    layer = Nf4Linear(encode_nf4(weights(7, 64))).to(torch.bfloat16)
    message = r"^NF4: its scales are torch.bfloat16, torch.float32 was expected\."
    with pytest.raises(TrainingError, match=message):
        layer(torch.ones(1, 64))


# Layers. No size below is that of the weight, so that a tensor of its size is the weight.
IN, OUT, TOKENS = 70, 46, 81


class Twins(nn.Module):
    """A layer in NF4, or the same one in float32."""

    def __init__(self, coded: bool, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.query = nn.Linear(IN, OUT, bias=bias)
        quantize_linears(self, ["query"])
        if not coded:
            plain = nn.Linear(IN, OUT, bias=bias)
            plain.weight.data = self.query.weight
            plain.bias = self.query.bias
            self.query = plain


def inputs() -> Tensor:
    random = torch.Generator().manual_seed(2)
    return torch.randn(3, TOKENS // 3, IN, generator=random, requires_grad=True)


def run(layer: nn.Module, x: Tensor) -> tuple[Tensor, list[int]]:
    """The output, after the backward pass of a loss, and the sizes of what was saved for it."""
    sizes: list[int] = []

    def saved(tensor: Tensor) -> Tensor:
        sizes.append(tensor.untyped_storage().nbytes() // tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(saved, lambda tensor: tensor):
        y = layer(x)
    gradient = torch.randn(y.shape, generator=torch.Generator().manual_seed(3))
    y.backward(gradient)
    return y, sizes


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_is_a_linear_layer_of_what_it_decodes_to(bias: bool) -> None:
    coded, plain = (Twins(coded, bias).query for coded in (True, False))
    x, their_x = inputs(), inputs()
    y, sizes = run(coded, x)
    their_y, their_sizes = run(plain, their_x)
    same(y, their_y)
    same(x.grad, their_x.grad)
    assert sizes == []
    assert OUT * IN in their_sizes  # what the measurement can see
    assert (coded.in_features, coded.out_features) == (IN, OUT)
    assert [p.dtype for p in coded.parameters()][:2] == [torch.uint8, torch.uint8]


def test_under_autocast_gradients_are_those_of_a_linear_layer() -> None:
    coded, plain = Twins(True).query, Twins(False).query
    x, their_x = inputs(), inputs()
    with torch.autocast("cpu", torch.bfloat16):
        y, their_y = coded(x), plain(their_x)
    same(y, their_y)
    y.float().square().sum().backward()
    their_y.float().square().sum().backward()
    same(x.grad, their_x.grad)


def adapted(coded: bool, adapter: Adapter, moved: bool = True) -> AdaptedLayer:
    model = Twins(coded)
    torch.manual_seed(4)
    adapt(model, {"query": adapter})
    layer = adapted_layers(model)["query"]
    for parameter in layer.parameters():
        if parameter.requires_grad and moved:
            parameter.data += 0.3 * parameter.abs().mean() + 0.1 * torch.randn_like(parameter)
    return layer


METHODS = pytest.mark.parametrize("method", ["lora", "dora", "vera", "dvora", "magnitude"])
FORMS = pytest.mark.parametrize("form", ["activation", "folded"])


@METHODS
@FORMS
@pytest.mark.parametrize("gradient", ["detached", "exact"])
def test_adapters_train_as_on_the_decoded_weight_and_keep_nothing_of_its_size(
    method: Any, form: Any, gradient: Any
) -> None:
    adapter = Adapter(method, 5, 15.0, norm_gradient=gradient, form=form)
    ours, theirs = adapted(True, adapter), adapted(False, adapter)
    x, their_x = inputs(), inputs()
    y, sizes = run(ours, x)
    their_y, _ = run(theirs, their_x)
    pairs = [(y, their_y), (x.grad, their_x.grad), (ours.merged(), theirs.merged())]
    names = {name: p for name, p in theirs.named_parameters() if p.requires_grad}
    assert names
    pairs += [(ours.get_parameter(name).grad, p.grad) for name, p in names.items()]
    for mine, other in pairs:
        bound = ROUNDING * other.abs().max().item()
        torch.testing.assert_close(mine, other, rtol=0, atol=bound)
    assert OUT * IN not in sizes


@METHODS
@FORMS
def test_training_starts_from_the_decoded_weight_to_the_last_bit(method: Any, form: Any) -> None:
    layer = adapted(True, Adapter(method, 5, 15.0, form=form), moved=False)
    same(layer.merged(), layer.base.weight)
    x = inputs()
    start = layer.base(x) if form == "folded" else nn.functional.linear(x, layer.base.weight)
    end = layer(x) if form == "folded" else layer(x) - layer.base.bias
    torch.testing.assert_close(end, start, rtol=0, atol=ROUNDING * start.abs().max().item())


@pytest.mark.parametrize("axis", ["output", "input"])
def test_dropout_and_magnitudes_of_inputs_work_on_codes(axis: Any) -> None:
    adapter = Adapter("dora", 5, 15.0, dropout=0.3, axis=axis)
    outputs = []
    for coded in (True, False):
        layer = adapted(coded, adapter).train()
        torch.manual_seed(6)
        outputs.append(layer(inputs()))
    same(*outputs)


# Models.
@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (
            ["query", "key"],
            "targets: 'key' is the name of no module. The model's linear layers are",
        ),
        (["norm"], "norm: is a LayerNorm, a Linear layer was expected. "),
        (["query", "nan"], "nan.weight: has numbers that are not finite, expected none. "),
    ],
)
def test_bad_targets_are_one_line_and_leave_the_model_alone(
    targets: list[str], message: str
) -> None:
    model = nn.ModuleDict(
        {n: nn.Linear(6, 5) for n in ("query", "nan")} | {"norm": nn.LayerNorm(5)}
    )
    model["nan"].weight.data[2, 3] = float("nan")
    with pytest.raises(TrainingError) as caught:
        quantize_linears(model, targets)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert isinstance(model["query"], nn.Linear)


def test_layers_are_quantised_without_memory_for_their_numbers() -> None:
    with torch.device("meta"):
        model = nn.ModuleDict({"query": nn.Linear(IN, OUT)})
    quantize_linears(model, ["query"])
    assert model["query"].codes.shape == (IN * OUT // 2, 1)
    assert {p.device.type for p in model.parameters()} == {"meta"}


def tiny_bert() -> BertModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 2}
    config = BertConfig(vocab_size=50, num_attention_heads=2, **sizes)
    return BertModel(config, add_pooling_layer=False).eval()


def batches() -> Iterator[Tensor]:
    random = torch.Generator().manual_seed(5)
    while True:
        yield torch.randint(0, 50, (4, 6), generator=random)


def spread(model: BertModel, ids: Tensor) -> Tensor:
    return (model(ids).last_hidden_state[..., :5] - 1).square().mean()


TARGETS = ("query", "value")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BertModel]:
    """QDoRA on an NF4 base, trained for some steps, and every base beside it."""
    folder = tmp_path_factory.mktemp("qdora")
    model = tiny_bert()
    save_full(model, None, folder / "base")
    quantize_linears(model, TARGETS)
    save_nf4_base(model, folder / "nf4")
    adapters = {name: Adapter("dora", 3, 7.0) for name in TARGETS}
    run = Settings(
        "dora", "base", lr=0.02, steps=6, save_steps=(6,), adapters=adapters, progress=False
    )
    losses = [step.loss for step in train(model, batches(), spread, run, folder / "run")]
    assert losses[-1] < losses[0]
    tensors = load_file(folder / "base/model.safetensors")
    for name, layer in adapted_layers(model).items():
        tensors[f"{name}.weight"] = layer.base.weight
    (folder / "dense").mkdir()
    save_file(tensors, folder / "dense/model.safetensors")
    return folder, model


FIGURES = ["delta_magnitude", "delta_direction", "signed_delta_magnitude"]


def figures(results: wdecomp.Results, run: str) -> Any:
    modules = results.modules
    rows = modules[(modules["run"] == run) & (modules["axis"] == "output")]
    return rows.set_index("parameter")[FIGURES].sort_index()


def formed(w0: Tensor, w: Tensor) -> list[float]:
    """ΔM, ΔD and signed Δm of Eqs. (3), (4), written out in float64."""
    w0, w = w0.double(), w.double()
    m0, m = row_norm(w0), row_norm(w)
    away = (w / m.unsqueeze(1) - w0 / m0.unsqueeze(1)).square().sum(1) / 2
    return [(m - m0).abs().mean().item(), away.mean().item(), (m - m0).mean().item()]


def test_compare_reads_a_qdora_against_either_base(trained: tuple[Path, BertModel]) -> None:
    folder, model = trained
    adapter = folder / "run/checkpoint-6"
    both = wdecomp.compare(folder / "base", adapter, base_dequantized=folder / "nf4")
    assert set(both.modules["run"]) == {"run", "quantization", "run+quantization"}
    on_dense = figures(wdecomp.compare(folder / "dense", adapter), "run")
    assert len(on_dense) == 2 * len(TARGETS)
    assert_allclose(figures(both, "run"), on_dense, rtol=1e-6)
    full = load_file(folder / "base/model.safetensors")
    for layer_name, layer in adapted_layers(model).items():
        key = f"{layer_name}.weight"
        w0, w, merged = layer.base.weight, full[key], layer.merged()
        # 1e-5: the merged weight is rounded to float32, on changes of some hundredths of it.
        assert_allclose(on_dense.loc[key], formed(w0, merged), rtol=1e-5, atol=1e-9)
        assert_allclose(figures(both, "quantization").loc[key], formed(w, w0), rtol=1e-5)
        total = figures(both, "run+quantization").loc[key]
        assert_allclose(total, formed(w, merged), rtol=1e-5, atol=1e-9)


def test_the_base_is_stored_as_bitsandbytes_stores_it(trained: tuple[Path, BertModel]) -> None:
    folder, _ = trained
    found = load_file(folder / "nf4/model.safetensors")
    expected = dict(tiny_bert().state_dict())
    for key in [key for key in expected if key.endswith(("query.weight", "value.weight"))]:
        codes, state = in_bnb(expected[key], True, 64)
        packed = state.as_dict(packed=True)
        expected |= {key: codes} | {f"{key}.{part}": tensor for part, tensor in packed.items()}
    assert set(found) == set(expected)
    for key, tensor in expected.items():
        if "quant_state" in key:
            assert json.loads(bytes(found[key])) == json.loads(bytes(tensor))
        else:
            same(found[key], tensor)


@pytest.mark.filterwarnings("ignore")  # of bitsandbytes and torch, while they load
def test_transformers_opens_the_base(trained: tuple[Path, BertModel]) -> None:
    folder, model = trained
    again = AutoModel.from_pretrained(folder / "nf4", add_pooling_layer=False)
    for name, layer in adapted_layers(model).items():
        theirs = again.get_submodule(name).weight
        same(decoded_by_bnb(theirs.data, theirs.quant_state), layer.base.weight)
    dense = again.get_submodule("encoder.layer.1.intermediate.dense")
    assert type(dense) is nn.Linear  # not quantised now
    same(dense.weight.data, model.get_parameter("encoder.layer.1.intermediate.dense.weight").data)


def test_the_base_under_adapters_is_the_base(
    trained: tuple[Path, BertModel], tmp_path: Path
) -> None:
    folder, model = trained
    save_nf4_base(model, tmp_path)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / name).read_bytes() == (folder / "nf4" / name).read_bytes()


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    model = tiny_bert()
    layers = model.encoder.layer
    layers[1].output.dense.weight = layers[0].output.dense.weight
    quantize_linears(model, ["query"], double_quant=False)
    save_nf4_base(model, tmp_path)
    found = load_file(tmp_path / "model.safetensors")
    assert "encoder.layer.0.output.dense.weight" in found
    assert "encoder.layer.1.output.dense.weight" not in found
    assert not any("nested" in key for key in found)


def test_a_model_without_codes_is_not_saved_as_one(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no layer is in NF4, so there is nothing to save"):
        save_nf4_base(tiny_bert(), tmp_path / "none")
    assert not (tmp_path / "none").exists()
