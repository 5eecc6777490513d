"""The conductor: what is asked, in which processes it is done, and the tables that come of it."""

from wdecomp.comparison.asked import Asked, asking, record_of
from wdecomp.comparison.conducting import compare
from wdecomp.comparison.parts import Shared, compare_share, finish, missing_shares
from wdecomp.comparison.planning import QUANTIZATION, plan_comparison

__all__ = [
    "QUANTIZATION",
    "Asked",
    "Shared",
    "asking",
    "compare",
    "compare_share",
    "finish",
    "missing_shares",
    "plan_comparison",
    "record_of",
]
