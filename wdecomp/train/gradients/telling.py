"""What `wdecomp gradients` found, as text and as JSON."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wdecomp.errors import some
from wdecomp.train.gradients.measuring import Report

if TYPE_CHECKING:
    import pandas as pd

WIDEST = 44  # letters of a module's name
Form = tuple[str, str]  # heading and format of a figure

GRADIENTS: Mapping[str, Form] = {
    "columns": ("columns", "d"),
    "gradient_norm": ("|dL/dW|", ".3g"),
    "spearman": ("rho cos", "+.2f"),
    "spearman_norm": ("rho |dL/dW|", "+.2f"),
    "removed": ("removed", ".2%"),
    "formula_error": ("error", ".0e"),
}
COVARIANCE: Mapping[str, Form] = {
    "samples": ("samples", "d"),
    "distance_weight": ("a column", ".3g"),
    "difference": ("change", "+.2g"),
    "error": ("+-", ".1g"),
    "verdict": ("", ""),
    "joint_distance_weight": ("all columns", ".3g"),
    "joint_difference": ("change", "+.2g"),
    "joint_error": ("+-", ".1g"),
    "joint_verdict": ("", ""),
}
LEGEND = (
    "rho: Spearman's, over columns, of |dL/dm| with |cos(dL/dW, v)| and with |dL/dW|; removed: of\n"
    "the squared gradient of V, by Eq. (6); error: of Eqs. (6), (7) and (11), against autograd."
)
COVARIANCE_LEGEND = (
    "Distance of the covariance of the gradient of W, of a column and of all together, from a\n"
    "multiple of the identity; its change by Eq. (6), with the standard error."
)


@dataclass(frozen=True)
class Measured:
    """What was asked, all defaults resolved, and the reports; one of them only if asked for."""

    record: dict[str, Any]
    gradients: Report
    covariance: Report | None


def as_text(found: Measured) -> str:
    """A table for each report, with what it says in a sentence."""
    report = found.gradients
    parts = [f"{_table(report.modules, GRADIENTS)}\n{LEGEND}", report.finding]
    if report.unreached:
        parts.append(f"The loss does not depend on {some(report.unreached)}.")
    if found.covariance is not None:
        table = _table(found.covariance.modules, COVARIANCE)
        parts += [f"{table}\n{COVARIANCE_LEGEND}", found.covariance.finding]
    return "\n\n".join(parts)


def record_of(found: Measured) -> dict[str, Any]:
    """All of it for machines, figures to 6 digits, without the columns."""
    covariance = None if found.covariance is None else _plain_report(found.covariance)
    return found.record | _plain_report(found.gradients) | {"covariance": covariance}


def _table(modules: "pd.DataFrame", forms: Mapping[str, Form]) -> str:
    names = ["module", *(_short(name) for name in modules["module"])]
    wide = max(map(len, names))
    lines = [f"{name:<{wide}}" for name in names]
    for key, (heading, form) in forms.items():
        cells = [heading, *(_cell(value, form) for value in modules[key])]
        wide = max(map(len, cells))
        lines = [f"{line}  {cell:>{wide}}" for line, cell in zip(lines, cells, strict=True)]
    return "\n".join(line.rstrip() for line in lines)


def _short(name: str) -> str:
    return name if len(name) <= WIDEST else f"...{name[3 - WIDEST :]}"


def _cell(value: Any, form: str) -> str:
    return "n/a" if isinstance(value, float) and math.isnan(value) else format(value, form)


def _plain_report(report: Report) -> dict[str, Any]:
    rows = report.modules.to_dict("records")
    return {
        "modules": [{str(key): _plain(value) for key, value in row.items()} for row in rows],
        "unreached": report.unreached,
        "finding": report.finding,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
