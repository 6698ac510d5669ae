"""The process that serves a mirror: which addresses, and how it ends."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import uvicorn

from weightpkg.errors import RunError
from weightpkg.mirror_server.app import App, Mirror
from weightpkg.mirror_server.checked import check_directory
from weightpkg.mirror_server.connection import MAX_HEAD_SIZE, Connection
from weightpkg.mirror_server.gate import Gate, is_loopback

LOOPBACK = ("127.0.0.1", "::1")
DRAIN_S = 30
_KEEP_ALIVE_S = 5
_BACKLOG = 512
# what clients do wrong, and what our own log says better
_SILENT = ("Invalid HTTP request", "ASGI callable returned without", "Unsupported upgrade")


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How a mirror is to be served.

    address: where to listen; None for loopback, both IPv4 and IPv6.
    port: 0 for any that is free.
    url: how clients reach the server, where that is by another name, such as a proxy's.
    key: what clients must know.
    is_public: whether everybody who reaches it may read it.
    """

    address: str | None
    port: int
    url: str | None = None
    key: str | None = None
    is_public: bool = False


class MirrorServer:
    """A server that listens, and serves until it is told to stop."""

    def __init__(self, root: Path, options: Options, log: Callable[[str], None]) -> None:
        """Look through the mirror, and listen.

        Raises:
            StoreError: the directory is none.
            RunError: the address cannot be had, or would let in who should not be.
        """
        check_options(options)
        check_directory(root)
        self.mirror = Mirror(root, log)
        self._sockets = _listen(options)
        self.port = int(self._sockets[0].getsockname()[1])
        gate = Gate(
            port=self.port,
            names=_names(options),
            is_open=not _is_local(options),
            key=options.key,
        )
        self.app = App(self.mirror, gate, url=options.url, log=log)
        self._server = uvicorn.Server(_config(self.app))
        self.app.n_connections = lambda: len(self._server.server_state.connections)

    @property
    def urls(self) -> list[str]:
        """Where it listens."""
        found = []
        for each in self._sockets:
            host, port = each.getsockname()[:2]
            found.append(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
        return found

    def run(self) -> None:
        """Serve until SIGTERM, SIGINT or `stop`; what is being sent then may take half a minute."""
        _quiet()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                # uvicorn raises the signal again when all is done: to end so is no failure
                signal.signal(number, lambda *_: None)
        try:
            self._server.run(self._sockets)
        finally:
            self.app.close()

    def close(self) -> None:
        """Listen no more, where it was never run."""
        for each in self._sockets:
            each.close()
        self.app.close()

    def stop(self) -> None:
        """Let it finish what it is sending, and end."""
        self._server.should_exit = True


def check_options(options: Options) -> None:
    """Raise RunError where anybody could read the mirror though nobody said so."""
    if _is_local(options) or options.key or options.is_public:
        return
    raise RunError(
        f"`{options.address}` can be reached from other machines, and no key was given",
        hint="give --key-file FILE or WEIGHTPKG_MIRROR_KEY, or say --public",
    )


def _is_local(options: Options) -> bool:
    return options.address is None or is_loopback(options.address)


def _names(options: Options) -> frozenset[str]:
    named = {urlsplit(options.url).hostname} if options.url else set()
    if options.address and not _is_local(options):
        named |= {options.address.lower(), socket.gethostname().lower()}
    return frozenset(f"[{name}]" if ":" in name else name for name in named if name)


def _listen(options: Options) -> list[socket.socket]:
    addresses = LOOPBACK if options.address is None else (options.address,)
    sockets: list[socket.socket] = []
    port = options.port
    for address in addresses:
        try:
            sockets.append(_socket(address, port))
        except OSError as error:
            if sockets:
                continue  # a machine without IPv6
            reason = error.strerror or str(error)
            raise RunError(f"cannot listen at `{address}` port {port}: {reason}") from error
        port = int(sockets[-1].getsockname()[1])
    return sockets


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


def _config(app: App) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=Connection,
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


def _quiet() -> None:
    logger = logging.getLogger("uvicorn.error")
    if not any(isinstance(each, _NotClients) for each in logger.filters):
        logger.addFilter(_NotClients())


class _NotClients(logging.Filter):
    """Leaves out of uvicorn's log what clients do wrong."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is about this program."""
        return not record.getMessage().startswith(_SILENT)


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
    if len(value) < 16 or not value.isascii() or not value.isprintable() or " " in value:
        raise RunError(
            "the key is not at least 16 printable ASCII characters without a space",
            hint="`openssl rand -hex 32` makes one",
        )
    return value
