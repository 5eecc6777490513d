"""All rules, and all that they find in the tables of a comparison."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import groupby

from wdecomp.audit import bases, factors, magnitudes, trends, weights
from wdecomp.audit.finding import SEVERITIES, Finding, Rule
from wdecomp.audit.seen import Seen, seen_in
from wdecomp.table import Results

UNREADABLE = Rule(
    "unreadable",
    "the checkpoint cannot be compared with the base",
    "The message says what contradicts what; save it again, whole, or name its own base.",
)
RULES: tuple[Rule, ...] = (
    UNREADABLE,
    weights.NONFINITE,
    weights.NONFINITE_BASE,
    factors.UNTRAINED,
    factors.UNTRAINED_DIRECTION,
    magnitudes.SILENT,
    magnitudes.FROZEN,
    magnitudes.MISORDERED,
    magnitudes.NEGATIVE,
    magnitudes.ZERO,
    magnitudes.ZERO_ROWS,
    magnitudes.OTHER_BASE,
    bases.UNKNOWN,
    factors.QUANTISED,
    factors.PARTIAL,
    weights.MISSING,
    weights.UNCHANGED,
    weights.REPLACED,
    weights.FLOOR,
    factors.SCALING,
    factors.ALPHA,
    factors.PATTERNS,
    factors.DEFICIENT,
    magnitudes.DECAYED,
    trends.POOLED,
)

Check = Callable[[Seen], Iterator[Finding]]
OF_BASE: tuple[Check, ...] = (weights.nonfinite, magnitudes.zero_rows)
OF_TUNED: tuple[Check, ...] = (
    weights.missing,
    weights.unchanged,
    weights.replaced,
    weights.at_floor,
    magnitudes.silent_lora,
    magnitudes.frozen,
    magnitudes.signs,
    magnitudes.misordered,
    magnitudes.decayed,
    magnitudes.other_base,
    factors.untrained,
    factors.rank_deficient,
    factors.partial_layers,
    factors.overwhelming,
    factors.alpha_assumed,
    factors.pattern_order,
    factors.quantised_base,
)


def findings(results: Results) -> list[Finding]:
    """Everything that the rules find, the worst first, one finding per rule, run and severity.

    Raises:
        ResultsError: the tables cannot be read, or lack what the rules need.
    """
    everything = list(seen_in(results))
    found = [finding for seen in everything for finding in _of_step(seen)]
    for _, run in groupby(everything, key=lambda seen: seen.run):
        found += trends.frozen_over_steps(list(run))
    found += trends.pooled_sign(results)
    runs = list(dict.fromkeys(seen.run for seen in everything))
    ids = [rule.id for rule in RULES]
    return sorted(
        _over_steps(found),
        key=lambda f: (SEVERITIES.index(f.severity), runs.index(f.run), ids.index(f.rule.id)),
    )


def refusal(run: str, message: str, path: str) -> Finding:
    """The finding of a checkpoint that could not be compared, by the message that said why."""
    return Finding(UNREADABLE, "error", run, (), message, path=path)


def _of_step(seen: Seen) -> Iterator[Finding]:
    if seen.is_quantization:
        yield from weights.nonfinite(seen)
        return
    for check in OF_BASE if seen.is_base else OF_BASE + OF_TUNED:
        yield from check(seen)


def _over_steps(found: Iterable[Finding]) -> list[Finding]:
    """What is the same at several steps as one finding: the last one, with all steps and names."""
    together: dict[tuple[str, str, str], Finding] = {}
    for each in found:
        key = each.rule.id, each.run, each.severity
        before = together.get(key)
        if before is not None:
            steps = tuple(dict.fromkeys(before.steps + each.steps))
            names = tuple(dict.fromkeys(each.tensors + before.tensors))
            each = replace(each, steps=steps, tensors=names)
        together[key] = each
    return list(together.values())
