"""wdecomp train"""  # noqa: D415

from pathlib import Path
from typing import Any

import click

from wdecomp.cli.console import say, say_aside


def _names(_: click.Context, __: click.Parameter, value: str | None) -> list[str] | None:
    return None if value is None else [name.strip() for name in value.split(",") if name.strip()]


def _moments(_: click.Context, __: click.Parameter, value: str | None) -> list[float] | None:
    """Steps as int, shares of the steps as float."""
    if value is None:
        return None
    try:
        return [float(part) if "." in part else int(part) for part in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"{value!r} is not written like 0.5,1.0 or 100,200.") from None


def _choice(*words: str) -> click.Choice[str]:
    return click.Choice(words)


@click.command()
@click.option(
    "--method",
    type=_choice("full", "lora", "dora", "vera", "dvora", "magnitude"),
    help="What is trained: every parameter, or adapters of one kind.",
)
@click.option("--model", metavar="DIR", help="Folder of the base model and its tokenizer.")
@click.option(
    "--data",
    metavar="FILE",
    help=".txt (a text in each line), .jsonl or .json with the fields text; prompt, completion; "
    "text, label; or anchor, positive (query, document; text1, text2; sentence1, sentence2).",
)
@click.option("-o", "--out", metavar="DIR", help="Folder for the run.")
@click.option(
    "--task",
    type=_choice("auto", "pairs", "classify", "lm"),
    help="What is learnt: to find a pair's other half, a label, the next token "
    "[default: what the fields are for].",
)
@click.option(
    "--targets",
    callback=_names,
    metavar="NAMES",
    help="Modules to adapt, by their last names: q_proj,v_proj "
    "[default: the query and value projections].",
)
@click.option(
    "--magnitude-targets",
    callback=_names,
    metavar="NAMES",
    help="Modules of which only magnitudes are trained, beside those of --targets.",
)
@click.option("--rank", type=int, help="Rank of the adapters [default: 16].")
@click.option("--alpha", type=float, help="Their scaling times their rank [default: 32].")
@click.option("--dropout", type=float, help="Of the adapters' inputs [default: 0].")
@click.option(
    "--rslora/--no-rslora", default=None, help="Scale by alpha/√rank instead of alpha/rank."
)
@click.option(
    "--half-rank/--no-half-rank",
    default=None,
    help="The paper's DoRA†: half the rank, and alpha twice that.",
)
@click.option(
    "--norm-gradient",
    type=_choice("detached", "exact"),
    help="Whether a column's norm is a constant in the backward pass [default: detached].",
)
@click.option(
    "--axis",
    type=_choice("output", "input"),
    help="Whose magnitudes are trained: output or input features' [default: output].",
)
@click.option("--lr", type=float, help="Peak learning rate of AdamW [default: the method's].")
@click.option("--steps", type=int, help="Optimizer steps, instead of --epochs.")
@click.option("--epochs", type=float, help="Times that each row is seen [default: 3].")
@click.option("--batch", type=int, help="Rows in a batch [default: 16].")
@click.option("--accumulate", type=int, help="Batches in a step [default: 1].")
@click.option("--warmup", type=int, help="Steps in which the rate rises [default: 0].")
@click.option(
    "--schedule",
    type=_choice("linear", "cosine", "constant"),
    help="How the rate falls from there [default: linear].",
)
@click.option("--weight-decay", type=float, help="AdamW's weight decay [default: 0].")
@click.option("--clip", type=float, help="Largest norm of the gradient [default: any].")
@click.option("--seed", type=int, help="Of all that is random [default: 0].")
@click.option(
    "--max-length",
    type=int,
    help="Tokens at which a text is cut [default: 256, or as many as the model takes].",
)
@click.option(
    "--save-at",
    callback=_moments,
    metavar="LIST",
    help="When checkpoints are written: shares of the run with a decimal point, steps without "
    "[default: 0.25,0.5,0.75,1.0].",
)
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path),
    help="TOML file with any of these options by their names; options given here win.",
)
@click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")
def train(file: Path | None, quiet: bool, **options: Any) -> None:
    """Fine-tune a local model by one of the paper's methods, with checkpoints to compare.

    Needs --method, --model, --data and --out, here or in the file of --config. Given again, the
    same command goes on where it was interrupted and ends with the same files.
    """
    from wdecomp.train.config import read_config
    from wdecomp.train.running import run_training

    given = {name: value for name, value in options.items() if value is not None}
    config = read_config(given, file)
    steps = run_training(config, progress=not quiet)
    first, last = steps[0], steps[-1]
    say(f"{config.method}: {last.step} steps, loss from {first.loss:.4g} to {last.loss:.4g}.")
    if not quiet:
        say_aside(f"Wrote {config.out}/: checkpoint-N, steps.csv, training.svg, train.json.")
        say_aside(f"Look at it: wdecomp compare {config.model} {config.out}")
