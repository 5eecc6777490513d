"""wdecomp compare"""  # noqa: D415

import json
import textwrap
from pathlib import Path
from typing import Any

import click

from wdecomp.cli.console import say, say_aside
from wdecomp.cli.selection import (
    base_dequantized_option,
    layers_option,
    modules_option,
    pickle_option,
    split_base,
)

WIDTH = 100


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="BASE TUNED...")
@click.option(
    "-o", "--out", default="wdecomp-results", show_default=True, help="Folder for the results."
)
@click.option(
    "--axis",
    type=click.Choice(["output", "input", "both"]),
    default="both",
    show_default=True,
    help="Which weights are a column: those of one output feature, of one input feature.",
)
@click.option(
    "--columns",
    type=click.Choice(["none", "output", "input", "both"]),
    default="output",
    show_default=True,
    help="Axes for which the figures of every column are kept.",
)
@modules_option
@layers_option
@base_dequantized_option
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    help="Where sums are formed: cpu, cuda, cuda:N; numpy: slowly, without compiled sums.",
)
@click.option(
    "--spectral",
    is_flag=True,
    help="Singular values of every change: effective rank, energy, alignment with the base, "
    "intruder dimensions. Slow: about a minute for 4096x4096 on one core. Holds one base matrix "
    "and its change in float32 at a time, and four float64 squares of the shorter side (1.1 GB "
    "in all for 11008x4096); matrices of more than 2^29 weights are left out and named.",
)
@click.option(
    "--checksums",
    is_flag=True,
    help="Keep the CRC-32 of every byte that is read, for `wdecomp check --inputs`.",
)
@click.option("-j", "--workers", type=click.IntRange(min=1), help="Threads [default: all cores].")
@pickle_option
@click.option("--restart", is_flag=True, help="Replace the results of another run in --out.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")
def compare(
    paths: tuple[str, ...], out: str, as_json: bool, axis: Any, quiet: bool, **options: Any
) -> None:
    """Measure how far TUNED checkpoints moved from BASE.

    A TUNED is a folder or a safetensors file: a full checkpoint, a PEFT LoRA or DoRA adapter, or
    a folder of checkpoint-N/ whose N become steps. Label it NAME=PATH, or NAME:METHOD=PATH for a
    merged checkpoint whose method cannot be read. If the first path is an adapter, the base is
    the one that its config names.
    """
    from wdecomp.table import refuse_busy

    refuse_busy(Path(out))  # before half a second of imports
    from wdecomp import comparison, report
    from wdecomp.stats.spectra import spectral_texts

    base, tuned = split_base(paths)
    results = comparison.compare(base, *tuned, out=out, axis=axis, progress=not quiet, **options)
    shown = "input" if axis == "input" else "output"
    spectra = spectral_texts(results.spectra) if options["spectral"] else []
    if as_json:
        said = {"spectra": spectra} if spectra else {}
        say(json.dumps(report.as_json(results, shown) | said, indent=1))
        return
    say(report.as_text(report.summary(results, shown), shown))
    for text in spectra:
        say("\n" + textwrap.fill(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False))
    for note in report.notes(results):
        say(f"- {note}")
    if not quiet:
        tables = "modules, fits, facts and spectra" if spectra else "modules, fits and facts"
        say_aside(f"Wrote {Path(out)}/: {tables} as Parquet, columns/, run.json.")
