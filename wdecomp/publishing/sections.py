"""The parts of a report that are words and tables."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Any

import pandas as pd

from wdecomp import report
from wdecomp.audit import Finding
from wdecomp.charts.table import kind_names
from wdecomp.errors import some
from wdecomp.publishing.html import paragraphs, table, text
from wdecomp.stats import Conclusion
from wdecomp.table import Results

MOST_ROWS = 200  # of a table; `wdecomp export` has all


def title(results: Results) -> str:
    """The runs, by name."""
    return some(list(dict.fromkeys(str(run["run"]) for run in results.run["runs"])), 4)


def lead(results: Results) -> str:
    """What this is about, in a few sentences."""
    counts = results.modules.groupby("run")["parameter"].nunique()
    many = "" if counts.empty else f"; up to {int(counts.max())} matrices changed in a run"
    base = _last(results.run["base"]["path"])
    return (
        f"<p>Base: <code>{text(base)}</code>{text(many)}. "
        "Every weight column was split into its length (magnitude) and its direction. ΔM is the "
        "mean over a matrix's columns of |m − m0|, ΔD that of 1 − cos between the tuned and the "
        "base column.</p>"
    )


def said(conclusions: Sequence[Conclusion]) -> str:
    """What the statistics allow to be said of each run, a sentence or two per module kind."""
    names = kind_names([(each.stack, each.module) for each in conclusions])
    rows = [(each.run, name, each.text) for each, name in zip(conclusions, names, strict=True)]
    axes = " and ".join(dict.fromkeys(each.axis for each in conclusions))
    return table(
        ["Run", "Module", "What the numbers allow"], rows, caption=f"Along the {axes} axis."
    )


def found(findings: Sequence[Finding]) -> str:
    """What the audit has to say: how bad, where, what, and what to do."""
    counts = Counter(each.severity for each in findings)
    told = ", ".join(f"{n} {name}{'' if n == 1 else 's'}" for name, n in counts.items())
    return f"<p>{text(told)}.</p>" + "".join(_finding(each) for each in findings)


def summary(results: Results) -> str:
    """A row per run and module kind, for each axis."""
    axes = [axis for axis in ("output", "input") if (results.modules["axis"] == axis).any()]
    tables = "".join(_summary(results, axis) for axis in axes)
    return tables + paragraphs(report.notes(results))


def compared(results: Results) -> str:
    """The runs, and what was left out."""
    runs = pd.DataFrame(results.run["runs"])
    rows = [
        (run, part["method"].iloc[0], _steps(part["step"]), _last(part["path"].iloc[-1]))
        for run, part in runs.groupby("run", sort=False)
    ]
    drawn = table(["Run", "Method", "Steps", "Last checkpoint"], rows, caption="Runs")
    left_out = list(_left_out(results))
    if left_out:
        said = f"Not compared, {min(len(left_out), MOST_ROWS)} of {len(left_out)} tensors"
        heads = ["Tensor", "Of", "Reason", "Runs"]
        drawn += table(heads, left_out[:MOST_ROWS], caption=said)
    return drawn


def footer(results: Results) -> str:
    """Who made the numbers, and how to get all of them."""
    version = results.run["versions"].get("wdecomp", "?")
    return (
        f"<p>Made from {text(results.path.name)} by wdecomp {text(version)}; the same results give "
        "the same page. All numbers: <code>wdecomp export RESULTS --table modules</code>. ΔM and "
        "ΔD are Eqs. (3) and (4) of DoRA, arXiv:2402.09353.</p>"
    )


def _summary(results: Results, axis: str) -> str:
    heads = ["Run", "Method", "Module", "Layers", "Steps", "ΔM", "ΔD", "r [95 %]", "r in a step"]
    rows = report.summary(results, axis)
    if rows.empty:
        return f"<p>{text(report.as_text(rows, axis))}</p>"
    many = rows["stack"].nunique() > 1
    cells = [
        (
            row.run,
            row.method,
            f"{row.stack}.{row.module}" if many else row.module,
            row.layers,
            row.steps,
            f"{row.delta_magnitude:.3g}",
            f"{row.delta_direction:.3g}",
            f"{_signed(row.pearson)} [{_signed(row.low)}, {_signed(row.high)}]",
            _signed(row.within_step),
        )
        for row in rows.itertuples()
    ]
    caption = (
        f"Columns along the {axis} axis. ΔM and ΔD: means over layers at the last step. r: "
        "correlation of ΔM with ΔD over all layers and steps; in a step: between layers alone."
    )
    return table(heads, cells[:MOST_ROWS], range(3, 9), caption)


def _finding(each: Finding) -> str:
    where = text(each.where)
    evidence = ", ".join(f"{key} {_shown(value)}" for key, value in each.evidence.items())
    told = f"<p class=quiet>{text(evidence)}</p>" if evidence else ""
    names = f"Tensors ({len(each.tensors)}): <code>{text(some(each.tensors))}</code>"
    tensors = f"<p class=quiet>{names}</p>" if each.tensors else ""
    return (
        f'<div class="finding {text(each.severity)}"><p><span class=severity>'
        f"{text(each.severity)}</span> · {where} · {text(each.rule.title)}</p>"
        f"<p>{text(each.message)}</p>{told}{tensors}"
        f"<p>What to do: {text(each.rule.advice)}</p></div>"
    )


def _shown(value: float | int | str) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _left_out(results: Results) -> Iterator[tuple[Any, ...]]:
    keys = ["tensor", "side", "reason"]
    for (tensor, side, reason), part in results.left_out.groupby(keys, sort=False):
        yield tensor, side, reason, some([str(run) for run in part["run"].unique()])


def _steps(steps: "pd.Series[Any]") -> str:
    return ", ".join(f"{step:g}" for step in steps.dropna()) or "final"


def _last(path: str) -> str:
    """The end of a path: a report is sent around, and who keeps what where is nobody's business."""
    return "/".join(PurePath(path).parts[-2:])


def _signed(value: Any) -> str:
    return "n/a" if math.isnan(value) else f"{value:+.2f}"
