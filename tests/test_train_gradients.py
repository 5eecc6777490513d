"""Section 4 against autograd in float64, and covariances against the sums that define them."""

from collections.abc import Callable
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

from wdecomp.demo.encoder import TokenPairs, contrastive_loss, load_encoder, packaged_model
from wdecomp.errors import TrainingError
from wdecomp.train import AdaptedLayer, Adapter, adapt
from wdecomp.train import gradients as analysis
from wdecomp.train.gradients import (
    covariance_report,
    decomposition,
    direction_gradient,
    gradient_report,
    magnitude_gradient,
    trace_squares,
    weight_gradients,
)

# float64, relative to the largest element: sums of up to 1536 terms, in another order than
# autograd's, through six layers of an encoder. "Must show" allows it as well.
TIGHT = 1e-12
# Sums of at most 384 terms of one row.
ROUNDING = 1e-14
LAYERS = [f"encoder.layer.{i}.attention.self.{kind}" for i in (0, 5) for kind in ("query", "value")]
WIDE = "encoder.layer.3.intermediate.dense"  # (1536, 384)


def assert_near(ours: Tensor, theirs: Tensor, bound: float = TIGHT) -> None:
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, rtol=0, atol=bound * theirs.abs().max().item())


@pytest.fixture(scope="module")
def encoder() -> Any:
    return load_encoder(packaged_model()).double()


@pytest.fixture(scope="module")
def batches() -> list[TokenPairs]:
    """Two batches of token ids, of unequal lengths."""
    rng = np.random.default_rng(7)

    def sentences(count: int) -> list[list[int]]:
        return [rng.integers(2000, 29000, rng.integers(4, 8)).tolist() for _ in range(count)]

    return [TokenPairs(sentences(n), sentences(n), 0) for n in (4, 3)]


class Reparametrised(nn.Module):
    """W = m · V/‖V‖; V is what torch keeps as `original`."""

    def __init__(self, m: Tensor, detached: bool) -> None:
        super().__init__()
        self.m, self.detached = nn.Parameter(m), detached

    def forward(self, v: Tensor) -> Tensor:
        norm = v.norm(dim=1)
        return (self.m / (norm.detach() if self.detached else norm))[:, None] * v


def by_autograd(model: Any, loss: Callable[[], Tensor], states: dict[str, Any], detached: bool):
    """∂L/∂V and ∂L/∂m of layers whose weights are m · V/‖V‖, by torch alone."""
    parts = {}
    for name, (v, m) in states.items():
        layer = model.get_submodule(name)
        layer.weight.data.copy_(v)
        parametrize.register_parametrization(
            layer, "weight", Reparametrised(m.clone(), detached), unsafe=True
        )
        parts[name] = layer.parametrizations.weight
    tensors = [t for part in parts.values() for t in (part.original, part[0].m)]
    found = torch.autograd.grad(loss(), tensors)
    for name in states:
        parametrize.remove_parametrizations(
            model.get_submodule(name), "weight", leave_parametrized=True
        )
    return dict(zip(states, zip(found[::2], found[1::2], strict=True), strict=True))


@pytest.fixture(scope="module")
def measured(encoder: Any, batches: list[TokenPairs]) -> dict[str, dict[str, Tensor]]:
    """Autograd's gradients of V and m, in both forms, and the report's G, away from m = ‖V‖."""
    torch.manual_seed(3)
    names = [*LAYERS, WIDE]
    before = {n: encoder.get_submodule(n).weight.detach().clone() for n in names}

    def stretch(w: Tensor) -> Tensor:
        return 0.5 + torch.rand(len(w), dtype=torch.float64)

    states = {n: (w * stretch(w)[:, None], w.norm(dim=1) * stretch(w)) for n, w in before.items()}

    def loss() -> Tensor:
        return sum(contrastive_loss(encoder, batch) for batch in batches) / len(batches)

    exact = by_autograd(encoder, loss, states, detached=False)
    detached = by_autograd(encoder, loss, states, detached=True)
    assert encoder.get_submodule(WIDE).weight.ne(before[WIDE]).any()  # still m · V/‖V‖
    g = weight_gradients(encoder, contrastive_loss, batches, names)
    report = gradient_report(encoder, contrastive_loss, batches, names)
    for name, weight in before.items():
        encoder.get_submodule(name).weight.data.copy_(weight)
    return {
        name: {"g": g[name], "v": v, "m": m, "exact": exact[name][0], "dm": exact[name][1]}
        | {"detached": detached[name][0], "dm_detached": detached[name][1]}
        | {"table": report.columns[report.columns["module"] == name].reset_index(drop=True)}
        for name, (v, m) in states.items()
    }


