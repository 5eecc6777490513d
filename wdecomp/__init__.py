"""What did fine-tuning do to the weights?

Splits every weight column of base and tuned checkpoints into magnitude and direction and measures
how far each moved (ΔM, ΔD), per layer, module and step; DoRA section 3.2, arXiv:2402.09353.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wdecomp.comparison import compare as compare
    from wdecomp.decomposition import ColumnDelta as ColumnDelta
    from wdecomp.decomposition import Decomposition as Decomposition
    from wdecomp.decomposition import column_delta as column_delta
    from wdecomp.decomposition import decompose as decompose
    from wdecomp.errors import WdecompError as WdecompError
    from wdecomp.table import Results as Results
    from wdecomp.table import read_results as read_results

# Imported when first used: a command that only prints its help pays for none of them.
_HOME = {
    "ColumnDelta": "wdecomp.decomposition",
    "Decomposition": "wdecomp.decomposition",
    "Results": "wdecomp.table",
    "WdecompError": "wdecomp.errors",
    "column_delta": "wdecomp.decomposition",
    "compare": "wdecomp.comparison",
    "decompose": "wdecomp.decomposition",
    "read_results": "wdecomp.table",
}
__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'wdecomp' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
