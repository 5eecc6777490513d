"""wdecomp train"""  # noqa: D415

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wdecomp.cli.console import say, say_aside

if TYPE_CHECKING:
    from wdecomp.train.config import Config


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


def _moment(context: click.Context, option: click.Parameter, value: str | None) -> float | None:
    """A number of steps as int, a share of them as float."""
    return None if value is None else (_moments(context, option, value) or [0])[0]


def _choice(*words: str) -> click.Choice[str]:
    return click.Choice(words)


@click.command()
@click.option(
    "--recipe",
    metavar="NAME[:METHOD]",
    help="Settings of the paper, or of a TOML file like its recipes, below all that is given here; "
    "list shows them.",
)
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
@click.option(
    "--warmup",
    callback=_moment,
    metavar="N",
    help="Steps in which the rate rises, or a share of all with a decimal point [default: 0].",
)
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
    "--record-every",
    type=int,
    metavar="N",
    help="Record ΔM and ΔD into live/ of --out every N steps, and after the last.",
)
@click.option(
    "--quantize",
    type=_choice("nf4", "none"),
    help="Train adapters on a base in NF4, kept in base-nf4/ of --out; what full has trained is "
    "stored so [default: the recipe's, or none].",
)
@click.option(
    "--precision",
    type=_choice("float32", "bfloat16"),
    help="Of the frozen base; what is trained is in float32 [default: float32].",
)
@click.option("--device", metavar="NAME", help="cpu, cuda, cuda:N or mps [default: cpu].")
@click.option(
    "--across",
    type=_choice("ddp", "fsdp"),
    help="How processes that torchrun starts share the work [default: ddp].",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print what would be trained and its memory, from the model's shapes alone.",
)
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path),
    help="TOML file with any of these options by their names; options given here win.",
)
@click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")
def train(file: Path | None, dry_run: bool, quiet: bool, **options: Any) -> None:
    """Fine-tune a local model by one of the paper's methods, with checkpoints to compare.

    Needs --method, --model, --data and --out, here, in the file of --config or, what it can, from
    a --recipe. Given again, the same command goes on where it was interrupted and ends with the
    same files. Under torchrun each process takes its share of every batch.
    """
    from wdecomp.train.from_recipe import recipe_table

    if options["recipe"] == "list":
        say(recipe_table())
        return
    from wdecomp.train.config import read_config
    from wdecomp.train.distributed import rank
    from wdecomp.train.processes import processes

    given = {name: value for name, value in options.items() if value is not None}
    config = read_config(given, file, dry_run)
    if dry_run:
        _say_dry_run(config)
        _say_remarks(config, quiet)
        return
    with processes(config.device):
        _say_remarks(config, quiet or rank() > 0)
        _train(config, quiet or rank() > 0)


def _say_remarks(config: "Config", quiet: bool) -> None:
    from wdecomp.train.from_recipe import remarks

    for line in () if quiet else remarks(vars(config)):
        say_aside(line)


def _say_dry_run(config: "Config") -> None:
    from wdecomp.train.config import adapters_of
    from wdecomp.train.dry_run import as_text, dry_run_config
    from wdecomp.train.from_recipe import papers_percent

    paper = papers_percent(vars(config), adapters_of(config, config.targets))
    say(as_text(dry_run_config(config), paper))


def _train(config: "Config", quiet: bool) -> None:
    from wdecomp.train.distributed import rank
    from wdecomp.train.running import run_training

    steps = run_training(config, progress=not quiet)
    first, last = steps[0], steps[-1]
    if rank() == 0:
        say(f"{config.method}: {last.step} steps, loss from {first.loss:.4g} to {last.loss:.4g}.")
    if quiet:
        return
    folders = [name for name in ("base-nf4", "live") if Path(config.out, name).is_dir()]
    more = "".join(f", {name}/" for name in folders)
    say_aside(f"Wrote {config.out}/: checkpoint-N, steps.csv, training.svg, train.json{more}.")
    base = f" --base-dequantized {config.out}/base-nf4" if "base-nf4" in folders else ""
    say_aside(f"Look at it: wdecomp compare {config.model} {config.out}{base}")