@pytest.mark.parametrize("name", [*LAYERS, WIDE])
def test_equations_6_and_7_are_what_autograd_finds(measured: Any, name: str) -> None:
    of = measured[name]
    assert_near(direction_gradient(of["g"], of["v"], of["m"]), of["exact"])
    assert_near(direction_gradient(of["g"], of["v"], of["m"], "detached"), of["detached"])
    assert_near(magnitude_gradient(of["g"], of["v"]), of["dm"])
    assert (of["exact"] - of["detached"]).norm() > 1e-3 * of["exact"].norm()  # two equations


@pytest.mark.parametrize("name", [*LAYERS, WIDE])
def test_detaching_the_norm_leaves_the_magnitudes_gradient(measured: Any, name: str) -> None:
    assert_near(measured[name]["dm_detached"], measured[name]["dm"], ROUNDING)


@pytest.mark.parametrize("name", [*LAYERS, WIDE])
def test_the_exact_gradient_is_perpendicular_to_its_row(measured: Any, name: str) -> None:
    of = measured[name]
    ours = direction_gradient(of["g"], of["v"], of["m"])
    cosines = nn.functional.cosine_similarity(ours, of["v"], dim=1, eps=0)
    assert cosines.abs().max() < ROUNDING
    loose = nn.functional.cosine_similarity(of["detached"], of["v"], dim=1, eps=0)
    assert loose.abs().max() > 1e-3


@pytest.mark.parametrize("name", [*LAYERS, WIDE])
def test_the_tables_figures_are_those_of_equations_8_and_9(measured: Any, name: str) -> None:
    # The table decomposes W on the fly: V = W, m = ‖W‖. ∂L/∂m and the cosine are those of any V.
    of, table = measured[name], measured[name]["table"]
    w = of["m"][:, None] * of["v"] / of["v"].norm(dim=1, keepdim=True)

    def column(key: str) -> Tensor:
        return torch.tensor(table[key].to_numpy())

    cosine = nn.functional.cosine_similarity(of["g"], w, dim=1, eps=0)
    assert_near(column("abs_cosine"), cosine.abs())
    assert_near(column("magnitude_gradient"), of["dm"])
    assert_near(column("magnitude_gradient").abs(), column("gradient_norm") * cosine.abs())
    assert_near(column("magnitude"), of["m"])
    assert_near(column("removed"), cosine.square())
    assert_near(column("cosine"), (1 - cosine.square()).sqrt())
    scale = of["m"] / of["v"].norm(dim=1)  # from ∂L/∂V to ∂L/∂W's share of it
    assert_near(column("direction_gradient"), (of["exact"] / scale[:, None]).norm(dim=1))
    assert_near(column("detached_gradient"), column("gradient_norm"))


def test_correlations_are_scipys_and_removed_is_of_the_whole_matrix(
    encoder: Any, batches: list[TokenPairs]
) -> None:
    report = gradient_report(encoder, contrastive_loss, batches, LAYERS[:2])
    assert list(report.modules["module"]) == LAYERS[:2]
    for row in report.modules.to_dict("records"):
        table = report.columns[report.columns["module"] == row["module"]]
        of_m = table["magnitude_gradient"].abs()
        for name, key in (("", "abs_cosine"), ("_norm", "gradient_norm")):
            assert row[f"pearson{name}"] == pytest.approx(
                scipy.stats.pearsonr(table[key], of_m).statistic, abs=TIGHT
            )
            assert row[f"spearman{name}"] == pytest.approx(
                scipy.stats.spearmanr(table[key], of_m).statistic, abs=TIGHT
            )
        left, whole = (table[f"{n}_gradient"].pow(2).sum() for n in ("direction", "detached"))
        assert row["removed"] == pytest.approx(1 - left / whole, abs=TIGHT)
        assert row["cosine"] == table["cosine"].min()
        assert row["columns"] == 384
    assert f"{report.modules['spearman'].max():.2f}" in report.finding


