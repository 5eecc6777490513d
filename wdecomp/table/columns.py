"""The columns of matrices in Parquet, one matrix to a row group, or several small ones.

A file of a hundred thousand row groups would take longer to open than to read. What a column is of
is written as a dictionary: to look up one name ten thousand times would take half of the writing.
In parts, which are read once and soon, the numbers of a row group stand alone, and whose they are
stands beside them.
"""

from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from wdecomp.dtypes import Array, Floats
from wdecomp.table.files import FORMAT
from wdecomp.table.schema import COLUMNS, FIGURES

WORDS = ["parameter", "axis"]
ENCODING = {"column": "DELTA_BINARY_PACKED"} | dict.fromkeys(FIGURES, "BYTE_STREAM_SPLIT")
NUMBERS = pa.schema([field for field in COLUMNS if field.name not in WORDS])
FEWEST_ROWS = 4096  # of a row group that no other matrix is added to
DROPPED = 29  # bits of a float64's significand that float32's has not

Run = tuple[str, int | None]
Owner = tuple[str, str, int]  # parameter, axis, and how many rows are of it


@dataclass(frozen=True)
class ColumnGroup:
    """The columns of one matrix along one axis, in one run at one step."""

    run: str
    step: int | None
    parameter: str
    axis: str
    column: Array
    magnitude_base: Floats
    delta_magnitude: Floats
    delta_direction: Floats


@dataclass(frozen=True)
class ColumnsOf:
    """Which columns are asked for, see `Results.columns`; `every` so-manieth of a matrix."""

    run: str
    step: int | None = None
    parameters: frozenset[str] | None = None
    axis: str = "output"
    every: int = 1


def together(columns: Iterable[ColumnGroup]) -> Iterator[tuple[Run, list[ColumnGroup]]]:
    """What a row group holds, run by run: matrices until there are rows enough."""
    by_run: dict[Run, list[ColumnGroup]] = {}
    for group in columns:
        if group.column.size:
            by_run.setdefault((group.run, group.step), []).append(group)
    for run, groups in by_run.items():
        some: list[ColumnGroup] = []
        rows = 0
        for group in groups:
            some.append(group)
            rows += group.column.size
            if rows >= FEWEST_ROWS:
                yield run, some
                some, rows = [], 0
        if some:
            yield run, some


def numbers_of(some: list[ColumnGroup]) -> tuple[pa.RecordBatch, list[Owner]]:
    """The rows of a row group as a part has them."""
    numbers = (np.concatenate([getattr(group, name) for group in some]) for name in NUMBERS.names)
    arrays = [pa.array(each, of.type) for each, of in zip(numbers, NUMBERS, strict=True)]
    owners = [(group.parameter, group.axis, len(group.column)) for group in some]
    return pa.record_batch(arrays, schema=NUMBERS), owners


def table_of(numbers: pa.RecordBatch, owners: Sequence[Owner]) -> pa.Table:
    """The rows of a row group as `COLUMNS` types them, with the bits that are kept."""
    parameters, axes, counts = zip(*owners, strict=True)
    words = [_repeated(each, counts) for each in (parameters, axes)]
    figures = [_to_float32_bits(numbers[name].to_numpy()) for name in FIGURES]
    return pa.table([*words, numbers["column"], *figures], schema=COLUMNS)


@contextmanager
def columns_writer(path: Path) -> Iterator[pq.ParquetWriter]:
    """Writes tables of columns to a new file, a row group each."""
    with (
        path.open("xb") as sink,
        pq.ParquetWriter(
            sink,
            COLUMNS,
            use_dictionary=WORDS,
            column_encoding=ENCODING,
            store_schema=False,  # whoever reads the file finds plain text, not dictionaries
            **FORMAT,
        ) as writer,
    ):
        yield writer


@contextmanager
def open_columns(path: Path) -> Iterator[pq.ParquetFile]:
    """A file of columns."""
    with pq.ParquetFile(path, page_checksum_verification=True, read_dictionary=WORDS) as file:
        yield file


def read_group(file: pq.ParquetFile, i: int) -> pa.Table:
    """A row group, as `COLUMNS` types it."""
    return pa.table(file.read_row_group(i).columns, schema=COLUMNS)


def groups_of(metadata: Any, wanted: Set[str] | None, axis: str) -> Iterator[int]:
    """The row groups that may hold some of these parameters, by the footer's statistics."""
    for i in range(metadata.num_row_groups):
        names, axes = (metadata.row_group(i).column(at).statistics for at in (0, 1))
        if axes.min <= axis <= axes.max and (wanted is None or _may_hold(names, wanted)):
            yield i


def picked(groups: Iterable[pa.Table], of: ColumnsOf) -> pa.Table:
    """What is asked for of some row groups."""
    tables = [COLUMNS.empty_table(), *(_picked(group, of) for group in groups)]
    return pa.concat_tables(tables).unify_dictionaries()


def _picked(group: pa.Table, of: ColumnsOf) -> pa.Table:
    kept = group.column("column").to_numpy() % of.every == 0
    kept &= _among(group.column("axis"), {of.axis})
    if of.parameters is not None:
        kept &= _among(group.column("parameter"), of.parameters)
    return group if kept.all() else group.filter(pa.array(kept))


def _may_hold(names: Any, wanted: Set[str]) -> bool:
    if not names.has_min_max:  # too long to stand in the footer
        return True
    if names.min == names.max:
        return names.min in wanted
    return any(names.min <= name <= names.max for name in wanted)


def _among(words: pa.ChunkedArray, wanted: Set[str]) -> npt.NDArray[np.bool_]:
    coded = words.combine_chunks()
    known = np.array([word in wanted for word in coded.dictionary.to_pylist()], np.bool_)
    held: npt.NDArray[np.bool_] = known[coded.indices.to_numpy()]
    return held


def _repeated(words: Sequence[str], counts: Sequence[int]) -> pa.DictionaryArray:
    """Each word so many times."""
    known = {word: code for code, word in enumerate(dict.fromkeys(words))}
    codes = np.array([known[word] for word in words], np.int32)
    return pa.DictionaryArray.from_arrays(codes.repeat(counts), list(known))


def _to_float32_bits(figures: Floats) -> Floats:
    """Rounded to the significand of float32, with the range of float64."""
    bits = figures.view(np.int64)
    return ((bits + (1 << (DROPPED - 1))) & -(1 << DROPPED)).view(np.float64)
