"""A base and an adapter as one checkpoint of the base's own form, written as a stream.

`plan` says which tensor of which file is made of what, `weights` forms the numbers block by block,
`files` writes safetensors, and `folder` puts a whole checkpoint in its place, or nothing at all.
"""

from wdecomp.merging.folder import merge
from wdecomp.merging.records import DTYPES, Merged

__all__ = ["DTYPES", "Merged", "merge"]
