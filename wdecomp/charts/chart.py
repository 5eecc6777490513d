"""A chart, described once for every renderer: what stands where, in numbers and words.

A function of tables makes a `Chart`; `interactive` and `static` draw any of them, and neither knows
what it shows. Words are plain text: whoever draws them escapes them.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Key = tuple[str, int | None, str]  # run, step, parameter: which point this is


@dataclass(frozen=True)
class Axis:
    """A direction of a facet.

    title: what stands beside it; up to the first comma it is the quantity's sign.
    low, high: the ends of what is shown.
    ticks: words at 0, 1, 2, … in place of numbers.
    whole: only whole numbers have a tick.
    """

    title: str
    low: float
    high: float
    log: bool = False
    ticks: tuple[str, ...] = ()
    whole: bool = False

    @property
    def sign(self) -> str:
        """The title up to its first comma: "ΔD" of "ΔD, mean 1 − cos"."""
        return self.title.partition(",")[0]


@dataclass(frozen=True)
class Scale:
    """What colours mean that are given as numbers."""

    title: str
    low: float
    high: float
    log: bool = False
    whole: bool = False


@dataclass(frozen=True)
class Points:
    """Marks at (x, y); `colour` is one for all, or a number each on the chart's scale."""

    x: Floats
    y: Floats
    colour: str | Floats
    marker: int = 0
    label: str = ""
    size: float = 8
    hover: tuple[str, ...] = ()
    keys: tuple[Key, ...] = ()


@dataclass(frozen=True)
class Line:
    """Points joined in order; `colour` may be a number on the chart's scale."""

    x: Floats
    y: Floats
    colour: str | float
    dash: Literal["solid", "dash", "dot"] = "solid"
    label: str = ""
    marker: int | None = None
    hover: tuple[str, ...] = ()
    width: float = 1.6


@dataclass(frozen=True)
class Band:
    """What lies between two lines."""

    x: Floats
    low: Floats
    high: Floats
    colour: str
    label: str = ""


@dataclass(frozen=True)
class Level:
    """A line across the whole facet at one value of `of`."""

    of: Literal["x", "y"]
    value: float
    label: str = ""


@dataclass(frozen=True)
class Cells:
    """Rectangles between edges, coloured by `values` (rows go along y; NaN is empty)."""

    x_edges: Floats
    y_edges: Floats
    values: Floats
    hover: tuple[tuple[str, ...], ...] = ()


Labelled = Points | Line | Band | Level
Mark = Labelled | Cells


@dataclass(frozen=True)
class Facet:
    """One pair of axes with what is drawn between them; a heading of a name and a remark."""

    heading: str
    x: Axis
    y: Axis
    marks: tuple[Mark, ...]
    remark: str = ""
    colour: str = ""  # of the heading; none is the text's own


@dataclass(frozen=True)
class Chart:
    """Facets in rows, top first.

    notes: sentences that a reader of the picture has to know.
    alt: the picture in a sentence, for those who do not see it.
    """

    title: str
    rows: tuple[tuple[Facet, ...], ...]
    scale: Scale | None = None
    notes: tuple[str, ...] = ()
    alt: str = ""

    @property
    def n_columns(self) -> int:
        """Facets in the longest row."""
        return max(len(row) for row in self.rows)

    def labelled(self) -> "list[Labelled]":
        """A mark for each label, in the order of a legend: shapes, lines, bands, levels."""
        first: dict[str, Labelled] = {}
        for mark in (mark for row in self.rows for facet in row for mark in facet.marks):
            if not isinstance(mark, Cells) and mark.label:
                first.setdefault(mark.label, mark)
        kinds = (Points, Line, Band, Level)
        return sorted(
            first.values(),
            key=lambda mark: (kinds.index(type(mark)), _place(getattr(mark, "marker", None))),
        )


def _place(marker: int | None) -> float:
    return math.inf if marker is None else marker


def wrapped(facets: list[Facet], columns: int) -> list[tuple[Facet, ...]]:
    """Facets in rows of at most so many."""
    return [tuple(facets[i : i + columns]) for i in range(0, len(facets), columns)]
