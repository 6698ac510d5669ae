"""The process that serves: models, the application, and where it listens."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from weightpkg.errors import StoreError
from weightpkg.listening.process import (
    Listening,
    listen,
    make_server,
    port_of,
    run_until_told,
    urls_of,
)
from weightpkg.server.app import create_app
from weightpkg.server.counters import Counters
from weightpkg.server.guard import Guard
from weightpkg.server.library import Entry, Library
from weightpkg.server.pool import Pool, Served
from weightpkg.server.served import EmbeddingModel, TextModel
from weightpkg.server.service import Service

if TYPE_CHECKING:
    from weightpkg.memory import KvCache
    from weightpkg.store import Store

REMEDY = "give --key-file FILE or WEIGHTPKG_API_KEY, or say --public"
_LOOK_S = 5.0
_CONTEXT = 2048  # tokens that a row is counted with, before its prompt is known


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How models are served.

    rows: answers of one model at once; waiting: requests that wait for one.
    threads: to compute with; 0 is one for each physical core.
    kv_cache: what keys and values are kept as.
    memory: bytes for all models that are loaded.
    keep_s: seconds after which a model that nobody asks leaves; None for never.
    """

    rows: int = 8
    waiting: int = 32
    threads: int = 0
    kv_cache: KvCache = "float"
    memory: int
    keep_s: float | None = 600.0


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
        self._store, self._options, self._log = store, options, log
        self.library = Library(store, chosen)
        counters = Counters()
        self.pool = Pool(self._load, self._size_of, budget=options.memory)
        self._sockets = listen(listening)
        app = create_app(Service(self.library, self.pool, counters))
        gate = listening.gate(port_of(self._sockets))
        self._server = make_server(Guard(app, gate, counters, log))
        self._is_over = threading.Event()

    @property
    def urls(self) -> list[str]:
        """Where it listens."""
        return urls_of(self._sockets)

    def run(self) -> None:
        """Serve until SIGTERM, SIGINT or `stop`; what is being answered then is answered."""
        watcher = threading.Thread(target=self._unload, daemon=True)
        watcher.start()
        try:
            run_until_told(self._server, self._sockets)
        finally:
            self._is_over.set()
            watcher.join()
            self.pool.close()

    def stop(self) -> None:
        """Let it finish what it is answering, and end."""
        self._server.should_exit = True

    def _unload(self) -> None:
        while not self._is_over.wait(_LOOK_S):
            if self._options.keep_s is not None:
                for name in self.pool.unload_unused(self._options.keep_s):
                    self._log(f"unloaded {name}")

    def _entry(self, name: str) -> Entry:
        return self.library.entries()[name]

    def _size_of(self, name: str) -> int:
        return self._entry(name).size(self._options.rows, _CONTEXT, self._options.kv_cache)

    def _load(self, name: str) -> Served:
        entry, options, start = self._entry(name), self._options, time.perf_counter()
        with ExitStack() as stack:
            with suppress(StoreError):  # whoever cannot write to a store cannot collect it either
                stack.enter_context(self._store.lease(entry.directory.name))
            model: TextModel | EmbeddingModel
            if entry.is_text:
                model = TextModel(
                    entry.directory,
                    threads=options.threads,
                    kv_cache=options.kv_cache,
                    n_rows=options.rows,
                    n_waiting=options.waiting,
                    cache=self._store.root / "cache" / "graphs",
                )
            else:
                model = EmbeddingModel(entry.directory, threads=options.threads)
            model.held = stack.pop_all()
        self._log(f"loaded {name} in {time.perf_counter() - start:.1f} s")
        return model
