"""One request to a server that may lie, and the connection on which it is answered.

The faults change what `right` answers, or write something else to the connection. Nothing here
knows HTTP from a library, as libraries do not let one lie about where a message ends.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections import Counter
from dataclasses import dataclass, field
from threading import Event, Lock

from http_message import Reply, Request, right

# so little that what is counted and not yet sent matters to nobody
_PIECE_SIZE = 16 * 1024


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
        if self.request.method == "HEAD":
            return
        for start in range(0, len(sent), _PIECE_SIZE):
            piece = sent[start : start + _PIECE_SIZE]
            # before it is sent, or a client could have bytes that are not yet counted
            self.tally.add(len(piece))
            self.connection.sendall(piece)

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
