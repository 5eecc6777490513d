"""A model on the Hugging Face Hub at one commit, by ranges.

One request tells the commit and its files. A file's ranges are redirected to a content network:
where to, is kept, so that a range costs one request, and the token goes to the hub alone.
"""

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import aiohttp

from wdecomp.remote.transport import Entry, RefusedError, forbidden, missing
from wdecomp.remote.web import Client, body_of, check

MOST_REDIRECTS = 5
MOST_BYTES = 64 << 20  # of the list of a repository's files
EXPIRED = (401, 403, 404, 410)  # what a content network says of an address that was signed


class Hub:
    """One repository at one revision, which is its commit from then on."""

    guesses = ()
    immutable = True
    pins = True

    def __init__(self, root: str) -> None:
        import huggingface_hub  # the token and the endpoint are its business

        endpoint = os.environ.get("HF_ENDPOINT") or huggingface_hub.constants.ENDPOINT
        if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
            raise RefusedError("HF_HUB_OFFLINE is set")
        self._repository, _, revision = root.partition("@")
        self._endpoint = endpoint.rstrip("/")
        token = huggingface_hub.get_token()
        self._token = {"Authorization": f"Bearer {token}"} if token else {}
        self._client = Client()
        self._elsewhere: dict[str, str] = {}
        self._revision = revision or "main"
        self._files: dict[str, Entry] | None = None
        self._commit = ""

    @property
    def root(self) -> str:
        return f"{self._repository}@{self._commit or self._revision}"

    def entries(self, folder: str) -> list[Entry]:
        if self._files is None:
            self._files = {each.name: each for each in self._client.do(self._list)}
        inside = f"{folder}/" if folder else ""
        return [each for name, each in self._files.items() if name.startswith(inside)]

    def entry(self, name: str) -> Entry:
        self.entries("")
        found = (self._files or {}).get(name)
        if found is None:
            raise missing()
        return found

    def read(self, name: str, start: int, stop: int, etag: str) -> bytes:
        return self._client.do(lambda: self._read(name, start, stop))

    def write(self, name: str, source: bytes | Path, fresh: bool) -> None:
        raise RefusedError("nothing is written to the hub")

    def remove(self, name: str) -> None:
        raise RefusedError("nothing is removed from the hub")

    async def _list(self) -> list[Entry]:
        revision = quote(self._revision, "")
        url = f"{self._endpoint}/api/models/{self._repository}/revision/{revision}?blobs=true"
        async with await self._follow(url, {}) as answer:
            self._check(answer)
            text = await answer.content.read(MOST_BYTES)
            while chunk := await answer.content.read(MOST_BYTES):
                text += chunk
                if len(text) > MOST_BYTES:
                    raise RefusedError("the hub's list of files is too long")
        try:
            said = json.loads(text)
            self._commit = str(said["sha"])
            return [_entry(each) for each in said["siblings"]]
        except (ValueError, LookupError, TypeError):
            raise RefusedError("the hub's list of files is not what it is known to be") from None

    async def _read(self, name: str, start: int, stop: int) -> bytes:
        if not self._commit:
            self._files = {each.name: each for each in await self._list()}
        asked = {"Range": f"bytes={start}-{stop - 1}"}
        kept = self._elsewhere.get(name)
        if kept is not None:
            async with await self._client.ask("GET", kept, asked, follow=False) as answer:
                if answer.status in EXPIRED:
                    self._elsewhere.pop(name, None)
                else:
                    check(answer)
                    return await body_of(answer, start, stop)
        url = f"{self._endpoint}/{self._repository}/resolve/{self._commit}/{quote(name)}"
        async with await self._follow(url, asked, name) as answer:
            self._check(answer)
            return await body_of(answer, start, stop)

    async def _follow(
        self, url: str, headers: dict[str, str], name: str = ""
    ) -> aiohttp.ClientResponse:
        """The answer at the end of redirects; where they leave the hub, the token does not go."""
        for _ in range(MOST_REDIRECTS):
            ours = _origin(url) == _origin(self._endpoint)
            token = self._token if ours else {}
            answer = await self._client.ask("GET", url, headers | token, follow=False)
            location = answer.headers.get("Location")
            if answer.status not in (301, 302, 303, 307, 308) or location is None:
                if not ours and name and answer.status < 300:
                    self._elsewhere[name] = url
                return answer
            answer.close()
            url = urljoin(url, location)
            if urlsplit(url).scheme not in ("http", "https"):
                break
        raise RefusedError("the hub sends from address to address")

    def _check(self, answer: aiohttp.ClientResponse) -> None:
        if answer.status in (401, 403):
            raise forbidden(
                f"is private, gated or not on the hub (HTTP {answer.status}): HF_TOKEN or "
                "`hf auth login` opens what is yours"
            )
        check(answer)


def _entry(said: dict[str, Any]) -> Entry:
    name, lfs = str(said["rfilename"]), said.get("lfs") or {}
    return Entry(
        name, int(said.get("size") or 0), str(lfs.get("sha256") or said.get("blobId") or "")
    )


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc
