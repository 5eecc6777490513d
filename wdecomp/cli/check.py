"""wdecomp check"""  # noqa: D415

import json
import sys
from dataclasses import asdict

import click

from wdecomp.cli.console import say, say_aside

CHANGED = 3  # exit code where something is not what it was


@click.command()
@click.argument("results")
@click.option(
    "--inputs",
    is_flag=True,
    help="The files that were compared, too: all bytes that were read where --checksums has kept "
    "their checksums, else their sizes, headers and a sample.",
)
@click.option("--json", "as_object", is_flag=True, help="Print one JSON object instead of text.")
@click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")
def check(results: str, inputs: bool, as_object: bool, quiet: bool) -> None:
    """Say whether RESULTS are still what was written.

    Reads every file of a results folder again and names what has rotted, is gone or was put there.
    Exit code 0 if nothing has, 3 if something has.
    """
    from wdecomp.progress import byte_progress
    from wdecomp.scan.rereading import check_inputs
    from wdecomp.table import Results, copy_of
    from wdecomp.table.checking import check_results, checksums, results_size

    folder = copy_of(results)
    with byte_progress(results_size(folder), "checking", not quiet) as on_bytes:
        found = {"results": check_results(folder, on_bytes)}
    if inputs and not found["results"].wrong:
        rows = checksums(folder)
        with byte_progress(sum(row["bytes"] for row in rows), "reading", not quiet) as on_bytes:
            found["inputs"] = check_inputs(Results(folder).run, rows, on_bytes)
    elif inputs:
        found["results"].notes.append("The inputs were not checked: the results come first.")
    for each in found.values():  # what was fetched is named as where it came from
        each.wrong = [line.replace(str(folder), results) for line in each.wrong]
    wrong = [line for each in found.values() for line in each.wrong]
    if as_object:
        say(json.dumps({name: asdict(each) for name, each in found.items()}, indent=1))
    else:
        for line in wrong:
            say(line)
        for name, each in found.items():
            if not each.wrong:
                say(f"{results}: {each.files} files of its {name} are what they were.")
            for note in each.notes:
                say_aside(f"- {note}")
        if found["results"].wrong:
            say("Compare again with --restart to have them made anew.")
    if wrong:
        sys.exit(CHANGED)
