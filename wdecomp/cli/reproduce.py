"""wdecomp reproduce"""  # noqa: D415

from pathlib import Path

import click

from wdecomp.cli.console import say


@click.command()
@click.option(
    "-o", "--out", default="wdecomp-reproduction", show_default=True, help="Folder for all of it."
)
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Times that everything is trained.",
)
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    help="Another local sentence encoder (BERT family) than the packaged all-MiniLM-L6-v2.",
)
@click.option("--quick", is_flag=True, help="A sixth of the steps, and figures that mean little.")
@click.option(
    "-j", "--workers", type=click.IntRange(min=1), help="Trainings at a time [default: all cores]."
)
@click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")
def reproduce(
    out: str, seeds: int, model: Path | None, quick: bool, workers: int | None, quiet: bool
) -> None:
    """Repeat the paper's experiments on the demo's model and write the page about them.

    Correlations of ΔM with ΔD, ranks, sizes of the training set, granularity, VeRA and DVoRA, NF4,
    memory: 33 short trainings for each seed. Given again, the same command goes on where it was
    interrupted.
    """
    from wdecomp.reproduction.experiment import run_reproduction

    page = run_reproduction(Path(out), model, seeds, quick, workers, progress=not quiet)
    say(f"Wrote {page}.")
