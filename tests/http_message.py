"""What is said over HTTP, and how an honest server answers (RFC 9110 on ranges and validators)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from email.message import Message
from email.parser import BytesHeaderParser
from io import BufferedIOBase

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
