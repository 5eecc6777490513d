"""Flat names of kohya and LyCORIS to a base's names."""

from wdecomp.flat_names.lookup import match_flat
from wdecomp.flat_names.spellings import diffusers_modules

__all__ = ["diffusers_modules", "match_flat"]
