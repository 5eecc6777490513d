"""wdecomp demo"""  # noqa: D415

from pathlib import Path

import click

from wdecomp.cli.console import say


@click.command()
@click.option(
    "-o", "--out", default="wdecomp-demo", show_default=True, help="Folder for all that it makes."
)
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    help="Another local sentence encoder (BERT family) than the packaged all-MiniLM-L6-v2.",
)
@click.option("--quick", is_flag=True, help="Fewer steps: a minute, and figures that mean little.")
@click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")
def demo(out: str, model: Path | None, quick: bool, quiet: bool) -> None:
    """Fine-tune a real model three ways and look at what that did to its weights."""
    from wdecomp.demo.experiment import run_demo

    say(run_demo(Path(out), model, quick=quick, progress=not quiet))
