"""Whether a merged checkpoint is base + adapter; and if it is not, what it is instead.

`lineup` says which tensor is to be held beside what, `measuring` reads all of them once into the
sums of `sums`, in units of the error that `allowance` grants, and from there on only sums are seen:
`deciding` says of every tensor what it is, `verdict` of all of them together, `telling` words it.
"""

from wdecomp.verifying.records import Candidate, Finding, Tensor, Verification
from wdecomp.verifying.telling import as_json, as_text
from wdecomp.verifying.verification import verify

__all__ = [
    "Candidate",
    "Finding",
    "Tensor",
    "Verification",
    "as_json",
    "as_text",
    "verify",
]
