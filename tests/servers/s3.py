"""S3 as moto has it: what it is asked for is counted before, and spoilt on the way back."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Thread
from typing import Any
from urllib.request import Request, urlopen

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

from servers.tally import Asked, Tally

SPAN = re.compile(r"bytes=(\d+)-(\d+)")
PIECE = 1 << 20
Answer = Iterable[bytes]


class Silent(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *_: Any) -> None: ...


@dataclass
class S3:
    """A server of buckets.

    url: for AWS_ENDPOINT_URL.
    """

    url: str
    tally: Tally = field(default_factory=Tally)

    @property
    def client(self) -> Any:
        """boto's, to put things there."""
        return boto3.client(
            "s3", endpoint_url=self.url, aws_access_key_id="k", aws_secret_access_key="s",
            region_name="us-east-1",
        )  # fmt: skip

    def environment(self) -> dict[str, str]:
        """By which boto finds it, and has keys."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "very-secret-key",
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@dataclass
class Counted:
    """An application with a tally before it."""

    inner: Callable[..., Answer]
    tally: Tally

    def __call__(self, environment: dict[str, Any], start: Callable[..., Any]) -> Answer:
        found = SPAN.fullmatch(environment.get("HTTP_RANGE", ""))
        span = (int(found[1]), int(found[2]) + 1) if found else None
        method, path = environment["REQUEST_METHOD"], environment["PATH_INFO"]
        with self.tally.serving(Asked(method, path, span)) as fault:
            return self.answer(environment, start, fault, span)

    def answer(
        self,
        environment: dict[str, Any],
        start: Callable[..., Any],
        fault: str,
        span: tuple[int, int] | None,
    ) -> Answer:
        if fault.isdecimal():
            start(f"{fault} Fault", [("Content-Length", "0")])
            return [b""]
        if fault == "whole":
            environment.pop("HTTP_RANGE", None)
        if fault == "short" and span:
            environment["HTTP_RANGE"] = f"bytes={span[0]}-{span[1] - 6}"
        body = b"".join(self.inner(environment, start))
        counted = environment["REQUEST_METHOD"] == "GET" and not environment["QUERY_STRING"]
        return self.pieces(body[: len(body) // 2] if fault == "cut" else body, counted)

    def pieces(self, body: bytes, counted: bool) -> Answer:
        """What is sent until whoever asked goes away."""
        for start in range(0, max(len(body), 1), PIECE):
            yield body[start : start + PIECE]
            if counted:
                self.tally.gave(len(body[start : start + PIECE]))


@contextmanager
def running_s3() -> Iterator[S3]:
    """A server of moto's while the context lasts, with a bucket `bucket`."""
    tally = Tally()
    application = Counted(DomainDispatcherApplication(create_backend_app), tally)
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Silent)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    s3 = S3(f"http://127.0.0.1:{server.server_port}", tally)
    try:
        urlopen(Request(f"{s3.url}/moto-api/reset", method="POST")).close()  # it has one memory
        s3.client.create_bucket(Bucket="bucket")
        yield s3
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
