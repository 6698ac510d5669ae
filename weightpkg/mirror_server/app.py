"""The ASGI application of a mirror: lets in, answers, sends checked bytes, counts and logs.

Routes answer in threads, as they read disks; files go out by the connection's own extension
(`connection.SENDFILE`), chunk after chunk, while the next chunk is being checked.
"""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from threading import Lock
from typing import Any, cast

from weightpkg.contents import CONTENTS, Contents, Entry, read_contents
from weightpkg.digest import CHUNK_SIZE
from weightpkg.errors import DocumentError
from weightpkg.listening.gate import Gate, NotLetInError
from weightpkg.mirror_server.checked import CheckedFile, DamagedError, Shelf
from weightpkg.mirror_server.holdings import Holdings, read_holdings
from weightpkg.mirror_server.hub import Hub
from weightpkg.mirror_server.metrics import CONTENT_TYPE, Metrics
from weightpkg.mirror_server.registry import Registry
from weightpkg.mirror_server.reply import (
    RefusedError,
    Reply,
    Request,
    Stretch,
    parse_query,
    parse_segments,
    text_reply,
)
from weightpkg.mirror_server.static import FOLDERS, Static

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
SendFile = Callable[[CheckedFile, int, int], Awaitable[None]]

SENDFILE = "weightpkg.sendfile"
"""The extension by which `[start, end)` of a file goes out; ConnectionError where it cannot."""

_MAX_HEAD = 16 * 1024
_MAX_HEADERS = 100
_REFRESH_S = 2.0
_MAX_WARNINGS = 20
_HEADERS = {"X-Content-Type-Options": "nosniff"}


class Mirror:
    """A mirror's directory and what is in it; read anew when its manifest is another one."""

    def __init__(self, root: Path, log: Callable[[str], None]) -> None:
        self._root = root
        self._log = log
        self._shelf = Shelf(root)
        self._lock = Lock()
        self._looked_s = time.monotonic()
        self._state = self._manifest_state()
        self._routes = self._read()

    @property
    def holdings(self) -> Holdings:
        """What the mirror had when it was last looked at."""
        return self._routes.holdings

    def routes(self) -> Routes:
        """Return what answers now; one thread looks for changes while others go on as before."""
        if time.monotonic() - self._looked_s > _REFRESH_S and self._lock.acquire(blocking=False):
            try:
                self._looked_s = time.monotonic()
                state = self._manifest_state()
                if state not in {self._state, None}:  # while it is being replaced, nothing is new
                    self._routes, self._state = self._read(), state
                    self._log("the mirror has changed, and was read again")
            finally:
                self._lock.release()
        return self._routes

    def _manifest_state(self) -> tuple[int, int, int] | None:
        try:
            state = (self._root / CONTENTS).stat()
        except OSError:
            return None
        return state.st_ino, state.st_size, state.st_mtime_ns

    def _read(self) -> Routes:
        contents = self._contents()
        holdings = read_holdings(self._root)
        for gap in holdings.gaps:
            self._log(f"warning: {gap} is not complete here, and is left out")
        for fault in holdings.faults:
            self._log(f"warning: {fault}")
        return Routes(
            holdings,
            Static(self._shelf, {path: entry.blake3 for path, entry in contents.files.items()}),
            Hub(holdings, self._shelf),
            Registry(holdings, self._shelf),
        )

    def _contents(self) -> Contents:
        """Read what the mirror should have, and say what it has not; nothing is hashed."""
        path = self._root / CONTENTS
        try:
            contents = read_contents(path.read_bytes(), source=str(path))
        except FileNotFoundError:
            self._log(f"warning: `{path}` is missing: the mirror was not finished")
            return Contents((), {})
        except (OSError, DocumentError) as error:
            self._log(f"warning: the mirror's list cannot be read: {error}")
            return Contents((), {})
        wrong = [entry.path for entry in contents.files.values() if not self._is_there(entry)]
        for each in wrong[:_MAX_WARNINGS]:
            self._log(f"warning: `{each}` is missing, or has another size")
        if len(wrong) > _MAX_WARNINGS:
            self._log(f"warning: so are {len(wrong) - _MAX_WARNINGS:,} other files")
        return contents

    def _is_there(self, entry: Entry) -> bool:
        try:
            state = (self._root / entry.path).lstat()
        except OSError:
            return False
        return stat.S_ISREG(state.st_mode) and state.st_size == entry.size


