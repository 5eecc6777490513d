"""The gradients of m and V: Eqs. (6) to (10) for every column of a model's layers."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from wdecomp.stats.estimators import pearson, sample, spearman
from wdecomp.train.gradients.measuring import (
    Axis,
    Batch,
    Model,
    Report,
    Row,
    decomposition,
    double,
    layers_of,
    norm,
    report_of,
    spread,
    turned,
    weight_gradients,
)

if TYPE_CHECKING:
    import pandas as pd

Form = Literal["exact", "detached"]
ROWS_CHECKED = 256  # by autograd, of a matrix: one row says nothing of another


def gradient_report(
    model: Model,
    loss: Callable[[Model, Batch], Tensor],
    batches: Iterable[Batch],
    targets: Sequence[str] | None = None,
    axis: Axis = "output",
) -> Report:
    """Eqs. (6) to (9) for every column; L is the mean loss of the batches.

    Per column: `magnitude` m; `norm` C; `gradient_norm` ‖g‖; `magnitude_gradient` ∂L/∂m;
    `abs_cosine` |cos(g, v)|; ‖∂L/∂V‖, exact as `direction_gradient` and `detached_gradient`;
    `cosine` between those two, √(1 − cos²(g, v)); and `removed`, the share of the square of the
    detached one that the projection takes, cos²(g, v). Gradients are in units of the loss over
    those of the weight. NaN: v or g is zero and has no direction.

    Per matrix, of its `columns` with a direction: `gradient_norm` and `removed` of all of them
    together; the least `cosine`; `formula_error`, as the function of that name; `pearson` and
    `spearman` of |∂L/∂m| against |cos(g, v)|, and against ‖g‖ as `pearson_norm` and
    `spearman_norm`. |∂L/∂m| is the product of these two, so that neither correlation says much
    without the other. Columns share their batches: no intervals.

    Args:
        model: keeps its mode, parameters and their `grad`. Call `model.eval()` before, or the
            dropout of its own takes part. Autograd hands out all gradients at once: with their sum,
            two copies of the targeted weights, and for adapted layers a third, W.
        loss: of the model and a batch, one number.
        batches: any number.
        targets: layers, by full name or the end of it: "query" means every `….query`. By default
            every adapted layer; in a model without any, every Linear and Conv1D layer.
        axis: of layers that have no magnitude of their own.

    Raises:
        TrainingError: a target is not there or has no matrix, there is no batch, or a loss is not
            one finite number that depends on the weights.
    """
    layers = layers_of(model, targets)
    gradients = weight_gradients(model, loss, batches, targets)
    modules, columns = [], []
    for name in list(gradients):
        v, m, along = decomposition(layers[name], axis)
        g = double(turned(gradients.pop(name), along))
        figures = _column_figures(g, v, m)
        keys: Row = {"module": name, "axis": along}
        modules.append(keys | _module_figures(figures) | {"formula_error": formula_error(g, v, m)})
        columns.append(keys | {"column": np.arange(len(m))} | figures)
    return report_of(layers, modules, columns, _gradient_finding)


def magnitude_gradient(g: Tensor, v: Tensor) -> Tensor:
    """∂L/∂m = (g·v)/‖v‖ of each row, (…, rows): Eq. (7).

    Eq. (10) concludes that of two steps Δw ∝ g of one length the one that turns w less has the
    larger |∂L/∂m|. So it is while cos(Δw, w) > −‖Δw‖/‖w‖; beyond, w is turned less again.

    >>> magnitude_gradient(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]))
    tensor([2.2000])
    """
    product: Tensor = torch.linalg.vecdot(g, v / norm(v))
    return product


def direction_gradient(g: Tensor, v: Tensor, m: Tensor, norm_gradient: Form = "exact") -> Tensor:
    """∂L/∂V, (…, rows, width), by Eq. (6), or with the norm detached as in section 4.3.

    >>> direction_gradient(torch.eye(2)[:1], torch.ones(1, 2), torch.ones(1)) * 2**0.5
    tensor([[ 0.5000, -0.5000]])
    """
    if norm_gradient == "exact":
        g = g - magnitude_gradient(g, v).unsqueeze(-1) * (v / norm(v))
    return (m.unsqueeze(1) / norm(v)) * g


def formula_error(g: Tensor, v: Tensor, m: Tensor) -> float:
    """How far Eqs. (6), (7) and (11) are from autograd, which differentiates W = m · V/‖V‖ itself.

    The largest ‖ours − autograd's‖/‖autograd's‖ of ∂L/∂m and of both forms of ∂L/∂V, each of 256
    rows together, or fewer. Rows of zeros are left out.
    """
    rows = norm(v)[:, 0].nonzero()[:, 0]
    rows = rows[spread(len(rows), ROWS_CHECKED)]
    g, v, m = g[rows], v[rows], m[rows]
    forms: tuple[Form, ...] = ("exact", "detached")
    errors = [0.0]
    for form in forms:
        ours = direction_gradient(g, v, m, form), magnitude_gradient(g, v)
        for mine, theirs in zip(ours, _by_autograd(g, v, m, form), strict=True):
            size = theirs.norm().clamp_min(torch.finfo(theirs.dtype).tiny)
            errors.append(float((mine - theirs).norm() / size))
    return max(errors)


@torch.enable_grad()
def _by_autograd(g: Tensor, v: Tensor, m: Tensor, form: Form) -> tuple[Tensor, ...]:
    """∂L/∂V and ∂L/∂m."""
    v, m = v.clone().requires_grad_(), m.clone().requires_grad_()
    length = norm(v) if form == "exact" else norm(v).detach()
    return torch.autograd.grad(m.unsqueeze(1) * v / length, (v, m), g)


def _column_figures(g: Tensor, v: Tensor, m: Tensor) -> Row:
    exact, detached = direction_gradient(g, v, m, "exact"), direction_gradient(g, v, m, "detached")
    of_m, lengths = magnitude_gradient(g, v), [norm(t)[:, 0] for t in (v, g, exact, detached)]
    own_norm, gradient_norm, long, longer = lengths
    figures = {
        "magnitude": m,
        "norm": own_norm,
        "gradient_norm": gradient_norm,
        "magnitude_gradient": of_m,
        "abs_cosine": of_m.abs() / gradient_norm,
        "direction_gradient": long,
        "detached_gradient": longer,
        "cosine": torch.linalg.vecdot(exact, detached) / (long * longer),
        "removed": (norm(detached - exact)[:, 0] / longer).square(),
    }
    return {name: tensor.numpy() for name, tensor in figures.items()}


def _module_figures(figures: Row) -> Row:
    kept = np.isfinite(figures["abs_cosine"])
    of = {name: values[kept] for name, values in figures.items()}
    energy, of_m = of["detached_gradient"] ** 2, np.abs(of["magnitude_gradient"])
    row = {
        "columns": int(kept.sum()),
        "gradient_norm": float(np.linalg.norm(of["gradient_norm"])),
        "removed": float(energy @ of["removed"] / energy.sum()) if energy.any() else np.nan,
        "cosine": float(of["cosine"].min(initial=1.0)),
    }
    for name, x in (("", of["abs_cosine"]), ("_norm", of["gradient_norm"])):
        points = sample(x, of_m) if kept.any() else None
        with np.errstate(divide="ignore"):  # the interval of r = 1, which is not used
            row[f"pearson{name}"] = np.nan if points is None else pearson(points).value
            row[f"spearman{name}"] = np.nan if points is None else spearman(points).value
    return row


def _gradient_finding(modules: "pd.DataFrame") -> str:
    def span(name: str, scale: float = 1.0) -> str:
        return f"{modules[name].min() * scale:.2f} to {modules[name].max() * scale:.2f}"

    return (
        f"Over the columns of each of {len(modules)} matrices, |∂L/∂m| goes with |cos(∂L/∂W, v)| "
        f"by a Spearman's ρ of {span('spearman')}, with ‖∂L/∂W‖ by {span('spearman_norm')}. "
        f"The projection of Eq. (6) removes {span('removed', 100)} % of the squared gradient of V. "
        "Eqs. (6), (7) and (11) are autograd's gradients, to within "
        f"{modules['formula_error'].max():.0e} of their length."
    )
