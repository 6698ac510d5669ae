"""A connection of uvicorn's with limits: time for a head, and how many connections there are.

uvicorn has neither: half a request holds a connection for ever, and so does a reader that reads
nothing. It has no way to send a file by `sendfile`, either, which the application gets here as an
extension of its scope. Tested against uvicorn 0.54; what is used beside its interface are the
attributes `app`, `conn`, `cycle`, `transport` and `connections` of its HTTP/1.1 protocol on h11.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sized
from dataclasses import dataclass
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from weightpkg.mirror_server.app import SENDFILE, Receive, Scope, Send
from weightpkg.mirror_server.checked import CheckedFile, DamagedError

HEAD_TIMEOUT_S = 10.0
MAX_HEAD_SIZE = 16 * 1024
MAX_CONNECTIONS = 400  # each may have a file, and 1024 descriptors are the usual limit
PIECE_SIZE = 1024 * 1024
PIECE_TIMEOUT_S = 60.0  # a client must take 17 kB a second


@dataclass(frozen=True, slots=True)
class _Promised:
    """Stands for bytes that go past h11, so that it counts them."""

    size: int

    def __len__(self) -> int:
        return self.size


class Connection(H11Protocol):
    """One connection of a client."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._inner = self.app
        self.app = cast("Any", self._with_sendfile)
        self._deadline: asyncio.TimerHandle | None = None

    async def _with_sendfile(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["extensions"] = {SENDFILE: self.sendfile}
        await cast("Any", self._inner)(scope, receive, send)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Begin to wait for a request, or make room for that."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS and not self._evict():
            transport.abort()
            return
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadline."""
        self._cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came, and go on waiting where it is not yet a request."""
        super().data_received(data)
        if not self.is_waiting:
            self._cancel()
        elif self._deadline is None:
            self._wait()

    @property
    def is_waiting(self) -> bool:
        """Whether no request is being answered."""
        cycle: Any = self.cycle  # None before the first request, whatever uvicorn's types say
        return cycle is None or bool(cycle.response_complete)

    def _wait(self) -> None:
        self._cancel()
        self._deadline = self.loop.call_later(HEAD_TIMEOUT_S, self._give_up)

    def _cancel(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        if self.is_waiting:
            self.transport.abort()

    def _evict(self) -> bool:
        """Close the connection that has waited longest; False where all are being answered."""
        waiting = [
            other
            for other in cast("set[Any]", self.connections)
            if other is not self and other.is_waiting and not other.transport.is_closing()
        ]
        if not waiting:
            return False
        oldest = min(waiting, key=lambda other: other.deadline_s)
        oldest.transport.abort()
        return True

    @property
    def deadline_s(self) -> float:
        """When waiting ends, by the loop's clock: the sooner, the longer it has waited."""
        return self._deadline.when() if self._deadline else float("inf")

    async def sendfile(self, file: CheckedFile, start: int, end: int) -> None:
        """Send a stretch of a file without copying it through this process.

        Raises:
            ConnectionError: the client has gone, or takes too little; the connection is closed.
            DamagedError: the file has become shorter; the same.
        """
        promised = cast("bytes", cast("Sized", _Promised(end - start)))
        try:
            self.conn.send_with_data_passthrough(h11.Data(data=promised))
        except h11.LocalProtocolError as error:  # it was closed before the answer began
            raise ConnectionError(str(error)) from error
        with open(file.descriptor, "rb", closefd=False, buffering=0) as stream:  # noqa: ASYNC230  it is open already
            while start < end:
                size = min(PIECE_SIZE, end - start)
                try:
                    async with asyncio.timeout(PIECE_TIMEOUT_S):
                        sent = await self.loop.sendfile(self.transport, stream, start, size)
                except (OSError, RuntimeError, TimeoutError) as error:
                    self.transport.abort()
                    raise ConnectionError(str(error)) from error
                if sent < size:
                    self.transport.abort()
                    raise DamagedError(f"`{file.path}`: ends at byte {start + sent:,}")
                start += size
