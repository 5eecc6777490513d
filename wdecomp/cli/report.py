"""wdecomp report"""  # noqa: D415

from pathlib import Path

import click

from wdecomp.cli.console import say_aside


@click.command()
@click.argument("results", metavar="RESULTS")
@click.option(
    "-o", "--out", default="report.html", show_default=True, help="The file; it is replaced."
)
@click.option("-q", "--quiet", is_flag=True, help="Nothing on stderr.")
def report(results: str, out: str, quiet: bool) -> None:
    """Write RESULTS as one HTML file: findings, tables, and figures to hover over.

    It opens offline, asks nothing of any server, and shows tables and static pictures where there
    is no JavaScript.
    """
    from wdecomp.audit import findings
    from wdecomp.publishing import write_report
    from wdecomp.stats import conclusions
    from wdecomp.table import read_results

    file = Path(out)
    if not file.name:
        raise click.BadParameter(f"{out!r} names no file.", param_hint="'-o'")
    read = read_results(results)
    write_report(read, file, findings(read), conclusions(read.modules, read.fits))
    if not quiet:
        say_aside(f"Wrote {out} ({file.stat().st_size / 1e6:.1f} MB).")
