"""wdecomp verify"""  # noqa: D415

import json
import sys
from typing import Any

import click

from wdecomp.cli.console import say, say_aside
from wdecomp.cli.selection import pickle_option

DIFFERS = 3  # exit code where it is not base + adapter


@click.command()
@click.argument("merged")
@click.option("--base", required=True, help="The model that it was merged into.")
@click.option("--adapter", required=True, help="What was merged, of any dialect.")
@click.option(
    "--candidate-base",
    "candidates",
    multiple=True,
    metavar="PATH",
    help="Another base that it may have been merged into; which one fits best is told. Can be "
    "repeated.",
)
@click.option("-j", "--workers", type=click.IntRange(min=1), help="Threads [default: all cores].")
@pickle_option
@click.option("--all", "everything", is_flag=True, help="Every tensor, not only the 5 worst.")
@click.option("--json", "as_object", is_flag=True, help="Print one JSON object instead of text.")
@click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")
def verify(
    merged: str, base: str, adapter: str, everything: bool, as_object: bool, quiet: bool,
    **options: Any,
) -> None:  # fmt: skip
    """Say whether MERGED is BASE with ADAPTER merged into it.

    Every weight is held beside W0 + dW, to within what rounding to its dtype allows. If MERGED is
    something else, it says what: not merged, merged twice, with another scaling, DoRA as LoRA,
    into another base, and which tensors. Exit code 0 if it is, 3 if it is not.
    """
    from wdecomp import verifying

    found = verifying.verify(merged, base, adapter, progress=not quiet, **options)
    for note in () if as_object else found.notes:
        say_aside(f"- {note}")
    text = json.dumps(verifying.as_json(found), indent=1) if as_object else None
    say(verifying.as_text(found, everything) if text is None else text)
    if not found.is_right:
        sys.exit(DIFFERS)
