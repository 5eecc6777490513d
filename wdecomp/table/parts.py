"""The file of one unit of work: its columns as row groups, its other rows in the footer."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wdecomp.dtypes import Array, Floats
from wdecomp.table.files import columns_writer, reading
from wdecomp.table.schema import COLUMNS

FOOTER = b"wdecomp"
DROPPED = 29  # bits of a float64's significand that float32's has not


@dataclass(frozen=True)
class ColumnGroup:
    """The columns of one matrix along one axis, in one run at one step: a row group."""

    run: str
    step: int | None
    parameter: str
    axis: str
    column: Array
    magnitude_base: Floats
    delta_magnitude: Floats
    delta_direction: Floats


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
    groups = [group for group in part.columns if group.column.size]
    footer = {
        "modules": [_without_nan(row) for row in part.modules],
        "facts": [_without_nan(row) for row in part.facts],
        "spectra": [_without_nan(row) for row in part.spectra],
        "inputs": part.inputs,
        "groups": [[group.run, group.step] for group in groups],
    }
    schema = COLUMNS.with_metadata({FOOTER: json.dumps(footer, allow_nan=False)})
    with columns_writer(path, schema) as writer:
        for group in groups:
            writer.write_table(_table(group).cast(schema))


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


def read_groups(path: Path, run: tuple[str, int | None]) -> Iterator[pa.Table]:
    """A part's row groups of one run and step, one after another."""
    with reading(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        groups = _footer(file.schema_arrow)["groups"]
        for i, (name, step) in enumerate(groups):
            if (name, step) == run:
                yield file.read_row_group(i).replace_schema_metadata(None)


def _footer(schema: pa.Schema) -> Any:
    return json.loads(schema.metadata[FOOTER])


def _without_nan(row: dict[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in row.items()
    }


def _table(group: ColumnGroup) -> pa.Table:
    n = len(group.column)
    return pa.table(
        {
            "parameter": pa.repeat(pa.scalar(group.parameter), n),
            "axis": pa.repeat(pa.scalar(group.axis), n),
            "column": pa.array(group.column.astype(np.int32)),
            "magnitude_base": _to_float32_bits(group.magnitude_base),
            "delta_magnitude": _to_float32_bits(group.delta_magnitude),
            "delta_direction": _to_float32_bits(group.delta_direction),
        }
    )


def _to_float32_bits(figures: Floats) -> Floats:
    """Rounded to the significand of float32, with the range of float64."""
    bits = np.ascontiguousarray(figures, np.float64).view(np.int64)
    return ((bits + (1 << (DROPPED - 1))) & -(1 << DROPPED)).view(np.float64)
