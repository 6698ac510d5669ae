"""A web server on the loopback interface in which one thing goes wrong: the URL says which.

What can go wrong, and how a good client ends, is the table `FAULTS`. Each URL has its own state: a
fault that happens once happens once a method and path, and again after `reset`. The server waits
for nobody when it is closed.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from socketserver import StreamRequestHandler, ThreadingTCPServer
from threading import Event, Lock, Thread
from typing import cast

from faults import FAULTS
from faults.exchange import Exchange, Tally
from faults.fault import Answer, Fault, tells
from http_message import Request, read_request, strong_etag

__all__ = ["FAULTS", "Fault", "FaultServer", "Request", "fault_server"]

# so little that `sent` stays near what clients have taken
_SEND_BUFFER = 32 * 1024


class FaultServer:
    """What a server has, and what it has seen and sent since the last `reset`."""

    def __init__(self, content: bytes, *, drip_s: float = 1.0) -> None:
        """Serve this content; a byte drips each `drip_s` where bytes drip."""
        self.content = content
        self.etag = strong_etag(content)
        self.drip_s = drip_s
        self.closing = Event()
        self.tally = Tally()
        self._listener = _Listener(self)
        # accepts what comes in from here on, though nobody runs it yet
        self.root = "http://{}:{}".format(*self._listener.server_address)

    def url(self, fault: str) -> str:
        """Return where the content is had with this fault; it must be one of `FAULTS`."""
        return f"{self.root}/{FAULTS[fault].name}/model.gguf"

    @property
    def sent(self) -> int:
        """Bytes of bodies put on the wire, over all connections."""
        return self.tally.sent

    @property
    def n_connections(self) -> int:
        """How many connections the server has not yet closed."""
        return self._listener.n_open

    @property
    def requests(self) -> list[Request]:
        return self.tally.requests

    def reset(self) -> None:
        """Forget state and counts; what is still being sent counts no more."""
        self.tally = Tally()

    def run(self) -> None:
        """Answer requests until the server is closed."""
        self._listener.serve_forever(poll_interval=0.01)

    def close(self) -> None:
        """End `run`, and every wait and every connection."""
        self.closing.set()
        self._listener.shutdown()
        self._listener.hang_up()
        self._listener.server_close()


class _Listener(ThreadingTCPServer):
    """Accepts connections, and knows those that are open."""

    request_queue_size = 128

    def __init__(self, server: FaultServer) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        self.server = server
        self._lock = Lock()
        self._open: set[socket.socket] = set()

    @property
    def n_open(self) -> int:
        with self._lock:
            return len(self._open)

    def process_request(self, request: object, client_address: object) -> None:
        with self._lock:
            self._open.add(cast("socket.socket", request))
        super().process_request(cast("socket.socket", request), client_address)

    def shutdown_request(self, request: object) -> None:
        with self._lock:
            self._open.discard(cast("socket.socket", request))
        super().shutdown_request(cast("socket.socket", request))

    def hang_up(self) -> None:
        """Wake every thread that waits for a client."""
        with self._lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


class _Connection(StreamRequestHandler):
    disable_nagle_algorithm = True

    def handle(self) -> None:
        """Answer one request after the other, until one side has enough."""
        server = cast("_Listener", self.server).server
        with suppress(OSError):
            while request := read_request(self.rfile):
                exchange = Exchange(
                    connection=self.connection,
                    request=request,
                    content=server.content,
                    etag=server.etag,
                    tally=server.tally,
                    closing=server.closing,
                    drip_s=server.drip_s,
                )
                _answer(request)(exchange)
                if exchange.is_over or not request.stays:
                    break

    def finish(self) -> None:
        with suppress(OSError):
            super().finish()


def _answer(request: Request) -> Answer:
    fault = FAULTS.get(request.path.split("/")[1] if "/" in request.path else "")
    return fault.answer if fault else tells("404 Not Found")


@contextmanager
def fault_server(content: bytes, *, drip_s: float = 1.0) -> Iterator[FaultServer]:
    """Run a server until the block ends."""
    server = FaultServer(content, drip_s=drip_s)
    thread = Thread(target=server.run)
    thread.start()
    try:
        yield server
    finally:
        server.close()
        thread.join()
