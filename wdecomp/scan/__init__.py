"""The loop over weights: a plan from headers, units of work, rows for the tables."""

from wdecomp.scan.cluster import Cluster, FailedError, require_dask, run_on_cluster
from wdecomp.scan.engine import Work, complete, effort, reading, run_units
from wdecomp.scan.inputs import Inputs
from wdecomp.scan.plan import Plan, Run, Unit, make_plan
from wdecomp.scan.spectra import Spectral
from wdecomp.scan.unit import Options

__all__ = [
    "Cluster",
    "FailedError",
    "Inputs",
    "Options",
    "Plan",
    "Run",
    "Spectral",
    "Unit",
    "Work",
    "complete",
    "effort",
    "make_plan",
    "reading",
    "require_dask",
    "run_on_cluster",
    "run_units",
]
