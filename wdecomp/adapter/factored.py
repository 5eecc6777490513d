"""The matrices of LoHa and LoKr from the parts that are stored of them."""

from math import prod

from wdecomp.adapter.factors import Factors
from wdecomp.adapter.products import Factored


def factored(
    factors: Factors, left: str, right: str, core: str | None = None, whole: str | None = None
) -> Factored:
    """One matrix of a product, from its parts: whole, or left and right with or without a core.

    Raises:
        AdapterError: a part is missing, or the parts do not fit.
    """
    if whole is not None and (whole in factors or not (left in factors or right in factors)):
        stored = factors.get(whole)
        if len(stored.shape) < 2:
            raise factors.refuse(f"{whole} is {stored.shape}", "(rows, columns…)")
        return Factored(whole=stored)
    a, b = factors.get(left), factors.get(right)
    middle = factors.maybe(core) if core else None
    if len(a.shape) < 2 or len(b.shape) < 2:
        raise factors.refuse(f"{left} is {a.shape}, {right} is {b.shape}", "matrices")
    rank = b.shape[0]
    fits = a.shape[1] == rank and prod(a.shape[2:]) == 1
    if middle is not None:
        fits = a.shape[0] == rank and len(a.shape) == len(b.shape) == 2
        fits = fits and middle.shape[:2] == (rank, rank)
    if not fits:
        raise factors.refuse(
            f"{left} is {a.shape}, {right} is {b.shape}"
            + (f", {core} is {middle.shape}" if middle else ""),
            "factors of one rank",
        )
    return Factored(left=a, right=b, core=middle)