def turned(theta: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """Gradients of length 1 at these angles to w, and ΔD of w + step · gradient, as columns."""
    w = torch.tensor([2.0, -1.0, 2.0], dtype=torch.float64)  # ‖w‖ = 3
    across = torch.tensor([1.0, 4.0, 1.0], dtype=torch.float64) / 18**0.5
    g = theta.cos()[:, None] * w / 3 + theta.sin()[:, None] * across
    return g, 1 - nn.functional.cosine_similarity(w + step * g, w.expand_as(g), dim=1)


def test_equation_10_the_smaller_turn_has_the_larger_magnitude_gradient() -> None:
    g, delta_direction = turned(torch.linspace(0, torch.pi / 2, 60, dtype=torch.float64), 0.6)
    of_m = magnitude_gradient(g, torch.tensor([[2.0, -1.0, 2.0]], dtype=torch.float64)).abs()
    assert (delta_direction.diff() > 0).all()
    assert (of_m.diff() < 0).all()
    # A step against g shortens w: beyond cos(Δw, w) = −‖Δw‖/‖w‖ = −0.2 the order turns round.
    angles = torch.acos(torch.tensor(0.2, dtype=torch.float64)) * torch.linspace(0, 1, 30)
    assert (turned(angles, -0.6)[1].diff() > 0).all()
    beyond = torch.linspace(angles[-1].item(), torch.pi / 2, 30, dtype=torch.float64)
    assert (turned(beyond, -0.6)[1].diff() < 0).all()


IN, OUT, RANK = 37, 23, 5


class Block(nn.Module):
    """Layers of every shape, none of them square."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, IN)
        self.query = nn.Linear(IN, OUT)
        self.turned = Conv1D(19, OUT)
        self.pixels = nn.Conv2d(19, 6, (2, 3))
        self.unused = nn.Linear(3, 4)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.turned(torch.tanh(self.query(self.words(ids))))
        return self.pixels(torch.tanh(hidden).movedim(-1, 1)).square().mean()


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    return model(ids)


def ids(count: int) -> list[Tensor]:
    torch.manual_seed(5)
    return [torch.randint(0, 11, (2, 6, 7)) for _ in range(count)]


def block(dtype: torch.dtype = torch.float64) -> Block:
    torch.manual_seed(6)
    model = Block().to(dtype)
    model.turned.bias.data.normal_()  # Conv1D's starts at zero
    return model


def moved(adapters: dict[str, Adapter], dtype: torch.dtype = torch.float64) -> Block:
    """The block with adapters that have left their initial state."""
    model = block(dtype)
    adapt(model, adapters)
    for layer in model.modules():
        if isinstance(layer, AdaptedLayer):
            layer.lora_B.data.normal_(std=0.2)
            if layer.magnitude is not None:
                layer.magnitude.data *= 0.5 + torch.rand_like(layer.magnitude)
    return model


ADAPTED = pytest.mark.parametrize(
    ("target", "form", "axis"),
    [
        ("query", "activation", "output"),
        ("query", "folded", "output"),
        ("query", "activation", "input"),
        ("turned", "activation", "output"),
        ("turned", "folded", "output"),
        ("turned", "activation", "input"),
        ("words", "activation", "output"),
        ("pixels", "activation", "output"),
    ],
)


@ADAPTED
@pytest.mark.parametrize("norm_gradient", ["exact", "detached"])
@pytest.mark.parametrize("method", ["dora", "lora"])
def test_adapters_are_trained_by_the_reports_gradient(
    target: str, form: Any, axis: Any, norm_gradient: Any, method: Any
) -> None:
    adapter = Adapter(method, RANK, 15, norm_gradient=norm_gradient, axis=axis, form=form)
    model, (batch,) = moved({target: adapter}), ids(1)
    layer: Any = model.get_submodule(target)
    trained = [p for p in (layer.lora_A, layer.lora_B, layer.magnitude) if p is not None]
    found = torch.autograd.grad(loss_of(model, batch), trained)

    v, m, along = decomposition(layer, axis)
    assert along == axis
    g = weight_gradients(model, loss_of, [batch])[target]
    g = g.T if axis == "input" else g
    assert (v.norm(dim=1) - m).norm() > 1e-2 * m.norm() or method == "lora"
    dv = direction_gradient(g, v, m, norm_gradient) if method == "dora" else g
    dv = dv.T if axis == "input" else dv
    a, b, s = layer.lora_A.detach(), layer.lora_B.detach(), 15 / RANK
    assert_near(found[0], s * b.T @ dv)
    assert_near(found[1], s * dv @ a.T)
    if method == "dora":
        assert_near(found[2], magnitude_gradient(g, v))


def test_a_report_leaves_the_model_as_it_was() -> None:
    model = moved({"query": Adapter("dora", RANK, 15)})
    before = {name: (p.clone(), p.requires_grad) for name, p in model.named_parameters()}
    kept = torch.ones(OUT, IN, dtype=torch.float64)
    model.query.kept_weight = kept
    report = gradient_report(model, loss_of, ids(2), ["query", "turned"])
    assert model.query.kept_weight is kept
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name][0])
        assert parameter.requires_grad == before[name][1]
        assert parameter.grad is None
    assert list(report.modules["module"]) == ["query", "turned"]
    magnitudes = report.columns.loc[report.columns["module"] == "query", "magnitude"]
    np.testing.assert_array_equal(magnitudes, model.query.magnitude.detach())
    with pytest.raises(TrainingError):
        gradient_report(model, lambda model, batch: model(batch) * np.nan, ids(1), ["turned"])
    assert not model.turned.weight.requires_grad


def test_without_targets_it_is_every_adapted_layer_or_else_every_linear_one() -> None:
    report = gradient_report(block(), loss_of, ids(1))
    assert list(report.modules["module"]) == ["query", "turned"]
    assert report.unreached == ("unused",)
    report = gradient_report(moved({"turned": Adapter("dora", 2)}), loss_of, ids(1))
    assert list(report.modules["module"]) == ["turned"]


def test_a_gradient_is_of_the_mean_loss_and_a_row_without_direction_is_nan() -> None:
    model, batches = block(), ids(3)
    model.query.weight.data[4] = 0
    g = weight_gradients(model, loss_of, batches, ["query", "words"])
    mean = sum(loss_of(model, batch) for batch in batches) / 3
    expected = torch.autograd.grad(mean, [model.query.weight, model.words.weight])
    assert_near(g["query"], expected[0])
    assert_near(g["words"], expected[1].T)
    report = gradient_report(model, loss_of, batches, ["query"])
    assert np.flatnonzero(report.columns["abs_cosine"].isna()).tolist() == [4]
    assert report.modules["columns"].tolist() == [OUT - 1]
    assert report.modules.notna().all(axis=None)


def test_bfloat16_gradients_are_summed_in_float32() -> None:
    adapter = {"query": Adapter("dora", RANK, 15)}
    wide, narrow = moved(adapter), moved(adapter, torch.bfloat16)
    narrow.load_state_dict(wide.state_dict())
    g = weight_gradients(narrow, loss_of, ids(2), ["query", "turned"])
    for name, theirs in weight_gradients(wide, loss_of, ids(2), ["query", "turned"]).items():
        assert g[name].dtype == torch.float32
        assert (g[name] - theirs).norm() < 0.03 * theirs.norm()  # 8 bits, through three layers


# Covariances


def by_definition(x: np.ndarray) -> tuple[float, float]:
    """(tr Σ², (tr Σ)²): means over all ordered choices of four of the samples."""
    squares, square = [], []
    for i, j, k, l in permutations(range(len(x)), 4):  # noqa: E741
        first, second = x[i] - x[j], x[k] - x[l]
        squares.append((first @ second) ** 2 / 4)
        square.append((first @ first) * (second @ second) / 4)
    return float(np.mean(squares)), float(np.mean(square))


def test_squared_traces_are_the_u_statistics_that_define_them() -> None:
    x = np.random.default_rng(1).exponential(size=(7, 3)) + 2.0
    found = trace_squares(torch.tensor(x @ x.T))
    np.testing.assert_allclose(found, by_definition(x), rtol=1e-11)  # the mean is 2 deviations


def test_squared_traces_of_very_few_samples_have_no_bias() -> None:
    points = torch.tensor([[0.0, 1, 5], [2, 0, -1], [4, 4, 0]], dtype=torch.float64)
    every = torch.cartesian_prod(*[torch.arange(3)] * 5)  # all samples of 5, equally likely
    x = points[every]
    squares, square = trace_squares(x @ x.mT)
    sigma = torch.cov(points.T, correction=0)
    assert squares.mean().item() == pytest.approx((sigma @ sigma).trace().item(), rel=1e-12)
    assert square.mean().item() == pytest.approx(sigma.trace().item() ** 2, rel=1e-12)


def distance(x: Tensor) -> float:
    squares, square = by_definition(x.numpy())
    return x.shape[1] * squares / square - 1


@pytest.mark.parametrize("axis", ["output", "input"])
def test_distances_are_those_of_autograds_gradients(axis: Any) -> None:
    model, batches = moved({"query": Adapter("dora", RANK, 15, axis=axis)}), ids(6)
    v, m, _ = decomposition(model.query)
    count, picked = len(m), [0, (len(m) - 1) // 2, len(m) - 1]
    report = covariance_report(model, loss_of, batches, columns=3)
    assert report.columns["column"].tolist() == picked
    g = torch.stack([weight_gradients(model, loss_of, [b])["query"] for b in batches])
    g = g.mT if axis == "input" else g
    unit = v / v.norm(dim=1, keepdim=True)
    detached = g * (m / v.norm(dim=1))[:, None]
    dv = detached - (detached * unit).sum(-1, keepdim=True) * unit
    for row, j in zip(report.columns.to_dict("records"), picked, strict=True):
        assert row["distance_weight"] == pytest.approx(distance(g[:, j]), rel=1e-9)
        assert row["distance_direction"] == pytest.approx(distance(dv[:, j]), rel=1e-9)
        left = dv[:, j].var(0).sum() / detached[:, j].var(0).sum()
        assert row["removed"] == pytest.approx(1 - left.item(), abs=1e-9)
    (module,) = report.modules.to_dict("records")
    assert (module["samples"], module["columns"], module["dimension"]) == (6, 3, v.shape[1])
    for form, x in (("weight", g), ("detached", detached), ("direction", dv)):
        joint = distance(x[:, picked].flatten(1))
        assert module[f"joint_distance_{form}"] == pytest.approx(joint, rel=1e-9)
    assert count == (IN if axis == "input" else OUT)


SPECTRUM = torch.tensor([10.0, 1, 1, 1, 1, 1], dtype=torch.float64)  # deviations of an input


def inputs(count: int, deviations: Tensor) -> list[Tensor]:
    torch.manual_seed(8)
    return list(torch.randn(count, len(deviations), dtype=torch.float64) * deviations)


def linear(weight: Tensor) -> nn.Module:
    """Every row of G is the input."""
    layer = nn.Linear(weight.shape[1], len(weight), bias=False)
    layer.weight = nn.Parameter(weight)
    return nn.ModuleDict({"query": layer})


def summed(model: Any, x: Tensor) -> Tensor:
    return model["query"](x).sum()


def true_distance(variances: Tensor) -> float:
    return (len(variances) * variances.square().sum() / variances.sum() ** 2).item() - 1


@pytest.mark.parametrize(("along", "verdict"), [(0, "closer"), (1, "farther")])
def test_the_claim_depends_on_where_the_weight_points(along: int, verdict: str) -> None:
    weight = torch.zeros(4, 6, dtype=torch.float64)
    weight[:, along] = torch.tensor([0.5, 1.0, -2.0, 3.0])
    report = covariance_report(linear(weight), summed, inputs(300, SPECTRUM))
    (row,) = report.modules.to_dict("records")
    variances = SPECTRUM.square()
    left = variances.clone()
    left[along] = 0
    truth = true_distance(variances), true_distance(left)
    assert (truth[1] < truth[0]) == (verdict == "closer")
    assert row["verdict"] == verdict
    # An error is of this sample's difference; three of them, and the ratio's bias of 1/300.
    assert row["difference"] == pytest.approx(truth[1] - truth[0], abs=3 * row["error"] + 0.01)
    assert row["distance_weight"] == pytest.approx(truth[0], rel=0.1)
    assert row["distance_direction"] == pytest.approx(truth[1], rel=0.1)
    assert f"{verdict} " in report.finding


def test_the_jackknife_is_as_wide_as_the_differences_scatter() -> None:
    weight = torch.randn(1, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    every = inputs(40 * 25, SPECTRUM)
    rows = [
        covariance_report(linear(weight), summed, every[i : i + 25]).modules.iloc[0]
        for i in range(0, len(every), 25)
    ]
    scatter = np.std([row["difference"] for row in rows], ddof=1)
    errors = np.sqrt(np.mean([row["error"] ** 2 for row in rows]))
    assert 0.6 < errors / scatter < 1.6  # 40 of them give a scatter to within an eighth


def test_what_cannot_be_told_is_said_to_be_undecided() -> None:
    # An isotropic Σ of 6 samples in 64 dimensions: its own covariance is at a distance of 12.
    weight = torch.randn(3, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    x = inputs(6, torch.ones(64, dtype=torch.float64))
    report = covariance_report(linear(weight), summed, x)
    (row,) = report.modules.to_dict("records")
    assert abs(row["distance_weight"]) < 2
    assert row["verdict"] == "undecided"
    sample = torch.stack(x).T.cov()
    assert true_distance(torch.linalg.eigvalsh(sample)) > 10


def test_columns_that_never_change_or_have_no_direction_are_left_out() -> None:
    weight = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    weight[1] = 0
    report = covariance_report(
        linear(weight), lambda m, x: m["query"](x)[:3].sum(), inputs(9, SPECTRUM)
    )
    missing = report.columns["distance_direction"].isna().tolist()
    assert missing == [False, True, False, True]
    assert report.modules[["difference", "error", "joint_difference"]].notna().all(axis=None)


# What cannot be measured


def in_peft() -> nn.Module:
    return get_peft_model(block(), LoraConfig(r=2, target_modules=["query"]))


def computed() -> nn.Module:
    model = block()
    parametrize.register_parametrization(
        model.query, "weight", Reparametrised(torch.ones(OUT), True)
    )
    return model


@pytest.mark.parametrize(
    ("model", "loss", "count", "targets", "message"),
    [
        (block, loss_of, 1, ["nosuch"], "'nosuch' is the name of no module"),
        (block, loss_of, 1, [""], "'' is the name of no module"),
        (in_peft, loss_of, 1, None, "query: is adapted by PEFT"),
        (computed, loss_of, 1, ["query"], "query: its weight is torch.float64 or made from"),
        (lambda: nn.Sequential(nn.ReLU()), loss_of, 1, None, "model: has no Linear or Conv1D"),
        (block, loss_of, 1, ["words", "pixels", "query.bias"], "'query.bias' is the name of no"),
        (lambda: moved({"query": Adapter("dora")}), loss_of, 1, ["base"], "'base' is the name of"),
        (block, loss_of, 0, None, "batches: are none"),
        (block, lambda m, x: m(x) * np.inf, 1, None, "batch 1: the loss is inf"),
        (block, lambda m, x: m.words(x), 1, None, r"batch 1: the loss has shape \(2, 6, 7, 37\)"),
        (block, lambda m, x: m(x).detach(), 1, None, "batch 1: the loss depends on no"),
        (block, lambda m, x: m.words(x).sum(), 1, ["query"], "loss: depends on none of"),
        (block, lambda m, x: (0 * m(x)).sqrt(), 1, ["query"], "batch 1: the gradient of query"),
    ],
)
def test_what_cannot_be_measured_is_named_in_one_line(
    model: Any, loss: Any, count: int, targets: Any, message: str
) -> None:
    with pytest.raises(TrainingError, match=message) as error:
        gradient_report(model(), loss, ids(count), targets)
    assert "\n" not in str(error.value)


def test_a_covariance_needs_samples() -> None:
    with pytest.raises(TrainingError, match="query: has the gradients of 4 batches, at least 5"):
        covariance_report(block(), loss_of, ids(4), ["query"])


def test_pandas_is_imported_where_a_table_is_made() -> None:
    assert not hasattr(analysis, "pd")
