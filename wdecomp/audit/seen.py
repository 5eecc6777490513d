"""One run at one step as the tables have it: what every rule looks at."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from wdecomp.audit.finding import Evidence, Finding, Rule, Severity
from wdecomp.table import Results
from wdecomp.table.schema import FACTS

QUANTIZATION = "quantization"  # a run that shows what quantising the base did, and what ends in it
OUTPUT = "output"
WHERE = ("run", "method", "step")  # the same in all rows of one run at one step
TURNED = ["parameter", "delta_magnitude", "delta_direction", "floor_delta_direction", "dtype_tuned"]
NO_STEP = -1


@dataclass(frozen=True)
class Seen:
    """One run at one step.

    facts, modules: its rows; of modules those of the output axis, indexed by parameter.
    notes: what pairing said of the run.
    missing: tensors of the base that a full checkpoint has not.
    config: adapter_config.json, {} if there is none.
    is_base: whether this is the base itself.
    """

    run: str
    method: str
    step: int | None
    path: str
    facts: pd.DataFrame
    modules: pd.DataFrame
    notes: tuple[str, ...]
    missing: tuple[str, ...]
    config: Mapping[str, Any]
    is_base: bool

    @property
    def is_quantization(self) -> bool:
        """Whether it shows quantisation, alone or with training."""
        return self.method == QUANTIZATION or self.run.endswith(f"+{QUANTIZATION}")

    @cached_property
    def matrices(self) -> pd.DataFrame:
        """The facts of all tensors that have columns."""
        return self.facts[self.facts["shape"].str.len() > 1]

    @cached_property
    def adapted(self) -> pd.DataFrame:
        """Those of matrices that an adapter changes by a formula."""
        return self.matrices[self.matrices["formula"].notna()]

    @cached_property
    def stored(self) -> pd.DataFrame:
        """Those of matrices that are stored whole."""
        return self.matrices[self.matrices["formula"].isna()]

    @cached_property
    def with_magnitude(self) -> pd.DataFrame:
        """Those of matrices with magnitudes that could be held beside the base's norms."""
        return self.adapted[self.adapted["magnitudes"] > 0]

    @property
    def is_adapter(self) -> bool:
        """Whether anything is changed by a formula."""
        return bool(self.facts["formula"].notna().any())

    def found(
        self,
        rule: Rule,
        severity: Severity,
        message: str,
        rows: pd.DataFrame | tuple[str, ...] = (),
        **evidence: Evidence,
    ) -> Finding:
        """A finding of this run at this step."""
        names = rows if isinstance(rows, tuple) else tuple(rows["parameter"])
        steps = () if self.step is None else (self.step,)
        figures = {name: _plain(value) for name, value in evidence.items()}
        return Finding(rule, severity, self.run, steps, message, figures, names, self.path)


def seen_in(results: Results) -> Iterator[Seen]:
    """Every run at every step, in the order of the runs.

    Raises:
        ResultsError: the tables cannot be read.
    """
    modules, left_out = results.modules, results.left_out
    gone = left_out["side"].eq("base") & left_out["reason"].str.startswith("no such tensor")
    facts = _by_step(results.facts, [name for name in FACTS.names if name not in WHERE])
    turned = _by_step(modules[modules["axis"] == OUTPUT], TURNED)
    missing = _by_step(left_out[gone], ["tensor"])
    for each in results.run["runs"]:
        run, step = each["run"], each["step"]
        yield Seen(
            run=run,
            method=each["method"],
            step=step,
            path=each["path"],
            facts=facts(run, step),
            modules=turned(run, step).set_index("parameter", drop=False),
            notes=tuple(note for name, note in results.run["notes"] if name == run),
            missing=tuple(missing(run, step)["tensor"]),
            config=each.get("adapter_config") or {},
            is_base=bool(each.get("shards")) and each["shards"] == results.run["base"]["shards"],
        )


def counted(part: pd.DataFrame, whole: pd.DataFrame) -> str:
    """How many of how many, for messages.

    >>> two = pd.DataFrame({"a": [1, 2]})
    >>> counted(two[:1], two), counted(two, two)
    ('1 of 2', 'all 2')
    """
    return f"all {len(whole)}" if len(part) == len(whole) else f"{len(part)} of {len(whole)}"


def _by_step(table: pd.DataFrame, columns: list[str]) -> Callable[[str, int | None], pd.DataFrame]:
    """The rows of a table for a run at a step; text is Python's, which is quicker to pick from."""
    text = {name: object for name in columns if table[name].dtype == "str"}
    plain = table[columns].astype(text).copy()
    keys = table["run"].astype(object), table["step"].fillna(NO_STEP).astype(int)
    parts = dict(iter(plain.groupby(list(keys), sort=False)))
    return lambda run, step: parts.get((run, NO_STEP if step is None else step), plain[:0])


def _plain(value: Evidence) -> Evidence:
    """Python's own number, of a float six digits; text as it is."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return value if isinstance(value, str) else int(value)
