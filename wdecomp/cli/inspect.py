"""wdecomp inspect"""  # noqa: D415

import json
from typing import Any

import click

from wdecomp.cli.console import say
from wdecomp.cli.selection import layers_option, modules_option, pickle_option, split_base


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="[BASE] PATH...")
@modules_option
@layers_option
@pickle_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def inspect(paths: tuple[str, ...], as_json: bool, allow_pickle: bool, **selection: Any) -> None:
    """Show what checkpoints hold and how they pair, from their headers alone.

    With one PATH: its tensors by module kind. With BASE and more: what `compare` would read, what
    it would leave out and why, and how many bytes that is.
    """
    from wdecomp import inspection

    if len(paths) == 1:
        found = inspection.contents(paths[0], allow_pickle)
    else:
        base, tuned = split_base(paths)
        found = inspection.comparison_plan(base, *tuned, allow_pickle=allow_pickle, **selection)
    say(json.dumps(found, indent=1) if as_json else inspection.as_text(found))
