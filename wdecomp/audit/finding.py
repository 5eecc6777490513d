"""One finding, and the rule that it is of."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")  # the worst first
Evidence = float | int | str


@dataclass(frozen=True)
class Rule:
    """What is looked for.

    id: as it is called in reports, for good.
    title: what is wrong where it is found.
    advice: what to do about it.
    """

    id: str
    title: str
    advice: str


@dataclass(frozen=True)
class Finding:
    """What was found in one run, at one step or several.

    message: one line, with figures.
    evidence: the figures by name, of the last step.
    tensors: names in the base, all of them.
    path: the checkpoint, as it was named.
    """

    rule: Rule
    severity: Severity
    run: str
    steps: tuple[int, ...]
    message: str
    evidence: Mapping[str, Evidence] = field(default_factory=dict)
    tensors: tuple[str, ...] = ()
    path: str = ""

    @property
    def where(self) -> str:
        """Run and steps, for humans.

        >>> Finding(Rule("a", "", ""), "note", "dora", (10, 20, 30), "").where
        'dora, steps 10 to 30'
        """
        if not self.steps:
            return self.run
        first, last = self.steps[0], self.steps[-1]
        return f"{self.run}, " + (f"step {last}" if first == last else f"steps {first} to {last}")
