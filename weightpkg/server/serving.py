"""The process that serves: models, the application, and where it listens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from weightpkg.listening.connection import Connection
from weightpkg.listening.process import (
    Listening,
    listen,
    make_server,
    port_of,
    run_until_told,
    urls_of,
)
from weightpkg.server.guard import Guard
from weightpkg.server.models import Models, Options

if TYPE_CHECKING:
    from weightpkg.store import Store

REMEDY = "give --key-file FILE or WEIGHTPKG_API_KEY, or say --public"


class ModelConnection(Connection):
    """One connection of a client; it has no file open."""

    max_connections: ClassVar[int] = 800


class ModelServer:
    """A server that listens, and serves until it is told to stop."""

    def __init__(
        self,
        store: Store,
        chosen: Mapping[str, Path] | None,
        options: Options,
        listening: Listening,
        log: Callable[[str], None],
    ) -> None:
        """Listen.

        Args:
            store: of the models.
            chosen: the only models to be served, by name; None for all that are installed.
            options: how.
            listening: where.
            log: told a line of JSON for each request, and of models that come and go.

        Raises:
            RunError: the address cannot be had, or would let in who should not be.
        """
        listening.check(REMEDY)
        self._models = Models(store, chosen, options, log)
        self._sockets = listen(listening)
        gate = listening.gate(port_of(self._sockets))
        guard = Guard(self._models.app(), gate, self._models.counters, log)
        self._server = make_server(guard, protocol=ModelConnection)

    @property
    def urls(self) -> list[str]:
        """Where it listens."""
        return urls_of(self._sockets)

    def run(self) -> None:
        """Serve until SIGTERM, SIGINT or `stop`; what is being answered then is answered."""
        self._models.start()
        try:
            run_until_told(self._server, self._sockets)
        finally:
            self._models.close()

    def stop(self) -> None:
        """Let it finish what it is answering, and end."""
        self._server.should_exit = True
