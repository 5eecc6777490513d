"""An adapter that was trained on a quantised base, seen from the unquantised one."""

from dataclasses import replace

from wdecomp.adapter import Adapted, OnOtherBase
from wdecomp.checkpoint import Matrix
from wdecomp.pairing.records import LeftOut, Pair, Pairing


def through_other_base(other: Pairing, trained: Pairing) -> Pairing:
    """What quantisation and training did together: W0 beside Wq + ΔW(Wq).

    Args:
        other: the unquantised base and the one that the adapter was trained on.
        trained: that one and the adapter.
    """
    result = Pairing(trained.method, trained.dialect, trained.notes)
    for parameter, each in trained.matrices.items():
        seen = other.matrices.get(parameter)
        if seen is None or seen.shape != each.shape:
            reason = "the other base has no such matrix"
            result.left_out.append(LeftOut(each.tuned_name, "tuned", reason))
        else:
            result.matrices[parameter] = _together(seen, each)
    return result


def _together(seen: Pair, each: Pair) -> Pair:
    if isinstance(each.tuned, Adapted) and isinstance(seen.tuned, Matrix):
        return replace(each, base=seen.base, tuned=OnOtherBase(each.tuned, seen.tuned))
    return replace(each, base=seen.base)
