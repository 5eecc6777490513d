"""The fits of finished tables: of the matrices, and of the columns that were kept."""

import math
from functools import partial

import numpy as np
import pandas as pd

from wdecomp.stats.fits import KEYS, Kinds, column_fits, module_fits
from wdecomp.stats.kinds import Columns, kinds
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


def _kept_columns(results: Results) -> Kinds:
    """(run, stack, module, axis), and what reads the columns of it."""
    modules = results.modules
    last = modules.groupby("run", sort=False)["step"].transform("max")
    wanted = (modules["step"] == last) | modules["step"].isna()
    wanted &= modules["axis"].isin(results.run["options"]["columns"])
    for key, rows in kinds(modules[wanted], KEYS, ("parameter", "layer", "n_columns")):
        run, _, _, axis = key
        layer_of = dict(zip(rows["parameter"], rows["layer"], strict=True))
        every = math.ceil(rows["n_columns"].sum() / MOST_COLUMNS)
        of = ColumnsOf(run, None, frozenset(layer_of), axis, max(every, 1))
        yield key, partial(_points, results, of, layer_of)


def _points(results: Results, of: ColumnsOf, layer_of: dict[str, float]) -> Columns:
    """The figures of columns, with the layer of each: a name is looked up once."""
    columns = results.columns_table(of)
    words = columns["parameter"].combine_chunks()
    layers = np.array([layer_of.get(name, np.nan) for name in words.dictionary.to_pylist()])
    figures = {name: columns[name].to_numpy() for name in FIGURES}
    return figures | {"layer": layers[words.indices.to_numpy()]}