@dataclass(frozen=True, slots=True)
class Routes:
    """What answers, for one state of a mirror."""

    holdings: Holdings
    static: Static
    hub: Hub
    registry: Registry

    def answer(self, request: Request, base_url: str) -> Reply:
        """Answer a request; RefusedError and DamagedError say why not."""
        match request.segments:
            case ("mirror.toml",) | ("index" | "locks" | "models" | "blobs", _, *_):
                return self.static.answer(request)
            case ("api", *_):
                return self.hub.api(request, base_url)
            case ("v2", *_):
                return self.registry.answer(request)
            case (_, _, "resolve", _, _, *_):
                return self.hub.resolve(request)
        raise RefusedError(404, "there is no such route")


class App:
    """The application; `gate` is set before the first request, when the port is known."""

    def __init__(
        self, mirror: Mirror, gate: Gate, *, url: str | None, log: Callable[[str], None]
    ) -> None:
        """Make the application.

        Args:
            mirror: what it serves.
            gate: who may ask.
            url: how clients reach it, where that is not what they say in `Host`.
            log: told of each answer, and of damage.
        """
        self._mirror = mirror
        self._gate = gate
        self._url = url
        self._log = log
        self.metrics = Metrics()
        self.n_connections: Callable[[], int] = lambda: 0
        self._answering = ThreadPoolExecutor(8, thread_name_prefix="answer")
        self._checking = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="check")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  bodies are refused by their headers
        """Answer one request."""
        if scope["type"] != "http":
            return
        answer = _Answer(scope, send)
        self.metrics.n_active += 1
        try:
            await self._answer(answer)
        except ConnectionError:
            self.metrics.n_broken += 1
            answer.note = " (the client went away)"
        except DamagedError as error:
            self.metrics.n_damaged += 1
            self._log(f"error: {error}; sending it was broken off")
            answer.note = " (broken off: damaged)"
        finally:
            self.metrics.n_active -= 1
            self._note(answer)

    def close(self) -> None:
        """End the threads."""
        self._answering.shutdown(wait=False, cancel_futures=True)
        self._checking.shutdown(wait=False, cancel_futures=True)

    def _note(self, answer: _Answer) -> None:
        seconds = time.monotonic() - answer.began_s
        method = answer.method if answer.method in {"GET", "HEAD"} else "other"
        self.metrics.note(answer.route, method, answer.status, answer.sent, seconds)
        self._log(answer.line(seconds))

    async def _answer(self, answer: _Answer) -> None:
        loop = asyncio.get_running_loop()
        try:
            self._gate.check(answer.scope["headers"])
            request = _request(answer.scope)
            answer.route = _route(request.segments)
            reply = self._own(request)
            if reply is None:
                self._gate.check_key(request.headers)
                reply = await loop.run_in_executor(
                    self._answering, self._routed, request, answer.scope
                )
        except NotLetInError as error:
            reply = RefusedError(error.status, str(error), headers=error.headers).reply
        except RefusedError as refused:
            reply = refused.reply
        except DamagedError as error:
            self.metrics.n_damaged += 1
            self._log(f"error: {error}")
            reply = RefusedError(500, "the mirror's file is damaged").reply
        except OSError as error:
            self._log(f"error: {error}")
            reply = RefusedError(503, "the mirror cannot read the file").reply
        try:
            await answer.start(reply)
            if isinstance(reply.body, Stretch) and answer.method != "HEAD":
                await self._send_file(answer, reply.body)
            await answer.end(reply)
        finally:
            reply.close()

    def _own(self, request: Request) -> Reply | None:
        """Answer what is about the server and not the mirror."""
        if request.segments == ("healthz",):
            return text_reply("ok\n")
        if request.segments == ("metrics",):
            self._gate.check_key(request.headers)
            holdings = self._mirror.holdings
            facts = {
                "connections": self.n_connections(),
                "repositories": len(holdings.repositories),
                "blobs": len(holdings.sizes),
                "blob_bytes": sum(holdings.sizes.values()),
            }
            return text_reply(self.metrics.text(facts), content_type=CONTENT_TYPE)
        return None

    def _routed(self, request: Request, scope: Scope) -> Reply:
        base_url = self._url or f"{scope['scheme']}://{request.headers['host']}"
        return self._mirror.routes().answer(request, base_url)

    async def _send_file(self, answer: _Answer, stretch: Stretch) -> None:
        """Send chunk by chunk; the first was checked when the file was opened."""
        loop = asyncio.get_running_loop()
        sendfile = cast("SendFile", answer.scope["extensions"][SENDFILE])
        file, start = stretch.file, stretch.start
        checked: asyncio.Future[None] | None = None
        try:
            while start < stretch.end:
                i = start // CHUNK_SIZE
                if checked is not None:
                    await checked
                end = min((i + 1) * CHUNK_SIZE, stretch.end)
                checked = None
                if end < stretch.end:
                    checked = loop.run_in_executor(self._checking, file.check, i + 1)
                await sendfile(file, start, end)
                answer.sent += end - start
                start = end
        finally:
            if checked is not None:
                with suppress(DamagedError, OSError):
                    await asyncio.shield(checked)  # else a descriptor would be closed while in use


