"""Findings for people and for programs."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from wdecomp.audit.bases import BaseFit
from wdecomp.audit.finding import SEVERITIES, Finding
from wdecomp.errors import some

SHOWN = 5  # tensors that are named of each finding
SCHEMA = 1


def as_text(found: Sequence[Finding], fits: Sequence[BaseFit] = ()) -> str:
    """Findings by severity, for a terminal; ASCII only but for names."""
    blocks = []
    for severity in SEVERITIES:
        of_severity = [_block(each) for each in found if each.severity == severity]
        if of_severity:
            blocks += [f"{severity.upper()}S", *of_severity]
    if fits:
        blocks.append("\n".join(["Bases, by how far magnitudes or weights are from them:",
                                 *map(_fit, fits)]))  # fmt: skip
    blocks.append(_counts(found))
    return "\n\n".join(blocks)


def as_json(found: Sequence[Finding], fits: Sequence[BaseFit] = ()) -> dict[str, Any]:
    """The same as one JSON value."""
    counts = Counter(each.severity for each in found)
    return {
        "schema": SCHEMA,
        "counts": {severity: counts[severity] for severity in SEVERITIES},
        "findings": [
            {
                "rule": each.rule.id,
                "severity": each.severity,
                "run": each.run,
                "steps": list(each.steps),
                "title": each.rule.title,
                "message": each.message,
                "evidence": {key: number(value) for key, value in each.evidence.items()},
                "tensors": list(each.tensors[:SHOWN]),
                "tensor_count": len(each.tensors),
                "advice": each.rule.advice,
                "path": each.path,
            }
            for each in found
        ],
        "bases": [
            {
                "run": fit.run,
                "base": fit.base,
                "distance": number(fit.distance),
                "dtype": fit.dtype or None,
                "reason": fit.reason or None,
            }
            for fit in fits
        ],
    }


def _block(each: Finding) -> str:
    lines = [f"{each.rule.id}  {each.where}: {each.rule.title}", f"    {each.message}"]
    if each.evidence:
        evidence = ", ".join(f"{key} {_shown(value)}" for key, value in each.evidence.items())
        lines.append(f"    evidence: {evidence}")
    if each.tensors:
        lines.append(f"    tensors ({len(each.tensors)}): {some(each.tensors)}")
    return "\n".join([*lines, f"    do: {each.rule.advice}"])


def _fit(fit: BaseFit) -> str:
    far = fit.reason or ("unknown" if math.isnan(fit.distance) else f"{fit.distance:.3g}")
    return f"    {fit.run}  {fit.base}: {far}"


def _counts(found: Sequence[Finding]) -> str:
    counts = Counter(each.severity for each in found)
    shown = [f"{counts[s]} {s}{'' if counts[s] == 1 else 's'}" for s in SEVERITIES if counts[s]]
    return ", ".join(shown) + "." if shown else "No findings."


def _shown(value: float | int | str) -> str:
    return f"{value:.3g}" if isinstance(value, float) else json.dumps(value)


def number(value: float | int | str) -> float | int | str | None:
    """As JSON can have it."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
