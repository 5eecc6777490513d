"""A web server that gives ranges of the files of a folder, with HEAD and ETags."""

import hashlib
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

from servers.tally import Asked, Tally

SPAN = re.compile(r"bytes=(\d+)-(\d+)")
PIECE = 1 << 20


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    root: Path
    tally: Tally

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self.answer("HEAD")

    def do_GET(self) -> None:
        self.answer("GET")

    def answer(self, method: str) -> None:
        path = unquote(urlsplit(self.path).path)
        found = SPAN.fullmatch(self.headers.get("Range", ""))
        span = (int(found[1]), int(found[2]) + 1) if found else None
        asked = Asked(method, path, span, dict(self.headers.items()))
        with self.server.tally.serving(asked) as fault:
            self.give(asked, fault)

    def give(self, asked: Asked, fault: str) -> None:
        file = self.server.root / asked.path.lstrip("/")
        if fault.isdecimal() or not file.is_file():
            self.plain(int(fault) if fault.isdecimal() else 404)
            return
        self.file(asked, fault, file)

    def file(self, asked: Asked, fault: str, file: Path) -> None:
        """A file or a range of one, as it is or spoilt."""
        size = file.stat().st_size
        start, stop = asked.span or (0, size)
        stop = min(stop, size)
        if fault == "whole":
            start, stop = 0, size
        if fault == "short":
            stop = max(stop - 5, start)
        ranged = asked.span is not None and fault != "whole"
        self.send_response(206 if ranged else 200)
        self.send_header("Content-Length", str(stop - start))
        self.send_header("ETag", etag(file))
        if ranged:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.end_headers()
        if asked.method == "HEAD":
            return
        if fault == "cut":
            stop = (start + stop) // 2
        self.copy(file, start, stop)
        if fault == "cut":
            self.close_connection = True

    def copy(self, file: Path, start: int, stop: int) -> None:
        with file.open("rb") as stream:
            while start < stop:
                try:
                    sent = self.connection.sendfile(stream, start, min(PIECE, stop - start))
                except OSError:  # who asked has gone
                    self.close_connection = True
                    return
                self.server.tally.gave(sent)
                if self.server.tally.rate:
                    time.sleep(sent / self.server.tally.rate)
                start += sent

    def plain(self, status: int, body: bytes = b"", **headers: str) -> None:
        """An answer that is no file."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def etag(file: Path) -> str:
    """Of its size and time, as web servers make it."""
    state = file.stat()
    digest = hashlib.sha256(f"{state.st_size} {state.st_mtime_ns}".encode()).hexdigest()
    return f'"{digest[:16]}"'


@contextmanager
def running(
    root: Path, handler: type[Handler] = Handler, kind: type[Server] = Server, port: int = 0
) -> Iterator[Server]:
    """A server of a folder while the context lasts."""
    with kind(("127.0.0.1", port), handler) as server:
        server.root, server.tally = root, Tally()
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
