"""What all tensors together say: findings, each with its figures and what to do."""

import math
from collections.abc import Callable, Iterator, Sequence
from statistics import median

from wdecomp.names import place
from wdecomp.verifying.lineup import Lineup
from wdecomp.verifying.records import Finding, Gone, State, Tensor, relative_of

# How far 4-bit codes bring weights from where they were, as a share of ‖W0‖ (NF4: about 0.09).
LEAST_OF_4_BITS, MOST_OF_4_BITS = 0.05, 0.15
ALIKE = 0.02  # factors that are called the same
SURE = 0.1  # how far a factor may be from 0 or 1 beside the difference of two bases

Tensors = Sequence[Tensor]


def findings_of(lineup: Lineup, tensors: Tensors) -> list[Finding]:
    """Everything for which a merged checkpoint is not base + adapter, the worst first."""
    found = [*_not_finite(tensors)]
    for state, word in WORDED.items():
        of_state = [tensor for tensor in tensors if tensor.state == state]
        if of_state:
            message, advice = word(of_state)
            found.append(Finding(state, message, advice, _names(of_state)))
    return [*found, *_without_explanation(tensors), *_gone(lineup)]


def notes_of(tensors: Tensors) -> list[str]:
    """What a reader has to know of tensors that are right."""
    small = [tensor for tensor in tensors if tensor.state == "too-small"]
    coarse = [t for t in tensors if t.is_touched and t.precision != t.dtype]
    notes = []
    if small:
        notes.append(
            f"what the adapter changes in {len(small)} tensors ({small[0].parameter}) is too small "
            f"for {small[0].precision} to show: whether it was merged cannot be told, and makes "
            "no difference"
        )
    if coarse:
        notes.append(
            f"{len(coarse)} merged tensors are stored in {coarse[0].dtype} with numbers of "
            f"{coarse[0].precision}: it is rounding to {coarse[0].precision} that is allowed"
        )
    return notes


def _not_finite(tensors: Tensors) -> Iterator[Finding]:
    bad = [tensor for tensor in tensors if tensor.state == "not-finite"]
    broken = [tensor for tensor in bad if tensor.broken]
    damaged = [tensor for tensor in bad if not tensor.broken]
    if damaged:
        yield Finding(
            "not-finite",
            f"{sum(t.damaged for t in damaged):,} weights are NaN or infinite, and not in base + "
            "adapter",
            "merge again, in float32; DoRA in PEFT makes NaN of columns of the base that are zero",
            _names(damaged),
        )
    if broken:
        yield Finding(
            "not-finite-adapter",
            f"{sum(t.broken for t in broken):,} weights of base + adapter are NaN or infinite",
            "the adapter is damaged, or was trained until it diverged: use an earlier step",
            _names(broken),
        )


def _not_merged(found: Tensors) -> tuple[str, str]:
    return "they are the base's, without the adapter's change", "merge the adapter into these too"


def _twice(found: Tensors) -> tuple[str, str]:
    return (
        f"the adapter's change is in them {_factors(found)} times: merged twice"
        f"{_scalings(found, ', or')}",
        "merge once, into a base that has no adapter in it",
    )


def _scaling(found: Tensors) -> tuple[str, str]:
    hint = "".join(_hints(found))
    return (
        f"the adapter's change is in them {_factors(found)} times{_scalings(found, ':')}{hint}",
        "merge with the lora_alpha, r and use_rslora of adapter_config.json",
    )


def _magnitude_ignored(found: Tensors) -> tuple[str, str]:
    return (
        "they are W0 + s*BA: DoRA merged as LoRA, without its magnitudes",
        "merge with something that knows DoRA, and check that the magnitudes were loaded",
    )


def _other_magnitude(found: Tensors) -> tuple[str, str]:
    return (
        "their columns point where the adapter turns them, with lengths that are not its "
        "magnitudes",
        "check that the magnitudes were loaded, in this order, and are of the same step",
    )


WORDED: dict[State, Callable[[Tensors], tuple[str, str]]] = {
    "not-merged": _not_merged,
    "merged-twice": _twice,
    "other-scaling": _scaling,
    "magnitude-ignored": _magnitude_ignored,
    "other-magnitude": _other_magnitude,
}


def _factors(found: Tensors) -> str:
    """The median factor, with the range where there is one."""
    factors = [tensor.factor for tensor in found]
    low, high = f"{min(factors):.4g}", f"{max(factors):.4g}"
    return f"{median(factors):.4g}" + (f" ({low} to {high})" if low != high else "")


def _scalings(found: Tensors, front: str) -> str:
    """With which scaling that is, if all have one and the same."""
    scalings = {tensor.scaling for tensor in found}
    scaling, factors = next(iter(scalings)), [tensor.factor for tensor in found]
    if len(scalings) > 1 or scaling is None or max(factors) - min(factors) > ALIKE * max(factors):
        return ""
    return f"{front} with scaling {scaling * median(factors):.4g} instead of {scaling:.4g}"


