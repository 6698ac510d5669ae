"""What stands before the application: who may ask, and how much and how slowly.

Bodies are read here, whole and bounded, so that nothing behind this sees half a request or waits for
one. Requests are logged without what they say.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from weightpkg.listening.gate import Gate, NotLetInError
from weightpkg.server.counters import Counters
from weightpkg.server.wire import RequestError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

MAX_BODY = 8 * 1024 * 1024
BODY_TIMEOUT_S = 30.0
MAX_DEPTH = 32
# a text, perhaps without its end, is one match, so that what is in it does not count
_BRACKETS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)
_PAGES = frozenset({"/", "/healthz"})  # which need no key


@dataclass(frozen=True, slots=True)
class Guard:
    """An ASGI application round another one.

    log: told a line of JSON for each request.
    """

    app: App
    gate: Gate
    counters: Counters
    log: Callable[[str], None]

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        status = 0

        async def send_and_see(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-content-type-options", b"nosniff")]
            await send(message)

        try:
            await self._pass(scope, receive, send_and_see)
        except RequestError as error:
            await _refuse(error, send_and_see)
        finally:
            self._note(scope, status, time.perf_counter() - start)

    async def _pass(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        self._check(scope, headers)
        if scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise RequestError(415, "the body must be of Content-Type application/json")
        body = await _read(receive, headers)
        _check_depth(body)
        await self.app(scope, _replay(body, receive), send)

    def _check(self, scope: Mapping[str, Any], headers: Mapping[str, str]) -> None:
        try:
            self.gate.check(scope["headers"])
            if scope["path"] not in _PAGES:
                self.gate.check_key(headers)
        except NotLetInError as error:
            code = "invalid_api_key" if error.status == HTTPStatus.UNAUTHORIZED else None
            raise RequestError(
                error.status, str(error), code=code, headers=error.headers
            ) from error

    def _note(self, scope: Mapping[str, Any], status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        self.counters.add("weightpkg_requests_total", 1, route=route, status=str(status))
        self.counters.add("weightpkg_request_seconds_total", seconds, route=route)
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "method": scope["method"],
            "route": route,
            "status": status,
            "seconds": round(seconds, 4),
        }
        self.log(json.dumps(line))


async def _read(receive: Receive, headers: Mapping[str, str]) -> bytes:
    """Return the body.

    Raises:
        RequestError: it is too large, or does not come.
    """
    too_large = RequestError(413, f"the body is larger than {MAX_BODY:,} bytes")
    told = headers.get("content-length", "0")
    if not told.isdecimal() or int(told) > MAX_BODY:
        raise too_large
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise RequestError(499, "the client has gone")
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > MAX_BODY:
                    raise too_large
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError as error:
        raise RequestError(408, f"the body did not come within {BODY_TIMEOUT_S:g} s") from error


def _check_depth(body: bytes) -> None:
    """Refuse a JSON text that is nested so deep that reading it would fail or take long."""
    depth = 0
    for token in _BRACKETS.finditer(body):
        if token[0] in {b"{", b"["}:
            depth += 1
            if depth > MAX_DEPTH:
                raise RequestError(400, f"the body is nested deeper than {MAX_DEPTH} levels")
        elif token[0] in {b"}", b"]"}:
            depth -= 1


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return what gives the body once, and then what the connection gives."""
    is_given = False

    async def replay() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _refuse(error: RequestError, send: Send) -> None:
    body = json.dumps(error.body).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close", **error.headers}  # fmt: skip
    encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
