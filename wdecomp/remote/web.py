"""Files on a web server, by ranges, through fsspec's session of aiohttp.

fsspec's own reading is not used: for a server that ignores ranges it takes the whole file.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import aiohttp
from fsspec.asyn import sync
from fsspec.implementations.http import HTTPFileSystem

from wdecomp.remote.transport import (
    Entry,
    OtherContentError,
    PassingError,
    RefusedError,
    by_status,
    check_range,
)
from wdecomp.remote.urls import query_of

CONNECT, SILENCE = 10, 30  # seconds: to a connection, without a byte
BUFFER = 1 << 20  # bytes that a connection may be ahead of whoever reads it
IDENTITY = {"Accept-Encoding": "identity"}
LEGAL = "/%:@!$&'()*+,;=~"  # what stays as it is in the path of a URL
USUAL = (  # files of a folder, which a web server does not list
    "model.safetensors", "model.safetensors.index.json", "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json", "adapter_model.safetensors",
    "pytorch_lora_weights.safetensors", "adapters.safetensors", "config.json",
    "adapter_config.json", "model_index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
    "adapter_model.bin", "pytorch_lora_weights.bin",
)  # fmt: skip

Found = TypeVar("Found")


class Web:
    """One server."""

    guesses = USUAL
    immutable = False
    pins = True

    def __init__(self, root: str) -> None:
        self._root, self.root = root, root.partition("://")[2]
        self._client = Client()

    def entries(self, folder: str) -> list[Entry]:
        raise RefusedError("a web server has no list of a folder's files")

    def entry(self, name: str) -> Entry:
        return self._client.do(lambda: self._look(name))

    def read(self, name: str, start: int, stop: int, etag: str) -> bytes:
        return self._client.do(lambda: self._read(name, start, stop, etag))

    def write(self, name: str, source: bytes | Path, fresh: bool) -> None:
        raise RefusedError("nothing is written to a web server")

    def remove(self, name: str) -> None:
        raise RefusedError("nothing is removed from a web server")

    def _url(self, name: str) -> str:
        query = query_of(self._root, name)
        return f"{self._root}/{quote(name, LEGAL)}" + (f"?{query}" if query else "")

    async def _look(self, name: str) -> Entry:
        url = self._url(name)
        if "?" not in url:  # a signature is often one for GET alone
            async with await self._client.ask("HEAD", url) as answer:
                size = answer.headers.get("Content-Length", "")
                if answer.status not in (403, 405, 501) and (size or answer.status >= 400):
                    check(answer)
                    return Entry(name, int(size), etag_of(answer))
        async with await self._client.ask("GET", url, {"Range": "bytes=0-0"}) as answer:
            check(answer)
            total = answer.headers.get("Content-Range", "").rpartition("/")[2]
            if not total.isdecimal():
                check_range(None, None, 0, 1)
            return Entry(name, int(total), etag_of(answer))

    async def _read(self, name: str, start: int, stop: int, etag: str) -> bytes:
        asked = {"Range": f"bytes={start}-{stop - 1}"}
        async with await self._client.ask("GET", self._url(name), asked) as answer:
            check(answer)
            if etag and etag_of(answer) not in ("", etag):
                raise OtherContentError
            return await body_of(answer, start, stop)


class Client:
    """A session of HTTP on fsspec's loop."""

    def __init__(self) -> None:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT, sock_read=SILENCE)
        options = {
            "timeout": timeout,
            "trust_env": True,
            "auto_decompress": False,
            "read_bufsize": BUFFER,
            "requote_redirect_url": False,
        }
        # Addresses as they are: those that are signed are so to the letter.
        self._files = HTTPFileSystem(skip_instance_cache=True, encoded=True, client_kwargs=options)

    async def ask(
        self, method: str, url: str, headers: dict[str, str] | None = None, follow: bool = True
    ) -> aiohttp.ClientResponse:
        """The answer to a request, of which no more than the headers has been read."""
        session = await self._files.set_session()
        answer: aiohttp.ClientResponse = await session.request(
            method,
            self._files.encode_url(url),
            headers=IDENTITY | (headers or {}),
            allow_redirects=follow,
        )
        return answer

    def do(self, call: Callable[[], Awaitable[Found]]) -> Found:
        """What a coroutine on the loop returns; its errors as ours, without the URL."""
        try:
            found: Found = sync(self._files.loop, call)
        except (RefusedError, OtherContentError, PassingError, FileNotFoundError, PermissionError):
            raise
        except TimeoutError:
            raise PassingError("the server does not answer in time") from None
        except aiohttp.InvalidURL:
            raise RefusedError("it is no address") from None
        except aiohttp.TooManyRedirects:
            raise RefusedError("the server sends from address to address") from None
        except aiohttp.ClientConnectorCertificateError:
            raise RefusedError("the server's certificate is not trusted") from None
        except (aiohttp.ClientError, OSError) as error:
            raise PassingError(f"the connection failed ({type(error).__name__})") from None
        return found


def check(answer: aiohttp.ClientResponse) -> None:
    """Raises what the status of an answer stands for."""
    wait = answer.headers.get("Retry-After", "")
    error = by_status(answer.status, float(wait) if wait.isdecimal() else 0)
    if error is not None:
        raise error


def etag_of(answer: aiohttp.ClientResponse) -> str:
    """What tells this content from another: the ETag, or when it was last changed."""
    headers: Any = answer.headers
    return str(headers.get("ETag") or headers.get("Last-Modified") or "")


async def body_of(answer: aiohttp.ClientResponse, start: int, stop: int) -> bytes:
    """The bytes of a range, exactly; not one is read where the answer is about others."""
    length = answer.headers.get("Content-Length", "")
    given = answer.headers.get("Content-Range") if answer.status == 206 else None
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise RefusedError("the server compresses what it sends. Download it and name the copy")
    try:
        check_range(given, int(length) if length.isdecimal() else None, start, stop)
        found, left = [], stop - start
        async for chunk, _ in answer.content.iter_chunks():
            left -= len(chunk)
            found.append(chunk)
            if left < 0:
                raise PassingError("the server sends more bytes than it was asked for")
    except OSError:
        answer.close()  # and the connection with it, on which the rest would come
        raise
    if left:
        raise PassingError(f"the server sent {left:,} bytes fewer than it was asked for")
    return b"".join(found)
