"""wdecomp audit"""  # noqa: D415

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from wdecomp.cli.console import say
from wdecomp.cli.selection import (
    base_dequantized_option,
    layers_option,
    modules_option,
    pickle_option,
    split_base,
)

if TYPE_CHECKING:
    from wdecomp.audit import BaseFit, Finding
    from wdecomp.table import Results

Compared = tuple["Results | None", list["Finding"], list["BaseFit"]]
FAILED = 3  # exit code of --fail-on


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="BASE [TUNED...] | RESULTS")
@click.option("-o", "--out", help="Folder that keeps the comparison [default: a temporary one].")
@click.option(
    "--candidate-base",
    "candidates",
    multiple=True,
    metavar="PATH",
    help="Another base that TUNED may belong to; which one fits best is told. Can be repeated.",
)
@modules_option
@layers_option
@base_dequantized_option
@click.option("-j", "--workers", type=click.IntRange(min=1), help="Threads [default: all cores].")
@pickle_option
@click.option("--json", "form", flag_value="json", help="Print one JSON object.")
@click.option("--sarif", "form", flag_value="sarif", help="Print SARIF 2.1.0.")
@click.option(
    "--fail-on",
    type=click.Choice(["error", "warning"]),
    help=f"Exit with code {FAILED} if anything as bad as this is found.",
)
@click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")
def audit(
    paths: tuple[str, ...],
    candidates: tuple[str, ...],
    form: str | None,
    fail_on: str | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Say what is wrong with TUNED checkpoints, or with the RESULTS of a comparison.

    Magnitudes that never moved, adapters that were not trained, NaN, lost layers, another base,
    rounding taken for change, and more, each with its figures, its tensors and what to do.
    BASE alone is looked at before a training: zero columns, of which PEFT's DoRA makes NaN.
    """
    from wdecomp.audit import SEVERITIES, as_json, as_sarif, as_text, base_findings, findings

    results, refused, fits = _found(paths, candidates, quiet, options)
    everything = [*refused, *base_findings(fits)]
    everything += [] if results is None else findings(results)
    everything.sort(key=lambda each: SEVERITIES.index(each.severity))
    forms = {
        "json": lambda: json.dumps(as_json(everything, fits), indent=1),
        "sarif": lambda: json.dumps(as_sarif(everything), indent=1),
    }
    say(forms[form]() if form else as_text(everything, fits))
    bad = {None: (), "error": ("error",), "warning": ("error", "warning")}[fail_on]
    if any(each.severity in bad for each in everything):
        sys.exit(FAILED)


def _found(
    paths: tuple[str, ...], candidates: tuple[str, ...], quiet: bool, options: dict[str, Any]
) -> Compared:
    """What there is to look at: results that were made before, or a comparison."""
    from wdecomp.table import are_results, read_results

    if len(paths) > 1 or not are_results(paths[0]):
        return _compared(paths, candidates, quiet, options)
    given = {"candidate_base": candidates} | options
    named = [name for name in given if given[name]]
    if named:
        option = named[0].replace("_", "-")
        raise click.UsageError(f"--{option} needs BASE and TUNED, not RESULTS.")
    return read_results(paths[0]), [], []


def _compared(
    paths: tuple[str, ...], candidates: tuple[str, ...], quiet: bool, options: dict[str, Any]
) -> Compared:
    """The comparison of all that can be compared, what cannot, and how far every base is."""
    from wdecomp.audit import BaseFit, base_fits, refusal
    from wdecomp.checkpoint import open_checkpoint
    from wdecomp.comparison import compare
    from wdecomp.inputs import named_path, parse_tuned

    for other in candidates:  # not after all the rest has been read
        open_checkpoint(named_path(other), options["allow_pickle"])
    alone = len(paths) == 1 and split_base(paths)[0] is not None
    base, tuned = (paths[0], (f"base={paths[0]}",)) if alone else split_base(paths)
    reasons = {} if alone else _refusals(base, tuned, options)
    refused = [
        refusal(run.name, reason, str(run.steps[-1][1]))
        for text, reason in reasons.items()
        for run in parse_tuned(text)
    ]
    accepted = [text for text in tuned if text not in reasons]
    out = {"out": options.pop("out"), "columns": "none", "progress": not quiet}
    results = compare(base, *accepted, **options, **out) if accepted else None
    if not candidates:
        return results, refused, []
    fits = base_fits(results) if results else []
    fits += [BaseFit(name, str(base), reason=reasons[t]) for t in reasons for name in _names(t)]
    for other in candidates:
        fits += _fits(other, tuned, options | {"columns": "none", "progress": not quiet})
    return results, refused, fits


def _fits(base: str, tuned: tuple[str, ...], options: dict[str, Any]) -> list["BaseFit"]:
    """How far everything is from a candidate, or why it cannot be compared with it."""
    from wdecomp.audit import BaseFit, base_fits
    from wdecomp.comparison import compare

    options = options | {"base_dequantized": None}
    reasons = _refusals(base, tuned, options)
    fits = [BaseFit(name, base, reason=reasons[text]) for text in reasons for name in _names(text)]
    accepted = [text for text in tuned if text not in reasons]
    return fits + (base_fits(compare(base, *accepted, **options)) if accepted else [])


def _refusals(base: str | None, tuned: tuple[str, ...], options: dict[str, Any]) -> dict[str, str]:
    """Why a tuned checkpoint contradicts itself or the base; told from headers."""
    from wdecomp.comparison import plan_comparison
    from wdecomp.errors import AdapterError, PairingError

    reasons = {}
    for text in tuned:
        try:
            plan_comparison(
                base,
                text,
                base_dequantized=options["base_dequantized"],
                allow_pickle=options["allow_pickle"],
            )
        except (AdapterError, PairingError) as error:
            reasons[text] = str(error)
    return reasons


def _names(text: str) -> list[str]:
    """What the runs of a tuned path are called."""
    from wdecomp.inputs import parse_tuned

    return [run.name for run in parse_tuned(text)]
