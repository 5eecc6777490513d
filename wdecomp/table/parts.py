"""The file of one unit of work: its columns as row groups, its other rows in the footer."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from wdecomp.table.columns import (
    QUICK,
    ColumnGroup,
    Run,
    columns_writer,
    open_columns,
    read_group,
    table_of,
    together,
)
from wdecomp.table.files import reading

FOOTER = b"wdecomp"


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
    groups = list(together(part.columns))
    footer = {
        "modules": [_without_nan(row) for row in part.modules],
        "facts": [_without_nan(row) for row in part.facts],
        "spectra": [_without_nan(row) for row in part.spectra],
        "inputs": part.inputs,
        "groups": [run for run, _ in groups],
    }
    with columns_writer(path, **QUICK) as writer:
        writer.add_key_value_metadata({FOOTER: json.dumps(footer, allow_nan=False)})
        for _, some in groups:
            writer.write_table(table_of(some))


def read_rows(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A part's rows of modules and of facts."""
    with reading(path):
        footer = _footer(pq.read_schema(path))
        return footer["modules"], footer["facts"]


def read_spectra(path: Path) -> list[dict[str, Any]]:
    """A part's rows of spectra."""
    with reading(path):
        rows: list[dict[str, Any]] = _footer(pq.read_schema(path))["spectra"]
        return rows


def read_inputs(path: Path) -> list[dict[str, Any]]:
    """A part's rows of inputs."""
    with reading(path):
        rows: list[dict[str, Any]] = _footer(pq.read_schema(path))["inputs"]
        return rows


def read_groups(path: Path, run: Run) -> Iterator[pa.Table]:
    """A part's row groups of one run and step, one after another."""
    with reading(path), open_columns(path) as file:
        groups = _footer(file.schema_arrow)["groups"]
        for i, (name, step) in enumerate(groups):
            if (name, step) == run:
                yield read_group(file, i)


def _footer(schema: pa.Schema) -> Any:
    return json.loads(schema.metadata[FOOTER])


def _without_nan(row: dict[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in row.items()
    }
