"""An adapter as updates of its base's matrices. The only floor that merges."""

from wdecomp.adapter.adapter import Adapter, ModuleUpdate
from wdecomp.adapter.dialects import read_adapter
from wdecomp.adapter.low_rank import ExpertStack
from wdecomp.adapter.output_rotations import OutputRotation
from wdecomp.adapter.principal import FromPrincipal
from wdecomp.adapter.torchtune import misordered
from wdecomp.adapter.updates import (
    Adapted,
    ChangeReader,
    FactorsReader,
    Magnitude,
    OnOtherBase,
    OtherBaseReader,
    summed_reader,
)
from wdecomp.adapter.vera import Vera

# Updates that a part of a module does not tell.
NEEDS_MODULE = (FromPrincipal, OutputRotation)

__all__ = [
    "NEEDS_MODULE",
    "Adapted",
    "Adapter",
    "ChangeReader",
    "ExpertStack",
    "FactorsReader",
    "Magnitude",
    "ModuleUpdate",
    "OnOtherBase",
    "OtherBaseReader",
    "Vera",
    "misordered",
    "read_adapter",
    "summed_reader",
]
