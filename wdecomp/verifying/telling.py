"""A verdict for people and for programs."""

import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from wdecomp.errors import some
from wdecomp.verifying.records import Candidate, Finding, Tensor, Verification

SHOWN = 5  # tensors of the list of the worst
SCHEMA = 1
EXPLAINED = (
    "error: root mean square, in units of what rounding to the stored dtype allows (1 is allowed; "
    "largest: of one weight, 4); times: how often the change is in it; apart: as a share of |W0|"
)


def as_text(found: Verification, everything: bool = False) -> str:
    """The verdict, what is wrong, and the worst tensors, or all of them."""
    blocks = [_verdict(found), *map(_block, found.findings)]
    rows = sorted(found.tensors, key=_badness, reverse=True)
    shown = rows if everything else rows[:SHOWN]
    blocks.append("\n".join(_table(shown, len(rows) - len(shown))))
    if found.candidates:
        blocks.append("\n".join(_candidates(found.candidates)))
    return "\n\n".join(blocks)


def as_json(found: Verification) -> dict[str, Any]:
    """The same as one JSON value; tensors that are as the base has them are counted only."""
    return {
        "schema": SCHEMA,
        "merged": found.merged,
        "base": found.base,
        "adapter": found.adapter,
        "method": found.method,
        "is_base_plus_adapter": found.is_right,
        "counts": _counts(found),
        "findings": [asdict(finding) for finding in found.findings],
        "tensors": [_tensor(t) for t in found.tensors if t.is_touched or not t.is_right],
        "candidates": [_plain(asdict(candidate)) for candidate in found.candidates],
        "notes": list(found.notes),
    }


def _tensor(tensor: Tensor) -> dict[str, Any]:
    return _plain(asdict(tensor) | {"relative": tensor.relative, "lost": tensor.lost})


def _verdict(found: Verification) -> str:
    counts = _counts(found)
    verdict = "is" if found.is_right else "is NOT"
    line = f"{found.merged}: {verdict} {found.base} + {found.adapter} ({found.method})"
    right = f"{counts['touched_right']} of {counts['touched']} tensors that the adapter changes"
    others = f"{counts['other_right']} of {counts['other']} others"
    return f"{line}: {right} and {others} are right.{_lost(found)}"


def _lost(found: Verification) -> str:
    """What rounding did to the change, of a merge that is right."""
    touched = [tensor for tensor in found.tensors if tensor.is_touched]
    change = math.sqrt(sum(tensor.change**2 for tensor in touched))
    if not found.is_right or not change:
        return ""
    off = math.sqrt(sum(tensor.difference**2 for tensor in touched)) / change
    return f" Rounding moved the change by {off:.2g} of its size."


def _counts(found: Verification) -> dict[str, int]:
    touched = [tensor for tensor in found.tensors if tensor.is_touched]
    others = [tensor for tensor in found.tensors if not tensor.is_touched]
    return {
        "touched": len(touched),
        "touched_right": sum(tensor.is_right for tensor in touched),
        "other": len(others),
        "other_right": sum(tensor.is_right for tensor in others),
    }


def _block(finding: Finding) -> str:
    return "\n".join(
        [
            f"{finding.kind}: {finding.message}",
            f"    tensors ({len(finding.tensors)}): {some(finding.tensors)}",
            f"    do: {finding.advice}",
        ]
    )


def _badness(tensor: Tensor) -> tuple[bool, float, float]:
    """Wrong ones first, then by their error."""
    error = tensor.error if math.isfinite(tensor.error) else 0.0
    relative = tensor.relative if math.isfinite(tensor.relative) else 0.0
    return not tensor.is_right, error, relative


def _table(rows: list[Tensor], hidden: int) -> Iterator[str]:
    width = max((len(row.parameter) for row in rows), default=0)
    heads = f"{'state':17}  {'dtype':5}  {'error':>7}  {'largest':>7}  {'times':>7}  {'apart':>7}"
    yield f"{'the worst':{width}}  {heads}"
    for row in rows:
        figures = (row.error, row.largest, row.factor, row.relative)
        shown = "  ".join(f"{_shown(value):>7}" for value in figures)
        yield f"{row.parameter:{width}}  {row.state:17}  {row.dtype:5}  {shown}"
    if hidden:
        yield f"and {hidden} more (--all)"
    yield EXPLAINED


def _candidates(candidates: tuple[Candidate, ...]) -> Iterator[str]:
    known = [each for each in candidates if not each.reason]
    best = min(known, key=lambda each: (not each.fits, each.relative), default=None)
    yield "Bases, by how far base + adapter is from it, as a share of |W0|:"
    for each in candidates:
        far = each.reason or f"{_shown(each.relative)}{', it is this one' if each.fits else ''}"
        yield f"    {each.base}: {far}{'  <- nearest' if each is best else ''}"


def _shown(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}"


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Without numbers that JSON has not."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in values.items()
    }
