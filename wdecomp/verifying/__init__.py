"""Whether a merged checkpoint is base + adapter; and if it is not, what it is instead.

`lineup` says which tensor is to be held beside what, `measuring` goes over the numbers once with
the sums of `sums`, and from there on only sums are seen: `deciding` says of every tensor what it
is, `verdict` of all of them together, and `telling` words it.
"""

from wdecomp.verifying.records import Candidate, Finding, Tensor, Verification
from wdecomp.verifying.telling import as_json, as_text
from wdecomp.verifying.verify import verify

__all__ = [
    "Candidate",
    "Finding",
    "Tensor",
    "Verification",
    "as_json",
    "as_text",
    "verify",
]
