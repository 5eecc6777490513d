"""The file of one unit of work, as Arrow writes it: its columns, its other rows beside them."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from wdecomp.table.columns import NUMBERS, ColumnGroup, Run, numbers_of, table_of, together
from wdecomp.table.files import reading

SUFFIX = ".arrow"
ROWS = b"wdecomp"


@dataclass
class Part:
    """What one unit of work found."""

    modules: list[dict[str, Any]] = field(default_factory=list)
    facts: list[dict[str, Any]] = field(default_factory=list)
    columns: list[ColumnGroup] = field(default_factory=list)
    spectra: list[dict[str, Any]] = field(default_factory=list)
    inputs: list[dict[str, Any]] = field(default_factory=list)


def write_part(path: Path, part: Part) -> None:
    """Writes a part; floats keep every bit."""
    groups = [(run, *numbers_of(some)) for run, some in together(part.columns)]
    rows = {
        "modules": [_without_nan(row) for row in part.modules],
        "facts": [_without_nan(row) for row in part.facts],
        "spectra": [_without_nan(row) for row in part.spectra],
        "inputs": part.inputs,
        "groups": [(run, owners) for run, _, owners in groups],
    }
    schema = NUMBERS.with_metadata({ROWS: json.dumps(rows, allow_nan=False)})
    with path.open("xb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for _, numbers, _ in groups:
            writer.write_batch(numbers)


def read_rows(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A part's rows of modules and of facts."""
    with _opened(path) as (_, rows):
        return rows["modules"], rows["facts"]


def read_spectra(path: Path) -> list[dict[str, Any]]:
    """A part's rows of spectra."""
    with _opened(path) as (_, rows):
        spectra: list[dict[str, Any]] = rows["spectra"]
        return spectra


def read_inputs(path: Path) -> list[dict[str, Any]]:
    """A part's rows of inputs."""
    with _opened(path) as (_, rows):
        inputs: list[dict[str, Any]] = rows["inputs"]
        return inputs


def read_groups(path: Path, run: Run) -> Iterator[pa.Table]:
    """A part's row groups of one run and step, one after another."""
    with _opened(path) as (file, rows):
        for i, (of, owners) in enumerate(rows["groups"]):
            if tuple(of) == run:
                yield table_of(file.get_batch(i), owners)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[pa.ipc.RecordBatchFileReader, Any]]:
    """A part, and its rows of all kinds."""
    with reading(path), pa.OSFile(str(path)) as source, pa.ipc.open_file(source) as file:
        yield file, json.loads(file.schema.metadata[ROWS])


def _without_nan(row: dict[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in row.items()
    }
