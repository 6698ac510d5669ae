"""A small HTTP client that hides nothing of an answer, and one that downloads as a good one would.

It shows what a server really sent, where a library would wait, mend or raise; and that the faults
of `faults` end as their table says. It knows as little as that takes: one connection a request.
"""

from __future__ import annotations

import hashlib
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urljoin, urlsplit

MAX_HEAD = 64 * 1024
End = Literal["whole", "closed", "reset", "timeout", "nonsense", "too long"]


@dataclass
class Answer:
    """What came, and how it ended; header names are in lower case, the last of a name wins."""

    status_line: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    end: End = "whole"

    @property
    def status(self) -> int:
        word = self.status_line.split(" ")[1:2]
        return int(word[0]) if self.status_line.startswith("HTTP/1.") and word[0].isdigit() else 0


class _Stopped(Exception):  # noqa: N818 it is how every answer ends that is not whole
    def __init__(self, end: End) -> None:
        self.end = end


class _Wire:
    """Bytes of a connection, until a deadline."""

    def __init__(self, connection: socket.socket, timeout_s: float) -> None:
        self._connection = connection
        self._deadline = time.monotonic() + timeout_s
        self._pending = b""

    def some(self, at_most: int = MAX_HEAD) -> bytes:
        """Return what comes next; nothing when the other side has closed."""
        if not self._pending:
            self._receive()
        found, self._pending = self._pending[:at_most], self._pending[at_most:]
        return found

    def line(self) -> str:
        """Return a line without its end."""
        while b"\r\n" not in self._pending:
            if len(self._pending) > MAX_HEAD:
                raise _Stopped("too long")
            if not self._receive():
                raise _Stopped("closed")
        found, _, self._pending = self._pending.partition(b"\r\n")
        return found.decode("latin-1")

    def copy(self, n_bytes: int, into: bytearray) -> None:
        """Read so many bytes, and keep those that come."""
        end = len(into) + n_bytes
        while len(into) < end:
            found = self.some(end - len(into))
            if not found:
                raise _Stopped("closed")
            into += found

    def _receive(self) -> bool:
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self._connection.settimeout(left_s)
        found = self._connection.recv(MAX_HEAD)
        self._pending += found
        return bool(found)


def ask(
    url: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 5.0,
    max_bytes: int = 10**9,
) -> Answer:
    """Send one request and read the answer, as far as it comes in time."""
    parts = urlsplit(url)
    told = {"Host": parts.netloc, "Connection": "close", **(headers or {})}
    lines = [f"{method} {parts.path} HTTP/1.1", *(f"{name}: {told[name]}" for name in told)]
    answer, body = Answer(), bytearray()
    with socket.create_connection((parts.hostname or "", parts.port or 80)) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
        try:
            _read(_Wire(connection, timeout_s), method, answer, body, max_bytes)
        except _Stopped as stopped:
            answer.end = stopped.end
        except TimeoutError:
            answer.end = "timeout"
        except ConnectionError:
            answer.end = "reset"
        except ValueError:
            answer.end = "nonsense"
    answer.body = bytes(body)
    return answer


def _read(wire: _Wire, method: str, answer: Answer, body: bytearray, max_bytes: int) -> None:
    _read_head(wire, answer)
    while answer.status == 100:
        _read_head(wire, answer)
    length = answer.headers.get("content-length")
    if method == "HEAD" or answer.status in {204, 304}:
        return
    if answer.headers.get("transfer-encoding") == "chunked":
        _read_chunks(wire, body, max_bytes)
    elif length is None:
        _read_until_closed(wire, body, max_bytes)
    else:
        if not length.isdigit():
            raise ValueError(length)
        wire.copy(min(int(length), max_bytes), body)


def _read_head(wire: _Wire, answer: Answer) -> None:
    answer.status_line = wire.line()
    if not answer.status:
        raise _Stopped("nonsense")
    n_read = 0
    while line := wire.line():
        n_read += len(line)
        if n_read > MAX_HEAD:
            raise _Stopped("too long")
        name, _, told = line.partition(":")
        answer.headers[name.lower()] = told.strip()


def _read_chunks(wire: _Wire, body: bytearray, max_bytes: int) -> None:
    while size := int(wire.line().partition(";")[0], 16):
        wire.copy(min(size, max_bytes - len(body)), body)
        if wire.line():
            raise _Stopped("nonsense")
    while wire.line():
        pass  # the trailer


def _read_until_closed(wire: _Wire, body: bytearray, max_bytes: int) -> None:
    while found := wire.some():
        body += found
        if len(body) > max_bytes:
            raise _Stopped("too long")


@dataclass
class Download:
    """A file that comes in as many answers as it takes; `n_lost` counts those that did not help."""

    url: str
    size: int
    sha256: str
    timeout_s: float = 5.0
    kept: bytearray = field(default_factory=bytearray)
    etag: str = ""
    best: int = 0
    n_lost: int = 0

    def run(self) -> bytes | None:
        """Return the right bytes, or None where they cannot be had."""
        while self.n_lost < 3:
            answer = self._follow()
            if answer.status in {200, 206, 416} or answer.status >= 500:
                self._take(answer)
            elif answer.status not in {0, 429}:
                return None
            if hashlib.sha256(self.kept).hexdigest() == self.sha256:
                return bytes(self.kept)
            if len(self.kept) >= self.size:
                self.kept.clear()
            # what comes too slowly is lost, and what brings the file no further
            self.n_lost += answer.end == "timeout" or len(self.kept) <= self.best
            self.best = max(self.best, len(self.kept))
        return None

    def _follow(self) -> Answer:
        url = self.url
        headers = {"Range": f"bytes={len(self.kept)}-"} if self.kept else {}
        if self.kept and self.etag.startswith('"'):
            headers["If-Range"] = self.etag
        for _ in range(5):
            answer = ask(url, headers=headers, timeout_s=self.timeout_s, max_bytes=self.size + 1)
            url = urljoin(url, answer.headers.get("location", ""))
            if answer.status != 302 or not url.startswith("http:"):
                return answer
        return answer

    def _take(self, answer: Answer) -> None:
        if answer.status == 206:
            told = f"bytes {len(self.kept)}-{self.size - 1}/{self.size}"
            if not self.kept or answer.headers.get("content-range") != told:
                self.kept.clear()
                return
        else:
            self.kept.clear()
        if answer.status in {200, 206} and "content-encoding" not in answer.headers:
            self.kept += answer.body
        self.etag = answer.headers.get("etag", "")
