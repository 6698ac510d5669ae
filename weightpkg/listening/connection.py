"""A connection of uvicorn's with limits: time for a head, and how many connections there are.

uvicorn has neither: half a request holds a connection for ever. Tested against uvicorn 0.54; what is
used beside its interface are the attributes `cycle`, `transport` and `connections` of its HTTP/1.1
protocol on h11.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_TIMEOUT_S = 10.0
MAX_HEAD_SIZE = 16 * 1024


class Connection(H11Protocol):
    """One connection of a client."""

    # a process may usually have 1024 descriptors, and each connection may have a file open
    max_connections: ClassVar[int] = 400

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Begin to wait for a request, or make room for that."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections and not self._evict():
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

    @property
    def deadline_s(self) -> float:
        """When waiting ends, by the loop's clock: the sooner, the longer it has waited."""
        return self._deadline.when() if self._deadline else float("inf")

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
        min(waiting, key=lambda other: other.deadline_s).transport.abort()
        return True
