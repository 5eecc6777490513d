"""The kernel: pure, no files. Sums over pairs of blocks, and ΔM and ΔD from sums."""

from wdecomp.decomposition.blocks import readable, runs_along_rows
from wdecomp.decomposition.chance import UNROUNDED, Chance, Rounding, by_chance, rounding_floor
from wdecomp.decomposition.columns import ColumnDelta, any_shrunken, column_delta_from
from wdecomp.decomposition.compiling import compilation_told, compiled
from wdecomp.decomposition.device import require_device, sums_on
from wdecomp.decomposition.plain import PlainSums
from wdecomp.decomposition.products import LowRankBlock, strips_of
from wdecomp.decomposition.stored import number
from wdecomp.decomposition.summary import Summary, summarise
from wdecomp.decomposition.sums import SharedSums, Sums
from wdecomp.decomposition.tensors import AXES, Axis, Decomposition, column_delta, decompose

__all__ = [
    "AXES",
    "UNROUNDED",
    "Axis",
    "Chance",
    "ColumnDelta",
    "Decomposition",
    "LowRankBlock",
    "PlainSums",
    "Rounding",
    "SharedSums",
    "Summary",
    "Sums",
    "any_shrunken",
    "by_chance",
    "column_delta",
    "column_delta_from",
    "compilation_told",
    "compiled",
    "decompose",
    "number",
    "readable",
    "require_device",
    "rounding_floor",
    "runs_along_rows",
    "strips_of",
    "summarise",
    "sums_on",
]
