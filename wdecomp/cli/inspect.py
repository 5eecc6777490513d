"""wdecomp inspect"""  # noqa: D415

import json
from typing import Any

import click

from wdecomp.cli.console import say
from wdecomp.cli.selection import (
    base_dequantized_option,
    layers_option,
    modules_option,
    pickle_option,
    split_base,
)


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="[BASE] PATH...")
@click.option("--base", help="The base model; the same as naming it before the PATHs.")
@modules_option
@layers_option
@base_dequantized_option
@pickle_option
@click.option("--all", "everything", is_flag=True, help="Every row, not only the first 20.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def inspect(
    paths: tuple[str, ...],
    base: str | None,
    everything: bool,
    as_json: bool,
    allow_pickle: bool,
    **selection: Any,
) -> None:
    """Show what checkpoints hold and how they pair, from their headers alone.

    With one PATH: its tensors by module kind, and of an adapter its formula, rank and scaling for
    each module. With a base: which of its tensors each key goes to, how these are stored, what
    replaces them, what is left out and why, and how many bytes `compare` would read.
    """
    from wdecomp import inspection
    from wdecomp.inspection_text import as_text

    if len(paths) == 1 and base is None:
        found = inspection.contents(paths[0], allow_pickle)
    else:
        first, tuned = (base, paths) if base is not None else split_base(paths)
        found = inspection.comparison_plan(first, *tuned, allow_pickle=allow_pickle, **selection)
    say(json.dumps(found, indent=1) if as_json else as_text(found, everything))
