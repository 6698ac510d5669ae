"""Cuts connections off whose other end sends too little: a time-out that a drip cannot reset.

A socket's own time-out begins again with each byte, so a server that sends one now and then, in a
header or in a body, holds a reader for ever. The watchdog is one thread that knows, for each
connection, until when it must have done more, and shuts its socket down if it has not.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from threading import Condition, Thread
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError

if TYPE_CHECKING:
    from urllib3 import PoolManager, ProxyManager
    from urllib3.response import BaseHTTPResponse

_TICK_S = 0.05


class Fed:
    """A connection under watch."""

    def __init__(self, sock: socket.socket | None, timeout_s: float) -> None:
        self._sock = sock
        self._timeout_s = timeout_s
        self._received = 0
        self.end = time.monotonic() + timeout_s
        self.is_cut = False

    def feed(self, size: int, *, least: int) -> None:
        """Count bytes; `least` of them buy another time-out's length."""
        self._received += size
        if self._received >= least:
            self._received = 0
            self.end = time.monotonic() + self._timeout_s

    def cut(self) -> None:
        """End the connection, whoever waits on it."""
        self.is_cut = True
        if self._sock is not None:
            with suppress(OSError):
                # the plain socket's method: a TLS socket's own would not be safe from here
                socket.socket.shutdown(self._sock, socket.SHUT_RDWR)


class Watchdog:
    """The thread, which runs while anything is watched."""

    def __init__(self) -> None:
        self.sockets: WeakKeyDictionary[BaseHTTPResponse, socket.socket] = WeakKeyDictionary()
        self._watched: set[Fed] = set()
        self._change = Condition()
        self._is_closed = False
        self._thread: Thread | None = None

    @contextmanager
    def watch(self, sock: socket.socket | None, timeout_s: float) -> Iterator[Fed]:
        """Watch a connection for the length of the `with`."""
        fed = Fed(sock, timeout_s)
        with self._change:
            self._watched.add(fed)
            if self._thread is None:
                self._thread = Thread(target=self._run, daemon=True, name="weightpkg-watchdog")
                self._thread.start()
            self._change.notify()
        try:
            yield fed
        finally:
            with self._change:
                self._watched.discard(fed)

    def close(self) -> None:
        """Cut off whatever is left, and end the thread."""
        with self._change:
            self._is_closed = True
            self._change.notify()

    def _run(self) -> None:
        with self._change:
            while not self._is_closed:
                if self._watched:
                    self._change.wait(_TICK_S)
                else:
                    self._change.wait()
                now = time.monotonic()
                for fed in [fed for fed in self._watched if fed.end < now]:
                    self._watched.discard(fed)
                    fed.cut()
            for fed in self._watched:
                fed.cut()


class WatchedAdapter(HTTPAdapter):
    """Requests' adapter, with connections whose headers must come in time."""

    def __init__(self, watchdog: Watchdog, timeout_s: float, n_connections: int) -> None:
        self._classes = _pool_classes(watchdog, timeout_s)
        super().__init__(pool_maxsize=n_connections)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Make the pool manager as the base class does."""
        super().init_poolmanager(*args, **kwargs)
        self._use(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> ProxyManager:
        """Make a proxy's pool manager as the base class does."""
        manager: ProxyManager = super().proxy_manager_for(proxy, **kwargs)
        self._use(manager)
        return manager

    def _use(self, manager: PoolManager) -> None:
        manager.pool_classes_by_scheme = self._classes


def _pool_classes(watchdog: Watchdog, timeout_s: float) -> dict[str, type[HTTPConnectionPool]]:
    class Watched(HTTPConnection):
        def getresponse(self) -> Any:
            return _get_in_time(self, super().getresponse, watchdog, timeout_s)

    class WatchedSecure(HTTPSConnection):
        def getresponse(self) -> Any:
            return _get_in_time(self, super().getresponse, watchdog, timeout_s)

    class Pool(HTTPConnectionPool):
        ConnectionCls = Watched

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = WatchedSecure

    return {"http": Pool, "https": SecurePool}


def _get_in_time(
    connection: HTTPConnection,
    get: Callable[[], BaseHTTPResponse],
    watchdog: Watchdog,
    timeout_s: float,
) -> BaseHTTPResponse:
    sock = connection.sock  # which http.client forgets when the answer is to be the last
    with watchdog.watch(sock, timeout_s) as fed:
        try:
            response = get()
        except (OSError, HTTPException, HTTPError) as error:
            if fed.is_cut:
                raise TimeoutError("the headers took too long") from error
            raise
    if sock is not None:
        watchdog.sockets[response] = sock
    return response
