"""The process that serves a mirror."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from weightpkg.listening.process import (
    Listening,
    listen,
    make_server,
    port_of,
    run_until_told,
    urls_of,
)
from weightpkg.mirror_server.app import App, Mirror
from weightpkg.mirror_server.checked import check_directory
from weightpkg.mirror_server.connection import FileConnection

REMEDY = "give --key-file FILE or WEIGHTPKG_MIRROR_KEY, or say --public"


class MirrorServer:
    """A server that listens, and serves until it is told to stop."""

    def __init__(self, root: Path, listening: Listening, log: Callable[[str], None]) -> None:
        """Look through the mirror, and listen.

        Raises:
            StoreError: the directory is none.
            RunError: the address cannot be had, or would let in who should not be.
        """
        listening.check(REMEDY)
        check_directory(root)
        self.mirror = Mirror(root, log)
        self._sockets = listen(listening)
        self.port = port_of(self._sockets)
        self.app = App(self.mirror, listening.gate(self.port), url=listening.url, log=log)
        self._server = make_server(self.app, protocol=FileConnection)
        self.app.n_connections = lambda: len(self._server.server_state.connections)

    @property
    def urls(self) -> list[str]:
        """Where it listens."""
        return urls_of(self._sockets)

    def run(self) -> None:
        """Serve until SIGTERM, SIGINT or `stop`; what is being sent then may take half a minute."""
        try:
            run_until_told(self._server, self._sockets)
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