class _Answer:
    """One answer while it is made: what is logged and counted of it."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.scope = scope
        self.method = str(scope["method"])
        self.began_s = time.monotonic()
        self.route = "none"
        self.status = 0
        self.sent = 0
        self.note = ""
        self._send = send

    async def start(self, reply: Reply) -> None:
        """Send the head."""
        told: Mapping[str, str] = {**_HEADERS, **reply.headers}
        if reply.status != HTTPStatus.NOT_MODIFIED:
            told = {**told, "Content-Length": str(reply.size)}
        headers = [(n.lower().encode(), v.encode("latin-1", "replace")) for n, v in told.items()]
        self.status = reply.status
        await self._send(
            {"type": "http.response.start", "status": reply.status, "headers": headers}
        )

    async def end(self, reply: Reply) -> None:
        """Send the body, or, after a file, that there is no more."""
        body = reply.body if isinstance(reply.body, bytes) else b""
        self.sent += len(body) if self.method != "HEAD" else 0
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    def line(self, seconds: float) -> str:
        """Return what the access log says: no query, no header, nothing that could be a secret."""
        client = (self.scope.get("client") or ("-",))[0]
        path = self.scope["raw_path"].decode("ascii", "replace")
        shown = "".join(c if c.isprintable() and c.isascii() else "?" for c in path[:200])
        return f"{client} {self.method[:16]} {shown} {self.status} {self.sent} {seconds:.3f} s{self.note}"


def _request(scope: Scope) -> Request:
    headers: dict[str, str] = {}
    # h11 bounds a head only while it is incomplete
    size = sum(len(name) + len(value) for name, value in scope["headers"])
    if size + len(scope["query_string"]) > _MAX_HEAD or len(scope["headers"]) > _MAX_HEADERS:
        raise RefusedError(431, "the request's head is too large", headers=_CLOSE)
    if scope["http_version"] not in {"1.0", "1.1"}:
        raise RefusedError(505, "only HTTP/1.1 is spoken here", headers=_CLOSE)
    for name, value in scope["headers"]:
        text = value.decode("latin-1")
        key = name.decode("latin-1")
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    if scope["method"] not in {"GET", "HEAD"}:
        raise RefusedError(405, "only GET and HEAD are answered", headers=_ALLOW)
    if headers.get("content-length", "0").strip() != "0" or "transfer-encoding" in headers:
        raise RefusedError(400, "requests here have no body", headers=_CLOSE)
    segments = parse_segments(scope["raw_path"])
    return Request(scope["method"], segments, parse_query(scope["query_string"]), headers)


_CLOSE = {"Connection": "close"}
_ALLOW = {"Allow": "GET, HEAD", **_CLOSE}


def _route(segments: tuple[str, ...]) -> str:
    """Return our own word for what is asked, for the metrics."""
    if segments[0] in {*FOLDERS, "api", "v2", "healthz", "metrics"}:
        return segments[0]
    if segments == (CONTENTS,):
        return "manifest"
    return "resolve" if segments[2:3] == ("resolve",) else "none"
