"""A thread for each model: it continues all of its answers together, and takes new ones in turn."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from weightpkg.errors import RunError

if TYPE_CHECKING:
    from weightpkg.run.batch import Batch, Request


class FullError(Exception):
    """So many wait already that this one would wait for too long."""


class Engine:
    """Runs a batch in a thread of its own, until it is closed."""

    def __init__(self, batch: Batch, *, n_waiting: int) -> None:
        """Start the thread.

        Args:
            batch: of this engine alone.
            n_waiting: how many requests may wait for a free row.

        Raises:
            RunError: there is no memory for a thread.
        """
        self._batch = batch
        self._n_waiting = n_waiting
        self._queue: deque[Request] = deque()
        self._n_coming = 0
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            raise RunError("not enough memory for the thread of a model") from error

    @contextmanager
    def room(self, count: int) -> Iterator[None]:
        """Keep room for requests that are being prepared, which takes time, and then submitted.

        Raises:
            FullError: too many are waiting, or will.
        """
        with self._changed:
            room = self._n_waiting + self._batch.n_free
            if len(self._queue) + self._n_coming + count > room:
                raise FullError
            self._n_coming += count
        try:
            yield
        finally:
            with self._changed:
                self._n_coming -= count

    def submit(self, *requests: Request) -> None:
        """Take requests, for which room was kept.

        Raises:
            RunError: the engine was closed.
        """
        with self._changed:
            if self._is_closed:
                raise RunError("the model is being unloaded", hint="ask again")
            self._queue.extend(requests)
            self._changed.notify()

    @property
    def n_waiting(self) -> int:
        """How many requests wait for a row."""
        return len(self._queue)

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing is being answered."""
        return not self._queue and self._batch.is_idle

    def close(self) -> None:
        """End the thread; what is not finished is told so."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs; if it ended by itself, that was our fault."""
        return self._thread.is_alive()

    def _work(self) -> None:
        reason = "the model failed in a way that it should not"
        try:
            while self._await_work():
                self._fill()
                self._batch.step()
            reason = "the server is being stopped"
        finally:  # whatever happened: nobody waits for a thread that is no more
            with self._changed:
                self._is_closed = True
            error = RunError(reason)
            self._batch.fail_all(error)
            for request in self._queue:
                request.fail(error)

    def _await_work(self) -> bool:
        with self._changed:
            while not self._is_closed and self.is_idle:
                self._changed.wait()
            return not self._is_closed

    def _fill(self) -> None:
        """Give free rows to those who have waited longest."""
        while self._queue and self._batch.n_free:
            with self._changed:
                request = self._queue.popleft()
            if request.is_cancelled:
                continue
            try:
                self._batch.add(request)
            except RunError as error:
                request.fail(error)
