"""Does ΔM go with ΔD, and how sure is that? Functions of result tables alone, never of a tensor."""

from wdecomp.stats.finished import result_fits
from wdecomp.stats.fits import (
    ESTIMATORS,
    FIT_COLUMNS,
    GROUPINGS,
    RESPONSES,
    column_fits,
    module_fits,
)

__all__ = [
    "ESTIMATORS",
    "FIT_COLUMNS",
    "GROUPINGS",
    "RESPONSES",
    "column_fits",
    "module_fits",
    "result_fits",
]
