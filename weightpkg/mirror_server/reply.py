"""What a client asks of a mirror, and what it is answered; no sockets, no files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote_to_bytes

from weightpkg.mirror_server.checked import CheckedFile

MAX_PATH = 4096
_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")


class RefusedError(Exception):
    """The answer to a request is an error, which `reply` is; it is no fault of this program's."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        told = {"X-Error-Message": message, **(headers or {})}
        if code:
            told["X-Error-Code"] = code
        self.reply = json_reply({"error": message}, status=status, headers=told)


@dataclass(frozen=True, slots=True)
class Request:
    """What a client sent: the path in its decoded segments, and headers by lower-case name."""

    method: str
    segments: tuple[str, ...]
    query: Mapping[str, str]
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Stretch:
    """The bytes `[start, end)` of a file; whoever sends them closes it."""

    file: CheckedFile
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer; `size` is what `Content-Length` says, also where no body goes out."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | Stretch = b""

    @property
    def size(self) -> int:
        """Bytes of the body."""
        return len(self.body) if isinstance(self.body, bytes) else self.body.end - self.body.start

    def close(self) -> None:
        """Close the file, if it has one."""
        if isinstance(self.body, Stretch):
            self.body.file.close()


def json_reply(
    value: object, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Reply:
    """Return an answer in JSON."""
    told = {"Content-Type": "application/json; charset=utf-8", **(headers or {})}
    return Reply(status, told, json.dumps(value).encode())


def text_reply(text: str, *, content_type: str = "text/plain; charset=utf-8") -> Reply:
    """Return an answer in plain text."""
    return Reply(200, {"Content-Type": content_type}, text.encode())


def parse_segments(raw_path: bytes) -> tuple[str, ...]:
    """Split a path, then decode its parts, so that no decoded slash makes another part.

    Raises:
        RefusedError: it is none, or has parts that no path of ours has.
    """
    text = raw_path.decode("latin-1")
    if not text.startswith("/") or len(text) > MAX_PATH or not text.isascii():
        raise RefusedError(400, "not a path")
    return tuple(map(_decoded, text[1:].split("/")))


def _decoded(segment: str) -> str:
    if _PERCENT.search(segment):
        raise RefusedError(400, "not a path")
    try:
        text = unquote_to_bytes(segment).decode()
    except UnicodeDecodeError as error:
        raise RefusedError(400, "not a path") from error
    if text in {"", ".", ".."} or not text.isprintable() or "\\" in text:
        raise RefusedError(400, "not a path")
    return text


def parse_query(raw_query: bytes) -> dict[str, str]:
    """Read a query; of a name that stands in it twice, the last value."""
    try:
        return dict(parse_qsl(raw_query.decode("ascii"), keep_blank_values=True, max_num_fields=32))
    except ValueError as error:
        raise RefusedError(400, "not a query") from error
