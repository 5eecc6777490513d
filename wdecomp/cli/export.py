"""wdecomp export"""  # noqa: D415

import sys
from pathlib import Path

import click

from wdecomp.cli.console import say_aside

TABLES = ("modules", "fits", "facts", "spectra", "left_out", "columns")
FORMATS = ("csv", "json", "parquet", "md", "latex")


def _names(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (value or "").split(",") if name.strip())


@click.command()
@click.argument("results", metavar="RESULTS")
@click.option(
    "--table",
    type=click.Choice(TABLES),
    default="modules",
    show_default=True,
    help="modules: a matrix in a row; fits: a statistic; facts: a tensor; spectra: a "
    "matrix's singular values; left_out: a tensor that was not compared; columns: a weight column.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    default="csv",
    show_default=True,
    help="md and latex have numbers with four digits, the others have all.",
)
@click.option("--run", "runs", multiple=True, help="Only this run. Can be repeated.")
@click.option("--step", "steps", multiple=True, type=int, help="Only this step. Can be repeated.")
@click.option("--module", "modules", callback=_names, metavar="KINDS", help="Only these: q,v,down.")
@click.option("--axis", type=click.Choice(["output", "input"]), help="Only this axis.")
@click.option("-o", "--out", metavar="FILE", help="A file, which is replaced [default: stdout].")
@click.option("-q", "--quiet", is_flag=True, help="Nothing on stderr.")
def export(
    results: str,
    table: str,
    form: str,
    runs: tuple[str, ...],
    steps: tuple[int, ...],
    modules: tuple[str, ...],
    axis: str | None,
    out: str | None,
    quiet: bool,
) -> None:
    """Print a table of RESULTS for other programs, or write it to a file.

    In CSV a text that a spreadsheet would compute has an apostrophe before it; in Markdown and
    LaTeX no name is markup.
    """
    from wdecomp import publishing
    from wdecomp.table import read_results

    if form == "parquet" and out is None and sys.stdout.isatty():
        raise click.UsageError("Parquet is not for a terminal: name a file with -o.")
    target = sys.stdout.buffer if out is None else Path(out)
    if isinstance(target, Path) and not target.name:
        raise click.BadParameter(f"{out!r} names no file.", param_hint="'-o'")
    selection = publishing.Selection(runs, steps, modules, axis or "")
    publishing.export(read_results(results), table, form, target, selection)
    if out is not None and not quiet:
        say_aside(f"Wrote {out}.")
