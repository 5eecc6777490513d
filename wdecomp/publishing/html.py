"""HTML from words and tables; nothing that comes from a results folder is markup."""

from collections.abc import Iterable, Sequence
from html import escape

from wdecomp.charts.words import printable


def text(value: object) -> str:
    r"""Anything as text between tags or in an attribute.

    >>> text("<b>\u202eq</b>")
    '&lt;b&gt;\\u202eq&lt;/b&gt;'
    """
    return escape(printable(str(value)))


def paragraphs(lines: Iterable[str]) -> str:
    """A list of sentences, or nothing."""
    items = "".join(f"<li>{text(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def table(
    heads: Sequence[str],
    rows: Iterable[Sequence[object]],
    numbers: Iterable[int] = (),
    caption: str = "",
) -> str:
    """A table that scrolls on its own where the page is narrow.

    Args:
        heads: of the columns.
        rows: cells, as text.
        numbers: the columns that are set to the right.
        caption: above it.
    """
    right = set(numbers)

    def cells(tag: str, values: Sequence[object], more: str = "") -> str:
        return "".join(
            f"<{tag}{more}{' class=number' if i in right else ''}>{text(value)}</{tag}>"
            for i, value in enumerate(values)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    said = f"<caption>{text(caption)}</caption>" if caption else ""
    head = cells("th", heads, " scope=col")
    return (
        f"<div class=wide tabindex=0><table>{said}<thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def section(name: str, title: str, body: str, figure: bool) -> str:
    """A part of the page that the navigation leads to; in a figure the script finds its place."""
    mark = f' data-figure="{name}"' if figure else ""
    return f'<section id="{name}"{mark}><h2>{text(title)}</h2>{body}</section>'
