"""wdecomp gradients"""  # noqa: D415

import json
from typing import Any

import click

from wdecomp.cli.console import say, say_aside


def _names(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (value or "").split(",") if name.strip())


@click.command()
@click.option(
    "--model", required=True, metavar="DIR", help="Folder of the model and its tokenizer."
)
@click.option(
    "--data", required=True, metavar="FILE", help="Rows to take the loss of, as for wdecomp train."
)
@click.option(
    "--adapter",
    metavar="DIR",
    help="LoRA, DoRA, VeRA or DVoRA on MODEL, whose own m and V are taken [default: those of the "
    "weights, m = ‖W‖ and V = W].",
)
@click.option(
    "--task",
    type=click.Choice(["auto", "pairs", "classify", "lm"]),
    default="auto",
    show_default=True,
    help="Whose loss: to find a pair's other half, a label, the next token; auto: what the fields "
    "are for.",
)
@click.option(
    "--targets",
    callback=_names,
    metavar="NAMES",
    help="Modules by their last names: q_proj,v_proj [default: the adapter's, or the query and "
    "value projections].",
)
@click.option(
    "--batches", type=int, help="Batches to average [default: 32, or as many as the data has]."
)
@click.option("--batch", type=int, default=16, show_default=True, help="Rows in a batch.")
@click.option(
    "--axis",
    type=click.Choice(["output", "input"]),
    default="output",
    show_default=True,
    help="Which weights are a column, of one output or of one input feature; an adapter's "
    "magnitudes say it themselves.",
)
@click.option(
    "--covariance",
    is_flag=True,
    help="Also whether Eq. (6) brings the gradient's covariance closer to identity.",
)
@click.option(
    "--columns",
    type=int,
    default=32,
    show_default=True,
    help="Columns of a matrix that --covariance looks at.",
)
@click.option(
    "--max-length",
    type=int,
    help="Tokens at which a text is cut [default: 256, or as many as the model takes].",
)
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    help="Of the rows' order, and of a head that MODEL has not.",
)
@click.option("-o", "--out", metavar="DIR", help="Folder for tables and pictures.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")
def gradients(out: str | None, as_json: bool, quiet: bool, **options: Any) -> None:
    """Measure what the decomposition makes of a model's gradients: section 4.2 of the DoRA paper.

    Eqs. (6) to (10) for every column of the model's own gradients: |∂L/∂m| beside |cos(∂L/∂W, v)|,
    and what the projection of Eq. (6) removes. Nothing is trained.
    """
    from wdecomp.train.gradients.running import Question, measure
    from wdecomp.train.gradients.telling import as_text, record_of

    found = measure(Question(**options), out, progress=not quiet)
    say(json.dumps(record_of(found), indent=1) if as_json else as_text(found))
    if out is not None and not quiet:
        say_aside(f"Wrote {out}/: modules and columns as Parquet, gradients.svg, gradients.json.")
