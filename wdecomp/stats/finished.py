"""The fits of finished tables: of the matrices, and of the columns that were kept."""

import math
from collections.abc import Iterator

import pandas as pd
import pyarrow as pa

from wdecomp.stats.fits import column_fits, module_fits
from wdecomp.table import FIGURES, ColumnsOf, Results

MOST_COLUMNS = 1 << 18  # of a module kind in one fit; of more, evenly spaced ones are taken


def result_fits(results: Results) -> pd.DataFrame:
    """Everything that the `fits` table has, from the tables that come before it.

    Columns are those of each run's last step, a run and module kind at a time, so that memory does
    not grow with the model.

    Raises:
        ResultsError: a table cannot be read.
    """
    tables = [module_fits(results.modules), column_fits(_kept_columns(results))]
    return pd.concat(tables, ignore_index=True)


def _kept_columns(results: Results) -> Iterator[tuple[tuple[str, ...], pd.DataFrame]]:
    """(run, stack, module, axis) and the columns of it."""
    modules = results.modules
    last = modules.groupby("run", sort=False)["step"].transform("max")
    wanted = (modules["step"] == last) | modules["step"].isna()
    wanted &= modules["axis"].isin(results.run["options"]["columns"])
    kinds = modules[wanted].groupby(["run", "stack", "module", "axis"], sort=False)
    for key, rows in kinds:
        run, stack, module, axis = (str(part) for part in key)
        every = math.ceil(rows["n_columns"].sum() / MOST_COLUMNS)
        of = ColumnsOf(run, None, frozenset(rows["parameter"]), axis, max(every, 1))
        points = _points(results.columns_table(of), rows.set_index("parameter")["layer"])
        yield (run, stack, module, axis), points


def _points(columns: pa.Table, layer_of: "pd.Series[int]") -> pd.DataFrame:
    """The figures of columns, with the layer of each: a name is looked up once."""
    words = columns["parameter"].combine_chunks()
    layers = layer_of.reindex(words.dictionary.to_pylist()).array
    points = {"layer": layers.take(words.indices.to_numpy())}
    return pd.DataFrame(points | {name: columns[name].to_numpy() for name in FIGURES})
