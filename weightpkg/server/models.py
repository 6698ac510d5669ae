"""What a process serves: the models of a store, those that are loaded, and the application over them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from weightpkg.errors import StoreError
from weightpkg.server.app import create_app
from weightpkg.server.counters import Counters
from weightpkg.server.library import Entry, Library
from weightpkg.server.pool import Pool, Served
from weightpkg.server.served import EmbeddingModel, TextModel
from weightpkg.server.service import Service

if TYPE_CHECKING:
    from fastapi import FastAPI

    from weightpkg.memory import KvCache
    from weightpkg.store import Store

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


class Models:
    """Models that come when they are asked for and leave when nobody asks, from `start` to `close`."""

    def __init__(
        self,
        store: Store,
        chosen: Mapping[str, Path] | None,
        options: Options,
        log: Callable[[str], None],
    ) -> None:
        """Nothing is loaded yet.

        Args:
            store: of the models.
            chosen: the only models to be served, by name; None for all that are installed.
            options: how.
            log: told of models that come and go.
        """
        self._store, self._options, self._log = store, options, log
        self.library = Library(store, chosen)
        self.counters = Counters()
        self.pool = Pool(self._load, self._size_of, budget=options.memory)
        self._is_over = threading.Event()
        self._watcher = threading.Thread(target=self._unload, daemon=True)

    def app(self) -> FastAPI:
        """The application over them."""
        return create_app(Service(self.library, self.pool, self.counters))

    def start(self) -> None:
        """Begin to watch for models that nobody asks."""
        self._watcher.start()

    def close(self) -> None:
        """Unload all of them."""
        self._is_over.set()
        self._watcher.join()
        self.pool.close()

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
