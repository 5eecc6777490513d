"""The covariance of gradients, before the decomposition and after it (section 4.2)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from wdecomp.errors import TrainingError
from wdecomp.train.gradients.equations import direction_gradient
from wdecomp.train.gradients.measuring import (
    Axis,
    Batch,
    Model,
    Report,
    Row,
    axis_of,
    decomposition,
    double,
    gradients_of_batches,
    layers_of,
    report_of,
    spread,
    turned,
    watched,
)

if TYPE_CHECKING:
    import pandas as pd

FEWEST = 5  # samples: an unbiased tr Σ² takes 4, the jackknife one more
GROUPS = 20  # of samples, of which the jackknife leaves out each in turn


def covariance_report(
    model: Model,
    loss: Callable[[Model, Batch], Tensor],
    batches: Iterable[Batch],
    targets: Sequence[str] | None = None,
    axis: Axis = "output",
    columns: int = 32,
) -> Report:
    """Whether Eq. (6) brings a gradient's covariance closer to identity, as section 4.2 says.

    The gradient of one batch is one sample. Σ is the covariance of a column's g (`weight`), or of
    the same samples' exact ∂L/∂V (`direction`), of k numbers. Its distance is

        ‖k·Σ/tr Σ − I‖_F² / k = k·tr Σ²/(tr Σ)² − 1

    0 for a multiple of the identity, k − 1 for rank one; k/(1 + distance) is known as participation
    ratio. A covariance of fewer samples than k is far from identity, whatever Σ is. So tr Σ² and
    (tr Σ)² are estimated without bias, for any distribution (U-statistics: Himeno and Yamada
    2014). What bias their ratio has, of the order 1/samples, is much the same on both sides; the
    figures themselves are rough below some tens of samples, and noise may make one negative. Σ of
    ∂L/∂V is zero along v, so that its distance is at least 1/(k − 1).

    Per column: `distance_weight`, `distance_direction`, and `removed`, the share of tr Σ that
    the projection takes (1/k of an isotropic Σ). NaN: v is zero, or g never changes.

    Per matrix: `samples`, `columns`, `dimension` k; means of the two distances; their `difference`,
    direction less weight, with its standard `error` by a jackknife over samples; and a `verdict`,
    "closer" or "farther" where 0 is outside the 95 % interval (Student's t), else "undecided". With
    `joint_` the same of all these columns as one vector, in which the factors m/C count, too:
    `joint_distance_detached` has them alone.

    Args:
        model: as for `gradient_report`, like the next, `targets` and `axis`.
        loss: of the model and a batch.
        batches: independent ones; of one example for the covariance of an example's gradient. Equal
            batches of n have Σ/n, at the same distance.
        targets: which layers.
        axis: of layers that have no magnitude of their own.
        columns: how many of a matrix are looked at, evenly spaced. samples × columns × k float64
            numbers are kept of each, beside one batch's gradients.

    Raises:
        TrainingError: as `gradient_report`, or fewer than 5 batches reach a layer.
    """
    layers, kept = layers_of(model, targets), dict[str, list[Tensor]]()
    with watched(layers) as leaves:
        for gradients in gradients_of_batches(model, loss, batches, layers, leaves):
            for name in list(gradients):
                rows = turned(gradients.pop(name), axis_of(layers[name], axis))
                kept.setdefault(name, []).append(double(rows[spread(len(rows), columns)]))
    modules, tables = [], []
    for name in list(kept):
        v, m, along = decomposition(layers[name], axis)
        picked = spread(len(m), columns)
        grams = _grams(name, kept.pop(name), v[picked], m[picked])
        keys: Row = {"module": name, "axis": along}
        modules.append(keys | _of_matrix(grams, v.shape[1]))
        tables.append(keys | {"column": picked.numpy()} | _of_columns(grams, v.shape[1]))
    return report_of(layers, modules, tables, _covariance_finding)


def trace_squares(gram: Tensor) -> tuple[Tensor, Tensor]:
    """(tr Σ², (tr Σ)²) without bias, from the products x_s·x_t of n samples, (…, n, n), n ≥ 4.

    The means of ((x_i − x_j)·(x_k − x_l))²/4 and of |x_i − x_j|²|x_k − x_l|²/4 over all distinct
    i, j, k, l, in the closed form of Himeno and Yamada (2014), J. Multivariate Analysis 130.
    """
    n = gram.shape[-1]
    gram = gram - gram.mean(-1, keepdim=True)
    gram = gram - gram.mean(-2, keepdim=True)
    own = gram.diagonal(dim1=-2, dim2=-1)
    trace, square = own.sum(-1) / (n - 1), gram.square().sum((-2, -1)) / (n - 1) ** 2
    fourth = n * own.square().sum(-1) / (n - 1)
    factor = (n - 1) / (n * (n - 2) * (n - 3))
    return (
        factor * ((n - 1) * (n - 2) * square + trace**2 - fourth),
        factor * (2 * square + (n * n - 3 * n + 1) * trace**2 - fourth),
    )


def _grams(name: str, gradients: list[Tensor], v: Tensor, m: Tensor) -> dict[str, Tensor]:
    """Products of the samples with each other, (columns, n, n), for W, and for V in both forms."""
    if len(gradients) < FEWEST:
        raise TrainingError(
            f"{name}: has the gradients of {len(gradients)} batches, at least {FEWEST} were "
            "expected. A covariance needs more of them."
        )
    g = torch.stack(gradients)
    g = g - g.mean(0)
    forms = {
        "weight": g,
        "detached": direction_gradient(g, v, m, "detached"),
        "direction": direction_gradient(g, v, m, "exact"),
    }
    return {form: x.transpose(0, 1) @ x.permute(1, 2, 0) for form, x in forms.items()}


def _distance(gram: Tensor, dimension: int) -> Tensor:
    square, of_trace = trace_squares(gram)
    return dimension * square / of_trace - 1


def _of_columns(grams: Mapping[str, Tensor], dimension: int) -> Row:
    traces = {form: gram.diagonal(dim1=1, dim2=2).sum(1) for form, gram in grams.items()}
    figures = {
        "distance_weight": _distance(grams["weight"], dimension),
        "distance_direction": _distance(grams["direction"], dimension),
        "removed": 1 - traces["direction"] / traces["detached"],
    }
    return {name: tensor.numpy() for name, tensor in figures.items()}


def _of_matrix(grams: Mapping[str, Tensor], dimension: int) -> Row:
    directed = grams["direction"].isfinite().all(-1).all(-1)
    grams = {form: gram[directed] for form, gram in grams.items()}
    count = int(directed.sum())
    joint = {form: gram.sum(0, keepdim=True) for form, gram in grams.items()}
    row: Row = {"samples": grams["weight"].shape[-1], "columns": count, "dimension": dimension}
    for start, each, size in (("", grams, dimension), ("joint_", joint, count * dimension)):
        for form in ("weight", "direction") if not start else ("weight", "detached", "direction"):
            row[f"{start}distance_{form}"] = float(_distance(each[form], size).nanmean())
        row |= _difference(start, each["weight"], each["direction"], size)
    return row


def _difference(start: str, before: Tensor, after: Tensor, dimension: int) -> Row:
    """The mean distance after less before, its error by leaving out groups, and the verdict."""

    def mean(kept: Tensor) -> float:
        a, b = (_distance(gram[:, kept][:, :, kept], dimension) for gram in (after, before))
        return float((a - b).nanmean())

    samples = torch.arange(before.shape[-1])
    groups = min(len(samples), GROUPS)
    left = [mean(samples[samples % groups != group]) for group in range(groups)]
    value, error = mean(samples), float(np.sqrt((groups - 1) * np.var(left)))
    verdict = "undecided"
    if abs(value) > stdtrit(groups - 1, 0.975) * error:
        verdict = "closer" if value < 0 else "farther"
    figures = {"difference": value, "error": error, "verdict": verdict}
    return {f"{start}{name}": figure for name, figure in figures.items()}


def _covariance_finding(modules: "pd.DataFrame") -> str:
    def told(start: str) -> str:
        counts = modules[f"{start}verdict"].value_counts()
        closer, farther, open_ = (counts.get(v, 0) for v in ("closer", "farther", "undecided"))
        before, after = (modules[f"{start}distance_{f}"].mean() for f in ("weight", "direction"))
        return (
            f"closer to a multiple of the identity in {closer} of {len(modules)} matrices, farther "
            f"from it in {farther}, and cannot be told in {open_} (mean distance {before:.4g} "
            f"before, {after:.4g} after)"
        )

    return (
        f"By Eq. (6) the covariance of a column's gradient comes {told('')}. That of all columns "
        f"together comes {told('joint_')}. Samples: {modules['samples'].min()}."
    )
