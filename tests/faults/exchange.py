"""One request to a server that may lie, and the connection on which it is answered.

`right` is how an honest server answers (RFC 9110 on ranges and validators); the faults of
`faults.py` change that answer, or write something else to the connection. Nothing here knows HTTP
from a library, as libraries do not let one lie about where a message ends.
"""

from __future__ import annotations

import hashlib
import re
import socket
import struct
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from email.message import Message
from email.parser import BytesHeaderParser
from io import BufferedIOBase
from threading import Event, Lock

OK = "HTTP/1.1 200 OK"
PARTIAL = "HTTP/1.1 206 Partial Content"
_RANGE = re.compile(r"bytes=(\d*)-(\d*)\Z")


@dataclass(frozen=True)
class Request:
    """What a client sent."""

    method: str
    path: str
    headers: Message

    @property
    def stays(self) -> bool:
        """Whether the client will send more requests over the same connection."""
        return self.headers.get("Connection", "").lower() != "close"


def read_request(stream: BufferedIOBase) -> Request | None:
    """Read the head of a request; None where it does not come whole, or is none."""
    lines = []
    while (line := stream.readline()).rstrip(b"\r\n"):
        lines.append(line)
    words = lines[0].decode("latin-1").split() if lines else []
    if not line or len(words) != 3:
        return None
    return Request(words[0], words[1], BytesHeaderParser().parsebytes(b"".join(lines[1:])))


@dataclass(frozen=True)
class Reply:
    """The whole of an answer; `start` is where its body begins in the file."""

    status_line: str
    headers: Mapping[str, str]
    body: bytes = b""
    start: int = 0

    @property
    def is_part(self) -> bool:
        return self.status_line == PARTIAL

    def but(self, changes: Mapping[str, str | None]) -> Reply:
        """Return it with other headers; None takes one away."""
        merged = {**self.headers, **changes}
        return replace(self, headers={name: told for name, told in merged.items() if told})

    def head(self) -> bytes:
        """Return everything before the body."""
        lines = [self.status_line, *(f"{name}: {told}" for name, told in self.headers.items())]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


def strong_etag(content: bytes) -> str:
    """Return a validator that says: the very same bytes."""
    return f'"{hashlib.sha256(content).hexdigest()}"'


def right(request: Request, content: bytes, etag: str | None) -> Reply:
    """Return the answer of an honest server that has the content under this validator."""
    span = _wanted(request.headers, len(content), etag)
    if span is None:
        return whole(content, etag)
    if span:
        return part(content, span, etag)
    told = {"Content-Range": f"bytes */{len(content)}", "Content-Length": "0"}
    return Reply("HTTP/1.1 416 Range Not Satisfiable", told)


def whole(content: bytes, etag: str | None) -> Reply:
    """Return the answer that carries all of a file."""
    told = {
        "Content-Type": "application/octet-stream",
        "Content-Length": str(len(content)),
        "Accept-Ranges": "bytes",
        "ETag": etag,
    }
    return Reply(OK, {}, content).but(told)


def part(content: bytes, span: range, etag: str | None) -> Reply:
    """Return the answer that carries the bytes of a span, which is not empty."""
    told = {
        "Content-Length": str(len(span)),
        "Content-Range": f"bytes {span.start}-{span.stop - 1}/{len(content)}",
    }
    sent = content[span.start : span.stop]
    return replace(whole(sent, etag).but(told), status_line=PARTIAL, start=span.start)


def _wanted(headers: Message, size: int, etag: str | None) -> range | None:
    """Return what is asked for: None is the whole, an empty range is one that is not there."""
    asked = _RANGE.match(headers.get("Range", ""))
    # RFC 9110 13.1.5: a weak validator never matches, nor does a date where none was given
    changed = headers.get("If-Range") not in ({None} if _is_weak(etag) else {None, etag})
    if asked is None or changed or not any(asked.groups()):
        return None
    first, last = asked.groups()
    if not first:
        return range(max(size - int(last), 0), size)
    if last and int(last) < int(first):
        return None
    return range(int(first), min(int(last) + 1, size) if last else size)


def _is_weak(etag: str | None) -> bool:
    return etag is None or etag.startswith("W/")


class Tally:
    """What a server was asked and what it sent; several connections add to it at once."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._seen: Counter[tuple[str, str]] = Counter()
        self._requests: list[Request] = []
        self._sent = 0

    @property
    def sent(self) -> int:
        with self._lock:
            return self._sent

    @property
    def requests(self) -> list[Request]:
        with self._lock:
            return list(self._requests)

    def record(self, request: Request) -> int:
        """Record a request, and return how many of its method and path came before it."""
        with self._lock:
            kind = (request.method, request.path)
            self._requests.append(request)
            self._seen[kind] += 1
            return self._seen[kind] - 1

    def add(self, n_bytes: int) -> None:
        """Record bytes of a body that are on their way."""
        with self._lock:
            self._sent += n_bytes


@dataclass
class Exchange:
    """A request and how to answer it; `nth` counts the requests alike that came before it.

    Every method raises `OSError` when the client hangs up or the server is closed.
    """

    connection: socket.socket
    request: Request
    content: bytes
    etag: str
    tally: Tally
    closing: Event
    drip_s: float
    nth: int = field(init=False)
    is_over: bool = False

    def __post_init__(self) -> None:
        self.nth = self.tally.record(self.request)

    def right(self) -> Reply:
        """Return what an honest server would answer."""
        return right(self.request, self.content, self.etag)

    def send(self, reply: Reply) -> None:
        """Send an answer as it is, true or not."""
        self.write(reply.head())
        self.body(reply.body)

    def write(self, sent: bytes) -> None:
        """Send bytes that are no part of a body."""
        self.connection.sendall(sent)

    def body(self, sent: bytes) -> None:
        """Send bytes of a body and count them; a HEAD request gets none."""
        rest = memoryview(b"" if self.request.method == "HEAD" else sent)
        while rest:
            n_sent = self.connection.send(rest[: 64 * 1024])
            self.tally.add(n_sent)
            rest = rest[n_sent:]

    def wait(self, seconds: float | None = None) -> None:
        """Do nothing for so long, or for ever; end at once when the server is closed."""
        if self.closing.wait(seconds):
            raise ConnectionAbortedError

    def hang_up(self) -> None:
        """Send nothing more after this answer."""
        self.is_over = True

    def reset(self) -> None:
        """Break the connection, once the client's machine has what was sent so far."""
        while _unsent(self.connection):
            self.wait(0.001)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.is_over = True


def _unsent(connection: socket.socket) -> int:
    """Return how many bytes wait in this machine, 0 where the system does not tell."""
    if sys.platform != "linux":
        return 0
    import fcntl  # noqa: PLC0415 there is none on Windows
    import termios  # noqa: PLC0415

    told = fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4))
    return int.from_bytes(told, sys.byteorder)
