"""The gradient analysis of section 4: what W = m · V/‖V‖ makes of the gradient of a loss.

With G = ∂L/∂W, g one of its rows, v the same row of V, and C = ‖v‖:

    ∂L/∂m = (g·v)/C = ‖g‖ cos(g, v)              Eqs. (7) to (9)
    ∂L/∂V = (m/C)(I − v vᵀ/C²) g      exact      Eq. (6)
    ∂L/∂V = (m/C) g                   detached   Eq. (11), C taken for a constant

G is measured by autograd. A layer with a magnitude has V = W0 + s·BA and its own m; any other is
decomposed on the fly: V = W, m = ‖W‖. Dropout of a low-rank part does not take part: W has none.
"""

from wdecomp.train.gradients.covariance import covariance_report, trace_squares
from wdecomp.train.gradients.equations import (
    direction_gradient,
    formula_error,
    gradient_report,
    magnitude_gradient,
)
from wdecomp.train.gradients.measuring import Report, decomposition, weight_gradients

__all__ = [
    "Report",
    "covariance_report",
    "decomposition",
    "direction_gradient",
    "formula_error",
    "gradient_report",
    "magnitude_gradient",
    "trace_squares",
    "weight_gradients",
]
