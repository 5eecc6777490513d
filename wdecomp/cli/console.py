"""What goes to the terminal: results to stdout, all else to stderr, nothing that steers it."""

import re

import click

SHOWN = 100  # characters of either end of a name that no one would read whole
LONG_WORD = re.compile(rf"\S{{{4 * SHOWN},}}")


def say(text: str) -> None:
    """A result, to stdout."""
    click.echo(printable(text))


def say_aside(text: str) -> None:
    """A word beside the result, to stderr."""
    click.echo(printable(text), err=True)


def say_error(text: str) -> None:
    """What went wrong, in one line, to stderr."""
    line = LONG_WORD.sub(lambda m: f"{m[0][:SHOWN]}…{m[0][-SHOWN:]}", " ".join(text.splitlines()))
    click.echo(f"wdecomp: {printable(line)}", err=True)


def printable(text: str) -> str:
    r"""Text whose control characters are shown, not obeyed: names come from strangers' files.

    >>> printable("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode("ascii")
        for c in text
    )
