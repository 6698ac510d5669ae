"""A process that listens: at which addresses, for whom, and how it ends."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvicorn

from weightpkg.errors import RunError
from weightpkg.listening.connection import MAX_HEAD_SIZE, Connection
from weightpkg.listening.gate import Gate, is_loopback

LOOPBACK = ("127.0.0.1", "::1")
DRAIN_S = 30
_KEEP_ALIVE_S = 20  # longer than httpx keeps one, so that no request meets one that is being closed
_BACKLOG = 512
_MIN_KEY = 16
# what clients do wrong, and what our own log says better
_SILENT = ("Invalid HTTP request", "ASGI callable returned without", "Unsupported upgrade")


@dataclass(frozen=True, kw_only=True, slots=True)
class Listening:
    """Where to listen, and for whom.

    address: None for loopback, both IPv4 and IPv6.
    port: 0 for any that is free.
    url: how clients reach the server, where that is by another name, such as a proxy's.
    key: what clients must know.
    is_public: whether everybody who reaches it may ask.
    origins: of other sites whose pages may ask.
    """

    address: str | None
    port: int
    url: str | None = None
    key: str | None = None
    is_public: bool = False
    origins: frozenset[str] = frozenset()

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches it."""
        return self.address is None or is_loopback(self.address)

    def check(self, remedy: str) -> None:
        """Refuse to let in who should not be.

        Args:
            remedy: how to give a key.

        Raises:
            RunError: anybody could ask though nobody said so.
        """
        if not (self.is_local or self.key or self.is_public):
            raise RunError(
                f"`{self.address}` can be reached from other machines, and no key was given",
                hint=remedy,
            )

    def gate(self, port: int) -> Gate:
        """Return who is let in, at the port that was had."""
        return Gate(
            port=port,
            names=self._names(),
            is_open=not self.is_local,
            key=self.key,
            origins=self.origins,
        )

    def _names(self) -> frozenset[str]:
        named = {urlsplit(self.url).hostname} if self.url else set()
        if self.address and not self.is_local:
            named |= {self.address.lower(), socket.gethostname().lower()}
        return frozenset(f"[{name}]" if ":" in name else name for name in named if name)


def listen(listening: Listening) -> list[socket.socket]:
    """Return sockets that listen; RunError where the address cannot be had."""
    addresses = LOOPBACK if listening.address is None else (listening.address,)
    sockets: list[socket.socket] = []
    port = listening.port
    for address in addresses:
        try:
            sockets.append(_socket(address, port))
        except OSError as error:
            if sockets:
                continue  # a machine without IPv6
            reason = error.strerror or str(error)
            raise RunError(f"cannot listen at `{address}` port {port}: {reason}") from error
        port = port_of(sockets)
    return sockets


def port_of(sockets: list[socket.socket]) -> int:
    """The port that all of them have."""
    return int(sockets[-1].getsockname()[1])


def urls_of(sockets: list[socket.socket]) -> list[str]:
    """Where they listen."""
    found = []
    for each in sockets:
        host, port = each.getsockname()[:2]
        found.append(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
    return found


def _socket(address: str, port: int) -> socket.socket:
    family, kind, protocol, _, place = socket.getaddrinfo(
        address.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    found = socket.socket(family, kind, protocol)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            with suppress(OSError):
                found.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        found.bind(place)
        found.listen(_BACKLOG)
    except OSError:
        found.close()
        raise
    return found


def make_server(app: Any, *, protocol: type[Connection] = Connection) -> uvicorn.Server:
    """Return a server of an ASGI application, with our limits."""
    _quiet()
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        loop="asyncio",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        h11_max_incomplete_event_size=MAX_HEAD_SIZE,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=DRAIN_S,
    )
    return uvicorn.Server(config)


def run_until_told(server: uvicorn.Server, sockets: list[socket.socket]) -> None:
    """Serve until SIGTERM or SIGINT; what is being answered then may take half a minute."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            # uvicorn raises the signal again when all is done: to end so is no failure
            signal.signal(number, lambda *_: None)
    server.run(sockets)


def read_key(path: Path | None, value: str | None) -> str | None:
    """Return the key of a file, or else `value`.

    Raises:
        RunError: the file cannot be read, or there is no fit key in it.
    """
    if path is not None:
        try:
            value = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise RunError(f"`{path}`: the key cannot be read: {error}") from error
    if value is None:
        return None
    if len(value) < _MIN_KEY or not value.isascii() or not value.isprintable() or " " in value:
        raise RunError(
            f"the key is not at least {_MIN_KEY} printable ASCII characters without a space",
            hint="`openssl rand -hex 32` makes one",
        )
    return value


def _quiet() -> None:
    logger = logging.getLogger("uvicorn.error")
    if not any(isinstance(each, _NotClients) for each in logger.filters):
        logger.addFilter(_NotClients())


class _NotClients(logging.Filter):
    """Leaves out of uvicorn's log what clients do wrong."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is about this program."""
        return not record.getMessage().startswith(_SILENT)
