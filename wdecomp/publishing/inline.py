"""Static pictures as parts of a page: in its colours, and small.

matplotlib says everything of every mark: what many have in common becomes a class of the page's
style sheet, and groups that say nothing go.
"""

import re
from collections.abc import Mapping

from wdecomp.charts import Chart
from wdecomp.charts.static import picture

INK = "#010203"  # a colour that nothing else has, so that it can be told apart afterwards
SETTINGS = {"svg.fonttype": "none", "font.family": "sans-serif"}
DROPPED = re.compile(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", re.DOTALL)
TAG = re.compile(r"<[^>]*>")
SIZE = re.compile(r' (?:width|height)="[\d.]+pt"')
ID = re.compile(r' id="([^"]*)"')
USED = re.compile(r'#([\w-]+)["\)]')
LOOK = re.compile(r' (style|clip-path)="([^"]*)"')
FONT = re.compile(r"font-family: [^;]*")
LONG_NUMBER = re.compile(r"(\d\.\d)\d+")


class Pictures:
    """Charts as <svg> elements that share their classes; `styles` is what these are."""

    def __init__(self) -> None:
        self._classes: dict[str, str] = {}

    @property
    def styles(self) -> str:
        """The rules of all pictures that were made."""
        return "\n".join(f".{name} {{ {look} }}" for look, name in self._classes.items())

    def svg(self, chart: Chart) -> str:
        """The chart, its text in the colour of the page's."""
        drawn = picture(chart, "svg", INK, 0, SETTINGS).decode()
        svg = DROPPED.sub("", drawn[drawn.index("<svg") :])
        used = {name for tag in TAG.findall(svg) for name in USED.findall(tag)}
        kept: list[bool] = []  # of the groups that are open
        lean = TAG.sub(lambda found: self._tag(found[0], used, kept), svg)
        return "\n".join(line for line in map(str.strip, lean.splitlines()) if line)

    def _tag(self, tag: str, used: set[str], kept: list[bool]) -> str:
        if tag == "</g>":
            return tag if kept.pop() else ""
        tag = ID.sub(lambda name: name[0] if name[1] in used else "", tag)
        if tag.startswith("<svg"):
            tag = SIZE.sub("", tag)
        look = dict(LOOK.findall(tag))
        if look:
            tag = LOOK.sub("", tag)
            end = "/>" if tag.endswith("/>") else ">"
            tag = f'{tag.removesuffix(end)} class="{self._class(look)}"{end}'
        tag = LONG_NUMBER.sub(r"\1", tag)
        if tag.startswith("<g") and not tag.endswith("/>"):
            kept.append(tag != "<g>")
            return tag if kept[-1] else ""
        return tag

    def _class(self, look: Mapping[str, str]) -> str:
        parts = [look.get("style", "")]
        parts += [f"clip-path: {look['clip-path']}"] if "clip-path" in look else []
        rule = FONT.sub("font-family: sans-serif", "; ".join(part for part in parts if part))
        rule = rule.replace(INK, "currentColor")
        return self._classes.setdefault(rule, f"w{len(self._classes)}")
