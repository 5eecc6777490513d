"""Addresses of files elsewhere: which are understood, and what of them may be shown.

Nothing is ever opened by the generic `fsspec.open`: of the protocols and chains that it knows, only
those that are listed here are meant, each handled by its own transport.
"""

import re
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import unquote

from wdecomp.errors import CheckpointError

PROTOCOLS = ("hf", "s3", "gs", "az", "abfs", "http", "https")
FILES = (".safetensors", ".json", ".bin", ".pt", ".pth", ".ckpt", ".parquet", ".txt", ".lock")
URL = re.compile(r"(?P<protocol>[A-Za-z][A-Za-z0-9+.-]*):/{1,2}(?P<rest>.*)", re.DOTALL)
CHAIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(:/{1,2}[^:]*)?::")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}(@[\w.-][\w./-]{0,254})?")


class Address(NamedTuple):
    """The root of a store: a bucket, a repository at one revision, a server.

    root: `bucket`, `org/name@revision`, `host:port`, without the protocol.
    """

    protocol: str
    root: str

    def __str__(self) -> str:
        return f"{self.protocol}://{self.root}"


@dataclass(frozen=True)
class Place:
    """Where a file or folder is: its store, and its path from the root of that.

    query: of a URL that has one, with whatever secrets are in it. Never shown, never written.
    """

    address: Address
    name: str
    query: str = ""

    def __repr__(self) -> str:
        return f"Place({str(self)!r})"

    def __str__(self) -> str:
        return f"{self.address}/{self.name}" if self.name else str(self.address)


def is_url(text: str) -> bool:
    """Whether a text is meant as a URL, or as a chain of them, of whatever protocol.

    >>> is_url("s3://bucket/ft"), is_url("simplecache::s3://bucket/ft"), is_url("./a:b")
    (True, True, False)
    """
    return "://" in text and (URL.match(text) or CHAIN.match(text)) is not None


def is_hub_id(text: str) -> bool:
    """Whether a text could be a model's name on the hub, with a revision or without.

    >>> is_hub_id("org/name@main"), is_hub_id("../name"), is_hub_id("org/name/file")
    (True, False, False)
    """
    return HUB_ID.fullmatch(text) is not None


def parsed(url: str) -> Place:
    """The place that a URL names.

    Raises:
        CheckpointError: it is of no protocol that is understood, or has more in it than a place.
    """
    found = URL.fullmatch(url)
    protocol = found["protocol"].lower() if found else ""
    if found is None or "::" in url or protocol not in PROTOCOLS:
        shown = re.split(r"[?#]", url)[0].rpartition("@")[2] if "@" in url else url.split("?")[0]
        raise CheckpointError(
            f"{shown}: is an address that is not understood, expected a path or one URL of "
            f"{', '.join(PROTOCOLS)}."
        )
    rest, _, query = found["rest"].partition("?") if protocol.startswith("http") else (
        found["rest"], "", "",
    )  # fmt: skip
    rest = rest.partition("#")[0] if protocol.startswith("http") else rest
    parts = [part for part in rest.split("/") if part not in ("", ".")]
    if ".." in parts or any("\0" in part or "\\" in part for part in parts):
        raise CheckpointError(f"{protocol}://{rest}: has '..' in it, expected where it leads to.")
    if protocol not in ("hf", "abfs") and "@" in "".join(parts[:1]):
        raise CheckpointError(
            f"{protocol}://…@{parts[0].rpartition('@')[2]}: has credentials in it, which would end "
            "up in results and logs. Put them where the environment has them (~/.netrc, variables)."
        )
    length = 1
    if protocol == "hf":
        parts = _with_revision(parts)
        length = 2
    if len(parts) < length:
        expected = "hf://ORGANISATION/NAME" if protocol == "hf" else f"{protocol}://WHERE/PATH"
        raise CheckpointError(f"{protocol}://{rest}: names no place, expected {expected}.")
    return Place(Address(protocol, "/".join(parts[:length])), "/".join(parts[length:]), query)


def _with_revision(parts: list[str]) -> list[str]:
    """A revision of several parts, `refs/pr/1`, as one of the parts of a URL of the hub."""
    if len(parts) > 3 and parts[1].endswith("@refs") and parts[2] in ("pr", "convert"):
        return [parts[0], "/".join(parts[1:4]), *parts[4:]]
    return [
        *parts[:1],
        *(unquote(part) if "@" in part else part for part in parts[1:2]),
        *parts[2:],
    ]


_queries: dict[tuple[str, str], str] = {}  # of URLs that have one, in this process alone


def remember_query(place: Place) -> None:
    """Keeps the query of a URL for the requests that need it."""
    if place.query:
        _queries[str(place.address), place.name] = place.query


def query_of(root: str, name: str) -> str:
    """What `remember_query` was told of a file or of a folder that it is in; "" if nothing."""
    while name and (root, name) not in _queries:
        name = name.rpartition("/")[0]
    return _queries.get((root, name), "")
