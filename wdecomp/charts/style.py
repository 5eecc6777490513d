"""Colours and shapes: one meaning each, in every chart, on white and on black."""

import math
from collections.abc import Iterable, Mapping

from wdecomp.charts.chart import Scale

# Colours that stay apart for colour-blind readers (Okabe and Ito), a fixed one for each method.
COLOURS = {
    **{"full": "#0072B2", "lora": "#D55E00", "dora": "#009E73"},
    **{"vera": "#E69F00", "dvora": "#CC79A7", "magnitude": "#56B4E9"},
}
OTHER_COLOUR = "#808080"
GREY = "#808080"
SQUARE = "■"  # in the colour of a run, before its name
FAINT = "rgba(128,128,128,0.25)"
GROWN, SHRUNK = "#0072B2", "#D55E00"

# The same shapes for both libraries, by number.
MARKERS = "os^DvPX*<>"
SYMBOLS = (
    *("circle", "square", "triangle-up", "diamond", "triangle-down"),
    *("cross", "x", "star", "triangle-left", "triangle-right"),
)

LAYER_COLOURS = "viridis"
# Viridis without its ends, of which one is lost on black and the other on white.
BY_LAYER = ("#433e85", "#365d8d", "#2a788e", "#21918c", "#28ae80", "#5ec962", "#9bd93c")
RESOLUTION = 150  # dots per inch of a PNG


def run_colours(methods: Mapping[str, str]) -> dict[str, str]:
    """A colour for each run: its method's; where several share a method, one that is left.

    Args:
        methods: run → method.

    >>> run_colours({"a": "lora", "b": "lora", "c": "dora"})
    {'a': '#D55E00', 'b': '#0072B2', 'c': '#009E73'}
    """
    used = set(methods.values())
    left = iter([colour for method, colour in COLOURS.items() if method not in used])
    given: dict[str, str] = {}
    seen: set[str] = set()
    for run, method in methods.items():
        own = COLOURS.get(method) if method not in seen else None
        given[run] = own or next(left, OTHER_COLOUR)
        seen.add(method)
    return given


def kind_colours(kinds: Iterable[str]) -> dict[str, str]:
    """A colour for each module kind, of the same few; shapes tell those apart that share one."""
    palette = list(COLOURS.values())
    return {kind: palette[i % len(palette)] for i, kind in enumerate(kinds)}


def at_scale(value: float, scale: Scale | None) -> str:
    """The colour of a number on a chart's scale; grey where there is none.

    >>> at_scale(0.0, Scale("layer", 0.0, 6.0)), at_scale(5.5, Scale("layer", 0.0, 6.0))
    ('#433e85', '#7cd14f')
    """
    if scale is None or not math.isfinite(value):
        return GREY
    place = (value - scale.low) / (scale.high - scale.low) * (len(BY_LAYER) - 1)
    i = min(max(int(place), 0), len(BY_LAYER) - 2)
    part = place - i
    ends = [[int(BY_LAYER[k][c : c + 2], 16) for c in (1, 3, 5)] for k in (i, i + 1)]
    mixed = [round(a + part * (b - a)) for a, b in zip(*ends, strict=True)]
    return "#" + "".join(f"{c:02x}" for c in mixed)
