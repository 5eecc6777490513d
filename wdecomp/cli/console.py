"""What goes to the terminal: results to stdout, all else to stderr, nothing that steers it."""

import click


def say(text: str) -> None:
    """A result, to stdout."""
    click.echo(printable(text))


def say_aside(text: str) -> None:
    """A word beside the result, to stderr."""
    click.echo(printable(text), err=True)


def say_error(text: str) -> None:
    """What went wrong, in one line, to stderr."""
    click.echo(f"wdecomp: {printable(' '.join(text.splitlines()))}", err=True)


def printable(text: str) -> str:
    r"""Text whose control characters are shown, not obeyed: names come from strangers' files.

    >>> printable("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode("ascii")
        for c in text
    )
