"""An adapter as updates of its base's matrices. The only floor that merges."""

from wdecomp.adapter.peft import Adapter, read_adapter
from wdecomp.adapter.updates import ChangeReader, LowRankUpdate

__all__ = ["Adapter", "ChangeReader", "LowRankUpdate", "read_adapter"]
