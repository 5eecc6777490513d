"""Fig. 2 or 7 as a file. The libraries that draw are imported when a picture is asked for."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from wdecomp.charts.files import commit_bytes
from wdecomp.charts.panels import Panel
from wdecomp.charts.scatter import scatter_chart

TITLE = 40  # pixels


def static_scatter(rows: Mapping[str, Sequence[Panel]], title: str, file: Path) -> None:
    """Writes a grid of panels, a row for each entry; the file's suffix decides the format.

    As in the paper, every panel has axes of its own.
    """
    from wdecomp.charts.static import write_picture

    write_picture(scatter_chart(rows, title, shared=False, scale="linear"), file)


def interactive_scatter(rows: Mapping[str, Sequence[Panel]], title: str, file: Path) -> None:
    """Writes a grid of panels as one HTML file that needs no network."""
    from wdecomp.charts.interactive import CONFIG, figure_of
    from wdecomp.charts.words import literal

    figure = figure_of(scatter_chart(rows, title, shared=False, scale="linear"))
    layout = figure.layout
    layout.title, layout.height = {"text": literal(title)}, layout.height + TITLE
    layout.margin.t += TITLE
    page = figure.to_html(include_plotlyjs=True, full_html=True, config=CONFIG)
    commit_bytes(file, page.encode())
