"""Files elsewhere: in buckets, on the hub, on web servers. The one place that touches fsspec.

A `Store` reads ranges of bytes and writes whole files; a `RemotePath` is a file or folder of one,
for those who know only paths; `ahead` has fetched what will be wanted next.
"""

from wdecomp.remote.ahead import RANGE, Wanted, fetched_ahead, read_into, view_of
from wdecomp.remote.naming import located, remote_path
from wdecomp.remote.path import RemotePath
from wdecomp.remote.store import Store, at_once, store_of
from wdecomp.remote.tiny import remember
from wdecomp.remote.transport import Entry, OtherContentError
from wdecomp.remote.urls import is_hub_id, is_url, parsed

__all__ = [
    "RANGE",
    "Entry",
    "OtherContentError",
    "RemotePath",
    "Store",
    "Wanted",
    "at_once",
    "fetched_ahead",
    "is_hub_id",
    "is_url",
    "located",
    "parsed",
    "read_into",
    "remember",
    "remote_path",
    "store_of",
    "view_of",
]
