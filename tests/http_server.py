"""A real web server on the loopback interface, whose every answer a test decides."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import cast


@dataclass(frozen=True)
class Request:
    """What a client sent."""

    path: str
    headers: Message


Answer = Callable[["Handler"], None]


@dataclass
class Site:
    """What a server has: files by path, and answers of another kind by path."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    answers: dict[str, Answer] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    has_ranges: bool = True

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def paths(self) -> list[str]:
        """The paths that were asked for, in order."""
        return [request.path for request in self.requests]


class SiteServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, site: Site) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.site = site

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up early are what some tests are about."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 the base class calls it so
        """Stay silent."""

    def do_GET(self) -> None:
        site = cast("SiteServer", self.server).site
        site.requests.append(Request(self.path, self.headers))
        path = self.path.partition("?")[0]
        if path in site.answers:
            site.answers[path](self)
        elif path in site.files:
            self._file(site, path)
        else:
            self.reply(404)

    def _file(self, site: Site, path: str) -> None:
        content = site.files[path]
        kind = {"Content-Type": site.types.get(path, "application/octet-stream")}
        wanted = re.match(r"bytes=(\d+)-(\d*)\Z", self.headers.get("Range", ""))
        if not wanted or not site.has_ranges:
            self.reply(200, content, kind)
            return
        start, end = int(wanted[1]), min(int(wanted[2] or len(content)) + 1, len(content))
        spoken = {"Content-Range": f"bytes {start}-{end - 1}/{len(content)}"}
        self.reply(206, content[start:end], kind | spoken)

    def reply(
        self,
        status: int,
        content: bytes = b"",
        headers: dict[str, str] | None = None,
        *,
        length: int | None = None,
    ) -> None:
        """Answer, with a `Content-Length` that is a lie where `length` is given."""
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)
        if length is not None:
            self.close_connection = True


def redirect(target: str, *, status: int = 302) -> Answer:
    """An answer that sends the client elsewhere."""
    return lambda handler: handler.reply(status, headers={"Location": target})


def first_fails(status: int, *, times: int, content: bytes) -> Answer:
    """An answer that is an error so many times, and then the content."""
    left = [times]

    def answer(handler: Handler) -> None:
        left[0] -= 1
        handler.reply(status if left[0] >= 0 else 200, content)

    return answer


def endless(handler: Handler) -> None:
    """An answer that never ends, and does not say how long it is."""
    handler.send_response(200)
    endless_body(handler)


def endless_body(handler: Handler) -> None:
    """The rest of an answer that never ends."""
    handler.send_header("Connection", "close")
    handler.end_headers()
    while True:
        handler.wfile.write(bytes(64 * 1024))


@contextmanager
def serve() -> Iterator[Site]:
    """Run a server until the block ends."""
    site = Site()
    server = SiteServer(site)
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=lambda: server.serve_forever(poll_interval=0.01), daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
