"""wdecomp merge"""  # noqa: D415

import click

from wdecomp.cli.console import say, say_aside
from wdecomp.cli.selection import pickle_option


@click.command()
@click.argument("base")
@click.argument("adapter")
@click.option("-o", "--out", required=True, help="Folder to make for the merged checkpoint.")
@click.option(
    "--dtype",
    type=click.Choice(["base", "float32", "bfloat16", "float16"]),
    default="base",
    show_default=True,
    help="Of the weights that ADAPTER changes; a quantised BASE is decoded to it. 16 bits lose "
    "most of a small change: how much, is said on stderr.",
)
@pickle_option
@click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")
def merge(base: str, adapter: str, out: str, dtype: str, allow_pickle: bool, quiet: bool) -> None:
    """Write BASE with ADAPTER merged into it, as safetensors.

    The result has BASE's shards, names, config and tokenizer; what ADAPTER does not change is
    copied. Memory does not grow with the model, and OUT appears when it is complete.
    """
    from wdecomp import merging

    merged = merging.merge(
        base, adapter, out, dtype=dtype, allow_pickle=allow_pickle, progress=not quiet
    )
    rounding = merged.rounding
    if rounding.moved:
        say_aside(
            f"Rounding to 16 bits leaves {rounding.lost:,} of the {rounding.moved:,} weights that "
            f"the adapter moves ({rounding.lost / rounding.moved:.1%}) as they were; "
            "--dtype float32 keeps their change."
        )
    for note in merged.notes:
        say_aside(f"- {note}")
    files = f"{merged.files} file{'s' if merged.files > 1 else ''}"
    say(
        f"Wrote {merged.path}/: {merged.nbytes / 1e9:,.3g} GB in {files}, "
        f"{merged.changed} tensors changed by {merged.method}."
    )
