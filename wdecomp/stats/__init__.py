"""Does ΔM go with ΔD, and how sure is that? Functions of result tables alone, never of a tensor."""

from wdecomp.stats.conclusions import (
    FEWEST_LAYERS,
    Conclusion,
    Correlation,
    conclusions,
    correlations,
)
from wdecomp.stats.finished import result_fits
from wdecomp.stats.fits import (
    ESTIMATORS,
    FIT_COLUMNS,
    GROUPINGS,
    RESPONSES,
    column_fits,
    module_fits,
)
from wdecomp.stats.null import null_points

__all__ = [
    "ESTIMATORS",
    "FEWEST_LAYERS",
    "FIT_COLUMNS",
    "GROUPINGS",
    "RESPONSES",
    "Conclusion",
    "Correlation",
    "column_fits",
    "conclusions",
    "correlations",
    "module_fits",
    "null_points",
    "result_fits",
]
