"""What stands before replicas: an application that has one of them answer each request.

It is where the key stays: a replica gets what the application needs of a request, and nothing else
that a client says. A replica that is lost before it began to answer is no error: another one is
asked. A client that goes away ends its answer in the replica.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Protocol

from weightpkg.server.counters import CONTENT_TYPE, Counters, Labels
from weightpkg.server.guard import Message, Receive, Send
from weightpkg.server.wire import RequestError, error_body

REPLICA_HEADER = b"x-weightpkg-replica"
_TAKEN_S = 30.0
_TRIES = 3
_PAUSE_S = 0.5
_END_S = 5.0  # for a replica to say what it counted
_HEADERS = frozenset({b"content-type", b"content-length", b"accept"})


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, as replicas get it."""

    method: str
    path: str
    query: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


@dataclass(frozen=True, slots=True)
class Taken:
    """A replica has begun; its name."""

    replica: str


@dataclass(frozen=True, slots=True)
class Sent:
    """What the application has sent meanwhile, and the route that it is."""

    route: str
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Done:
    """A replica has ended; what was counted since it said so last."""

    counts: Mapping[tuple[str, Labels], float]


Part = Taken | Sent | Done


class Parts(Protocol):
    """What a replica says of a request: `Taken`, any number of `Sent`, `Done`."""

    def __aiter__(self) -> AsyncIterator[Part]:
        """Yield them as they come; LostError if the replica is no more."""

    def cancel(self) -> None:
        """Have the replica stop, if it has not ended."""


class LostError(Exception):
    """A replica is gone, or cannot be reached."""


class Front:
    """An ASGI application whose answers are made elsewhere."""

    def __init__(self, ask: Callable[[Asked], Parts], counters: Counters) -> None:
        """Begin with none.

        Args:
            ask: has any replica answer a request.
            counters: get what replicas count.
        """
        self._ask = ask
        self._counters = counters

    async def __call__(
        self, scope: MutableMapping[str, object], receive: Receive, send: Send
    ) -> None:
        """Answer one request, whose body is there as a whole."""
        if scope["path"] == "/metrics":
            scope["route"] = SimpleNamespace(path="/metrics")
            await self._tell_counts(send)
            return
        reply = _Reply(scope, send, self._counters)
        answer = asyncio.ensure_future(self._answer(await _asked(scope, receive), reply))
        gone = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
            if reply.is_whole:  # to the server that is the client's end, too
                await asyncio.wait({answer}, timeout=_END_S)
            elif not answer.done() and not reply.is_begun:
                raise RequestError(499, "the client has gone")
            if answer.done():
                answer.result()
        finally:
            gone.cancel()
            answer.cancel()
            await asyncio.gather(answer, gone, return_exceptions=True)

    async def _answer(self, asked: Asked, reply: _Reply) -> None:
        for _ in range(_TRIES):
            parts = self._ask(asked)
            try:
                await reply.write(aiter(parts))
            except LostError:
                if reply.is_begun:
                    await reply.break_off()
                    return
            else:
                return
            finally:
                parts.cancel()
            await asyncio.sleep(_PAUSE_S)
        raise _unanswered("replicas were lost while they had this request")

    async def _tell_counts(self, send: Send) -> None:
        headers = [(b"content-type", CONTENT_TYPE.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": self._counters.text({}).encode()})


class _Reply:
    """An answer on its way from a replica to a client."""

    def __init__(self, scope: MutableMapping[str, object], send: Send, counters: Counters) -> None:
        self._scope, self._send, self._counters = scope, send, counters
        self._replica = ""
        self._is_stream = False
        self.is_begun = False
        self.is_whole = False

    async def write(self, parts: AsyncIterator[Part]) -> None:
        """Send what a replica says."""
        try:
            async with asyncio.timeout(_TAKEN_S):
                first = await anext(parts)
        except TimeoutError as error:
            raise _unanswered(f"no replica took the request within {_TAKEN_S:g} s") from error
        assert isinstance(first, Taken)  # noqa: S101  replicas begin so
        self._replica = first.replica
        async for part in parts:
            if isinstance(part, Sent):
                self._scope["route"] = SimpleNamespace(path=part.route)
                for message in part.messages:
                    await self._pass(message)
            elif isinstance(part, Done):
                self._end(part)

    async def _pass(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.is_begun = True
            self._is_stream = (b"content-type", b"text/event-stream") in [
                (name, value.partition(b";")[0]) for name, value in message["headers"]
            ]
            replica = (REPLICA_HEADER, self._replica.encode())
            message = {**message, "headers": [*message["headers"], replica]}
        await self._send(message)
        self.is_whole = message["type"] == "http.response.body" and not message.get("more_body")

    def _end(self, done: Done) -> None:
        self._counters.add("weightpkg_replica_requests_total", 1, replica=self._replica)
        for (name, labels), value in done.counts.items():
            self._counters.add(name, value, **dict(labels))

    async def break_off(self) -> None:
        """End an answer whose replica is lost: by an error in a stream, else by the connection's end."""
        if self.is_whole or not self._is_stream:
            return
        error = error_body("the replica that answered was lost", kind="server_error")
        body = f"data: {json.dumps(error)}\n\n".encode()
        with suppress(OSError):
            await self._send({"type": "http.response.body", "body": body})


def _unanswered(reason: str) -> RequestError:
    return RequestError(503, reason, kind="server_error", headers={"Retry-After": "5"})


async def _asked(scope: Mapping[str, object], receive: Receive) -> Asked:
    """Return a request without its key, and without what else no route needs."""
    body = b""
    if scope["method"] == "POST":
        body = (await receive())["body"]
    headers: list[tuple[bytes, bytes]] = scope["headers"]  # type: ignore[assignment]  # as ASGI has it
    kept = tuple((name, value) for name, value in headers if name in _HEADERS)
    query: bytes = scope["query_string"]  # type: ignore[assignment]  # the same
    return Asked(str(scope["method"]), str(scope["path"]), query, kept, body)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
