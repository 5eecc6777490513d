"""The loop over weights: a plan from headers, units of work, rows for the tables."""

from wdecomp.scan.engine import run_units
from wdecomp.scan.plan import Plan, Run, Unit, make_plan
from wdecomp.scan.spectra import Spectral
from wdecomp.scan.unit import Options

__all__ = ["Options", "Plan", "Run", "Spectral", "Unit", "make_plan", "run_units"]
