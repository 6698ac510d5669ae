"""The bytes of opened content, over as many connections as are worth it, to one reader.

Workers read parts of what is missing and put pieces into a short queue; the one who iterates takes
them out, in whatever order they come, and is the only one who writes. When it is slower than the
network, the queue is full and the workers wait; when the server asks for patience, there are fewer
workers; while another worker makes it faster, there are more.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from queue import Empty, Full, Queue
from threading import Event, Lock, Thread

from weightpkg.errors import FetchError
from weightpkg.sources import Content
from weightpkg.spans import Span

PART_SIZE = 16 * 1024 * 1024
"""Bytes that a worker asks for at a time: the larger, the fewer round trips."""
_TRIAL_S = 1.0
_GAIN = 1.1
_TICK_S = 0.2

Piece = tuple[int, bytes]


@dataclass(frozen=True, slots=True)
class _Done:
    """A worker has ended, because of an error or because it was not needed."""

    error: BaseException | None


class _Workers:
    """Threads that share a list of parts and a queue."""

    def __init__(self, content: Content, parts: Iterable[Span], n_most: int) -> None:
        self._content = content
        self._parts = deque(parts)
        self._lock = Lock()
        self._stop = Event()
        self.queue: Queue[Piece | _Done] = Queue(maxsize=2 * n_most)
        self.n_running = 0
        self.n_wanted = 0

    def change_to(self, n_wanted: int) -> None:
        """Have so many workers, while there are parts for them; who is too many ends by itself."""
        self.n_wanted = n_wanted
        while self.n_running < n_wanted and self._parts:
            self.n_running += 1
            Thread(target=self._run, daemon=True, name="weightpkg-transfer").start()

    def stop(self) -> None:
        """Let all of them end at their next piece; nobody waits for them."""
        self._stop.set()

    def _run(self) -> None:
        try:
            while part := self._take():
                for piece in self._read(part):
                    self._put(piece)
                    if self._stop.is_set():
                        return
            self._put(_Done(None))
        except BaseException as error:  # noqa: BLE001  the reader raises it
            self._put(_Done(error))

    def _take(self) -> Span | None:
        with self._lock:
            if self.n_running > self.n_wanted or not self._parts:
                return None
            return self._parts.popleft()

    def _read(self, part: Span) -> Iterator[Piece]:
        position, end = part
        with closing(self._content.stream(position, end if end >= 0 else None)) as pieces:
            for piece in pieces:
                yield position, piece
                position += len(piece)

    def _put(self, item: Piece | _Done) -> None:
        while not self._stop.is_set():
            try:
                self.queue.put(item, timeout=_TICK_S)
            except Full:
                continue
            return


class _Pace:
    """Decides how many workers there should be, from what the last ones brought."""

    def __init__(self, content: Content, n_most: int) -> None:
        self._content = content
        self._n_most = n_most
        self._n_busy = content.n_busy
        self._start = time.monotonic()
        self._received = 0
        self._best = 0.0
        self._is_settled = False

    def count(self, size: int) -> None:
        """Note bytes that came."""
        self._received += size

    def wanted(self, n_workers: int) -> int:
        """Return how many workers there should be now, of which there are so many."""
        if self._content.n_busy > self._n_busy:
            self._n_busy = self._content.n_busy
            self._is_settled = True
            return max(1, n_workers // 2)
        seconds = time.monotonic() - self._start
        if self._is_settled or seconds < _TRIAL_S:
            return n_workers
        speed = self._received / seconds
        self._start, self._received = time.monotonic(), 0
        self._is_settled = speed < self._best * _GAIN or n_workers >= self._n_most
        self._best = max(self._best, speed)
        return n_workers if self._is_settled else min(self._n_most, 2 * n_workers)


def transfer(
    content: Content, gaps: Iterable[Span], *, jobs: int, timeout_s: float | None
) -> Generator[Piece, None, None]:
    """Yield pieces of what is missing, each with its place, as they come.

    Args:
        content: an opened source; without ranges, all of it is read from its beginning.
        gaps: the ranges that are missing.
        jobs: how many connections there may be.
        timeout_s: how long it may take in all; None for ever.

    Raises:
        FetchError: the source failed, or time is up.
    """
    n_most = jobs if content.has_ranges else 1
    parts = list(_parts(gaps)) if content.has_ranges else [(0, -1)]
    if not parts:
        return
    workers = _Workers(content, parts, n_most)
    pace = _Pace(content, n_most)
    end = None if timeout_s is None else time.monotonic() + timeout_s
    workers.change_to(1)
    try:
        while workers.n_running:
            if end is not None and time.monotonic() > end:
                raise FetchError(f"`{content.name}`: took longer than {timeout_s:,.0f} seconds")
            try:
                item = workers.queue.get(timeout=_TICK_S)
            except Empty:
                continue
            if isinstance(item, _Done):
                workers.n_running -= 1
                if item.error:
                    raise item.error
                # several that were too many may have ended at once
                workers.change_to(max(1, workers.n_wanted))
                continue
            pace.count(len(item[1]))
            yield item
            workers.change_to(pace.wanted(workers.n_running))
    finally:
        workers.stop()


def _parts(gaps: Iterable[Span]) -> Iterator[Span]:
    for start, end in gaps:
        for position in range(start, end, PART_SIZE):
            yield position, min(position + PART_SIZE, end)
