"""wdecomp compare"""  # noqa: D415

import json
import re
import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from wdecomp.cli.console import say, say_aside
from wdecomp.cli.selection import (
    base_dequantized_option,
    layers_option,
    modules_option,
    pickle_option,
    split_base,
)
from wdecomp.errors import some

if TYPE_CHECKING:
    from wdecomp.table import Results, Share

WIDTH = 100
PART = re.compile(r"([0-9]{1,6})/([1-9][0-9]{0,5})")


def _share(_: click.Context, __: click.Parameter, value: str | None) -> "Share | None":
    from wdecomp.table import Share

    if value is None:
        return None
    found = PART.fullmatch(value)
    share = Share(int(found[1]), int(found[2])) if found else None
    if share is None or share.index >= share.count:
        raise click.BadParameter(f"{value!r} is no part, expected one of 0/N, 1/N, … N-1/N.")
    return share


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="BASE TUNED...")
@click.option(
    "-o",
    "--out",
    default="wdecomp-results",
    show_default=True,
    help="Folder for the results, or s3://BUCKET/FOLDER.",
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
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Have the workers of a Dask scheduler do the work: tcp://HOST:PORT or tls://HOST:PORT. "
    "They need the same paths, --out among them. Needs the extra dask.",
)
@click.option(
    "--worker-timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    default=300.0,
    show_default=True,
    help="With --scheduler: end, to be continued, when there was no worker for so long.",
)
@click.option(
    "--part",
    callback=_share,
    metavar="I/N",
    help="Do this part of the work alone, of 0/N to N-1/N, for `wdecomp finish` to make the tables "
    "once all are done. Other processes, on any hosts, may do theirs at the same time.",
)
@pickle_option
@click.option("--restart", is_flag=True, help="Replace the results of another run in --out.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")
def compare(paths: tuple[str, ...], as_json: bool, quiet: bool, **options: Any) -> None:
    """Measure how far TUNED checkpoints moved from BASE.

    A TUNED is a folder or a safetensors file: a full checkpoint, a PEFT LoRA or DoRA adapter, or
    a folder of checkpoint-N/ whose N become steps. Label it NAME=PATH, or NAME:METHOD=PATH for a
    merged checkpoint whose method cannot be read. If the first path is an adapter, the base is
    the one that its config names. Any path may be a URL (hf://, s3://, gs://, az://, https://) or a
    model's name on the hub.
    """
    share, out = options.pop("part"), options["out"]
    _refuse_together(options, share)
    if share is not None:
        _compare_share(paths, share, out, as_json, not quiet, options)
        return
    from wdecomp.table import refuse_place

    refuse_place(out)  # before half a second of imports
    from wdecomp import comparison

    base, tuned = split_base(paths)
    results = comparison.compare(base, *tuned, progress=not quiet, **options)
    tell(results, as_json, quiet)


def tell(results: "Results", as_json: bool, quiet: bool) -> None:
    """Says what was found, and where its tables are."""
    from wdecomp import report
    from wdecomp.stats.spectra import spectral_texts

    asked = results.run["options"]
    shown: Any = "output" if "output" in asked["axes"] else "input"
    spectra = spectral_texts(results.spectra) if "spectral" in asked else []
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
        say_aside(f"Wrote {results.place}/: {tables} as Parquet, columns/, run.json.")


def _refuse_together(options: dict[str, Any], share: "Share | None") -> None:
    if options["scheduler"] is not None and options["workers"] is not None:
        raise click.UsageError(
            "--workers counts threads here, and with --scheduler none work here: it has workers "
            "of its own."
        )
    if share is not None and options["scheduler"] is not None:
        raise click.UsageError("--part and --scheduler are two ways to share out the work.")
    if share is not None and options["restart"]:
        raise click.UsageError(
            "--restart with --part would remove what other parts have done. Remove the folder, or "
            "choose another with --out."
        )


def _compare_share(
    paths: tuple[str, ...],
    share: "Share",
    out: str,
    as_json: bool,
    progress: bool,
    options: dict[str, Any],
) -> None:
    """One part, and what is left to do then."""
    from wdecomp.table import refuse_place

    refuse_place(out, share)
    from wdecomp import comparison

    others = ("out", "workers", "restart", "scheduler", "worker_timeout")
    base, tuned = split_base(paths)
    asked = comparison.asking(
        base, *tuned, **{key: value for key, value in options.items() if key not in others}
    )
    done = comparison.compare_share(share, asked, out, options["workers"], progress)
    left = [str(each) for each in comparison.missing_shares([share], done.left)]
    if as_json:
        say(json.dumps({"part": str(share)} | asdict(done) | {"parts_left": left}, indent=1))
        return
    say(f"Part {share}: its {done.own} units of work are done, {done.done} of them now.")
    if left:
        units = f"{len(done.left)} of {done.units} units are left"
        say(f"{units}: --part {some(left, 12)}. Then: wdecomp finish {out}")
    else:
        say(f"All {done.units} units are done. Now: wdecomp finish {out}")
