"""A server with the hub's addresses: a repository's commits and files, and a network of content.

Weights are redirected to another port, by an address that is signed; small files are given by the
hub itself. `folder/org/name` is the repository org/name.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from servers.tally import Asked
from servers.web import Handler, Server, running

API = re.compile(r"/api/models/([^/]+/[^/]+)/revision/([^/]+)")
RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


class Hub(Server):
    content: Server
    signature = "s3cret~sig%7Ena%2Fture%20of"  # as it stands in an address, to be left as it is
    private: str = ""  # the token without which nothing is given


class HubHandler(Handler):
    server: Hub

    def give(self, asked: Asked, fault: str) -> None:
        token = asked.headers.get("Authorization", "")
        if self.server.private and token != f"Bearer {self.server.private}":
            self.plain(401, b"{}", X_Error_Code="RepoNotFound")
        elif fault.isdecimal():
            self.plain(int(fault))
        elif listed := API.fullmatch(asked.path):
            self.files(listed[1], unquote(listed[2]))
        elif resolved := RESOLVE.fullmatch(asked.path):
            self.resolve(asked, fault, *resolved.groups())
        else:
            self.plain(404)

    def files(self, repository: str, revision: str) -> None:
        folder = self.server.root / repository
        if not folder.is_dir() or revision not in ("main", commit(folder)):
            self.plain(404)
            return
        siblings = [
            {
                "rfilename": str(file.relative_to(folder)),
                "size": file.stat().st_size,
                "blobId": hashlib.sha1(str(file.stat().st_mtime_ns).encode()).hexdigest(),
            }
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        ]
        body = {"id": repository, "sha": commit(folder), "siblings": siblings}
        self.plain(200, json.dumps(body).encode())

    def resolve(self, asked: Asked, fault: str, repository: str, revision: str, name: str) -> None:
        file = self.server.root / repository / name
        if revision != commit(self.server.root / repository) or not file.is_file():
            self.plain(404)
        elif file.suffix == ".safetensors":
            where = f"{self.server.content.url}/{repository}/{name}"
            self.plain(302, Location=f"{where}?signature={self.server.signature}")
        else:
            self.file(asked, fault, file)


class ContentHandler(Handler):
    """Gives what an address was signed for."""

    def give(self, asked: Asked, fault: str) -> None:
        if urlsplit(self.path).query != f"signature={Hub.signature}":
            self.plain(403)
            return
        super().give(asked, fault)


def commit(folder: Path) -> str:
    """The commit that a folder is: another one after a file was written."""
    states = [(str(f), f.stat().st_mtime_ns) for f in sorted(folder.rglob("*")) if f.is_file()]
    return hashlib.sha1(repr(states).encode()).hexdigest()


@contextmanager
def running_hub(root: Path) -> Iterator[Hub]:
    """The hub with its network while the context lasts; `HF_ENDPOINT` is its `url`."""
    with running(root, ContentHandler) as content, running(root, HubHandler, kind=Hub) as hub:
        assert isinstance(hub, Hub)
        hub.content = content
        yield hub
