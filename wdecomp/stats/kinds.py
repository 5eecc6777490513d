"""The rows of a table by kind, as arrays: a table of a thousand kinds is one question to pandas."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from wdecomp.stats.estimators import Floats

Key = tuple[Any, ...]
Columns = Mapping[str, npt.NDArray[Any]]


def kinds(
    table: pd.DataFrame, keys: Iterable[str], names: Iterable[str]
) -> Iterator[tuple[Key, Columns]]:
    """The columns of some names for each key, in the order in which they first appear."""
    keys = list(keys)
    number = table.groupby(keys, sort=False, dropna=False, observed=True).ngroup().to_numpy()
    order = np.argsort(number, kind="stable")
    rows_of = np.split(order, np.cumsum(np.bincount(number))[:-1]) if len(table) else []
    columns = {name: as_array(table[name]) for name in names}
    known = table[keys].iloc[[rows[0] for rows in rows_of]].itertuples(index=False, name=None)
    for key, rows in zip(known, rows_of, strict=True):
        yield key, {name: values[rows] for name, values in columns.items()}


def as_array(column: "pd.Series[Any]") -> npt.NDArray[Any]:
    """Numbers as float64, with NaN where there is none; text as it is."""
    if not pd.api.types.is_numeric_dtype(column.dtype):
        return column.to_numpy()
    return np.asarray(column.to_numpy(dtype=np.float64, na_value=np.nan), dtype=np.float64)


def of_last_step(columns: Columns) -> Columns:
    """The rows of the last step; all of them where there are no steps."""
    step = columns["step"]
    if np.isnan(step).all():
        return columns
    last = step == np.nanmax(step)
    return {name: values[last] for name, values in columns.items()}


def count(values: Floats) -> int:
    """How many unlike ones there are, NaN left out."""
    return len(np.unique(values[~np.isnan(values)]))


def mean(values: Floats) -> float:
    """Of those that are not NaN; NaN where there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else np.nan
