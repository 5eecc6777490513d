"""Stub."""

from collections.abc import Callable, Iterable


def match_flat(
    base: Iterable[str], flat: Iterable[str], fits: Callable[[str, str], bool] | None = None
) -> dict[str, str | None]:
    """Stub."""
    return dict.fromkeys(flat)