def _hints(found: Tensors) -> Iterator[str]:
    """What setting explains a factor."""
    if any(tensor.rank is None or tensor.rank < 2 for tensor in found):
        return
    roots = [tensor.factor * math.sqrt(tensor.rank or 1) for tensor in found]
    inverse = [tensor.factor / math.sqrt(tensor.rank or 1) for tensor in found]
    for values, word in ((roots, "without"), (inverse, "with")):
        if all(abs(value - 1) < ALIKE for value in values):
            yield f", as {word} use_rslora"


def _without_explanation(tensors: Tensors) -> Iterator[Finding]:
    """Differences that no multiple of the change explains: of whole tensors, or of some columns."""
    unexplained = [tensor for tensor in tensors if tensor.state == "unexplained"]
    changed = [tensor for tensor in tensors if tensor.state == "changed"]
    throughout = [t for t in unexplained if t.columns and 2 * t.columns_off >= t.columns]
    partly = [tensor for tensor in unexplained if tensor not in throughout]
    if _most_matrices(changed, tensors):  # also those that hardly differ, of a base that does
        throughout, partly = unexplained, []
    if throughout:
        yield _of_another(tensors, throughout, changed)
    elif changed:
        yield Finding(
            "changed",
            f"the adapter does not touch them, and {sum(t.over for t in changed):,} of their "
            f"weights are not the base's (up to {max(t.relative for t in changed):.2g} of |W0|)",
            "look for what else was trained or merged, or for another base",
            _names(changed),
        )
    if partly:
        yield Finding(
            "unexplained",
            f"{sum(t.over for t in partly):,} weights are further from base + adapter than "
            f"rounding explains (in {sum(t.columns_off for t in partly):,} of "
            f"{sum(t.columns for t in partly):,} columns), by up to "
            f"{max(t.relative for t in partly):.2g} of |W0|",
            "merge again: this is damage, or a merge that was done in part",
            _names(partly),
        )


def _most_matrices(changed: Tensors, tensors: Tensors) -> bool:
    """Whether at least half of the matrices that the adapter does not touch are not the base's."""
    untouched = sum(not tensor.is_touched and not tensor.is_vector for tensor in tensors)
    return 2 * sum(not tensor.is_vector for tensor in changed) >= max(untouched, 1)


def _of_another(tensors: Tensors, unexplained: Tensors, changed: Tensors) -> Finding:
    """Another adapter where the layers' other matrices are the base's; else another base."""
    like = [tensor for tensor in tensors if not tensor.is_touched and not tensor.is_vector]
    if changed or not any(place(tensor.parameter).layer is not None for tensor in like):
        return _other_base(tensors, unexplained, changed)
    sure = abs(_factor(unexplained) - 1) <= SURE
    what = "with something else in them besides" if sure else "not of this adapter"
    return Finding(
        "other-adapter",
        f"{len(unexplained)} tensors that the adapter changes are off by "
        f"{relative_of((*unexplained,)):.2g} of |W0|, whatever the scaling, and all others are the "
        f"base's: {what}",
        "name the adapter that was merged, and its step; look for a second one",
        _names(unexplained),
    )


def _other_base(tensors: Tensors, unexplained: Tensors, changed: Tensors) -> Finding:
    far = relative_of((*unexplained, *changed))
    vectors = [tensor for tensor in tensors if tensor.is_vector]
    kept = bool(vectors) and not any(tensor.is_vector for tensor in changed)
    quantised = kept and LEAST_OF_4_BITS < far < MOST_OF_4_BITS
    hint = ", as far as quantising to 4 bits brings them" if quantised else ""
    also = f" and {len(changed)} that it does not touch" if changed else ""
    return Finding(
        "other-base",
        f"{len(unexplained)} tensors that the adapter changes{also} are off by {far:.2g} of |W0|, "
        f"whatever the scaling{hint}: {_into(unexplained)}",
        "name the bases that it may have been merged into with --candidate-base",
        _names((*unexplained, *changed)),
    )


def _into(unexplained: Tensors) -> str:
    """What happened to the adapter on the way to another base, by how much of it is there."""
    factor = _factor(unexplained)
    if abs(factor - 1) <= SURE:
        return "merged into another base"
    if abs(factor) <= SURE:
        return "of another base, without the adapter's change"
    return "of another base, or not of this adapter"


def _factor(unexplained: Tensors) -> float:
    factors = [tensor.factor for tensor in unexplained if math.isfinite(tensor.factor)]
    return median(factors) if factors else math.nan


def _gone(lineup: Lineup) -> Iterator[Finding]:
    kinds: tuple[tuple[str, Sequence[Gone], str, str], ...] = (
        ("missing", lineup.missing, "tensors of base + adapter are not in it", "merge again"),
        ("extra", lineup.extra, "tensors are in it alone", "look for what added them"),
        ("unplaced", lineup.unplaced, "updates of the adapter have no place in the base",
         "take the base that the adapter was trained on"),
        ("unread", lineup.unread, "tensors cannot be read", "verify it before it is quantised"),
    )  # fmt: skip
    for kind, gone, what, advice in kinds:
        if gone:
            message = f"{len(gone)} {what} ({gone[0].name}: {gone[0].reason})"
            yield Finding(kind, message, advice, tuple(each.name for each in gone))


def _names(tensors: Tensors) -> tuple[str, ...]:
    return tuple(tensor.parameter for tensor in tensors)
