"""wdecomp finish"""  # noqa: D415

import click

from wdecomp.cli.compare import tell
from wdecomp.cli.console import say_aside


@click.command()
@click.argument("results")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@click.option("-q", "--quiet", is_flag=True, help="Only the results, on stdout.")
def finish(results: str, as_json: bool, quiet: bool) -> None:
    """Make the tables of RESULTS once `compare --part` has done all parts.

    Needs no checkpoint. Exit code 75 if there are parts that are not done; it names them.
    """
    from wdecomp.comparison import finish as finish_it
    from wdecomp.table import folder_of

    was_done = (folder_of(results) / "DONE.json").is_file()
    found = finish_it(results)
    if was_done and not quiet:
        say_aside(f"{results}: was finished already.")
    tell(found, as_json, quiet or was_done)
