"""wdecomp plot"""  # noqa: D415

from pathlib import Path
from typing import Any

import click

from wdecomp.cli.console import say_aside

NAMES = ("scatter", "layers", "heatmap", "columns", "trajectories", "fits")


def _names(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (value or "").split(",") if name.strip())


@click.command()
@click.argument("results", metavar="RESULTS")
@click.option(
    "--figure",
    type=click.Choice(NAMES),
    default="scatter",
    show_default=True,
    help="scatter: Figs. 2 and 7 of the paper; layers: Fig. 3; heatmap: layer by module; columns: "
    "every column; trajectories: over the steps; fits: correlations and slopes with intervals.",
)
@click.option(
    "--module",
    "modules",
    callback=_names,
    metavar="KINDS",
    help="Module kinds: q or q,v or encoder.q [default: q; layers, heatmap and fits: all].",
)
@click.option("--stack", default="", help="Where a module kind is in several: encoder, decoder, ….")
@click.option(
    "--axis",
    type=click.Choice(["output", "input"]),
    default="output",
    show_default=True,
    help="Which weights are a column.",
)
@click.option("--run", "runs", multiple=True, help="Only this run. Can be repeated.")
@click.option("--step", "steps", multiple=True, type=int, help="Only this step. Can be repeated.")
@click.option("--relative", is_flag=True, help="ΔM/m0 in place of ΔM.")
@click.option("--direction", is_flag=True, help="ΔD in place of ΔM, in a heatmap.")
@click.option(
    "--matrix", default="", metavar="NAME", help="Whose columns are drawn: a parameter's full name."
)
@click.option("--own-axes", is_flag=True, help="Each run of a scatter has its own axes.")
@click.option(
    "--scale",
    type=click.Choice(["auto", "linear", "log"]),
    default="auto",
    show_default=True,
    help="Axes of a scatter.",
)
@click.option("-o", "--out", required=True, metavar="FILE", help="The picture: .svg, .pdf or .png.")
@click.option("-q", "--quiet", is_flag=True, help="Nothing on stderr.")
def plot(
    results: str, modules: tuple[str, ...], stack: str, out: str, quiet: bool, **view: Any
) -> None:
    """Draw RESULTS as a picture for a paper, without a browser."""
    from wdecomp.charts import View, chart_of
    from wdecomp.charts.static import write_picture
    from wdecomp.charts.views import find_kinds
    from wdecomp.table import read_results

    read = read_results(results)
    kinds = tuple(find_kinds(read.modules, modules, stack))
    chart = chart_of(read, View(kinds=kinds, **view))
    write_picture(chart, Path(out))
    if not quiet:
        for note in dict.fromkeys(chart.notes):
            say_aside(note)
        say_aside(f"Wrote {out}: {chart.alt}")
