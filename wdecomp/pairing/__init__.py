"""Which tuned tensor belongs to which base tensor, and what belongs to none, with the reason."""

from wdecomp.pairing.other_base import through_other_base
from wdecomp.pairing.pair import pair
from wdecomp.pairing.records import LeftOut, Pair, Pairing

__all__ = ["LeftOut", "Pair", "Pairing", "pair", "through_other_base"]
