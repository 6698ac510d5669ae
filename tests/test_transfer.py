"""Workers and their one reader: every byte once, nobody too many, nobody left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock

import pytest

from weightpkg import transfer as transfer_module
from weightpkg.errors import FetchError
from weightpkg.sources import Pieces
from weightpkg.spans import Span
from weightpkg.transfer import transfer

CONTENT = bytes(i % 251 for i in range(100_000))
PART = 4096
PIECE = 1000


@dataclass
class Memory:
    """Content that is there already, and knows how many read it at once."""

    size: int | None = len(CONTENT)
    has_ranges: bool = True
    delay_s: float = 0.0
    fails_at: int = -1
    error: Callable[[], BaseException] = lambda: FetchError("`memory`: broken")
    name: str = "memory"
    validator: str | None = None
    n_busy: int = 0
    n_open: int = 0
    most_open: int = 0
    n_sent: int = 0
    streams: list[tuple[int, int | None]] = field(default_factory=list)
    _lock: Lock = field(default_factory=Lock)

    def stream(self, start: int, end: int | None = None) -> Pieces:
        with self._open(start, end):
            stop = len(CONTENT) if end is None else end
            for position in range(start, stop, PIECE):
                time.sleep(self.delay_s)
                if position <= self.fails_at < position + PIECE:
                    raise self.error()
                piece = CONTENT[position : min(position + PIECE, stop)]
                with self._lock:
                    self.n_sent += len(piece)
                yield piece

    @contextmanager
    def _open(self, start: int, end: int | None) -> Iterator[None]:
        with self._lock:
            self.streams.append((start, end))
            self.n_open += 1
            self.most_open = max(self.most_open, self.n_open)
        try:
            yield
        finally:
            with self._lock:
                self.n_open -= 1


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer_module, "PART_SIZE", PART)
    monkeypatch.setattr(transfer_module, "_TRIAL_S", 0.005)


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    yield
    deadline = time.monotonic() + 5
    while n_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert n_threads() == 0


def n_threads() -> int:
    return sum(thread.name == "weightpkg-transfer" for thread in threading.enumerate())


def read(content: Memory, *gaps: Span, jobs: int = 8, timeout_s: float | None = 10) -> bytearray:
    """Read gaps, each byte of which must come once, into a file that is zero elsewhere."""
    found, seen = bytearray(len(CONTENT)), bytearray(len(CONTENT))
    for offset, piece in transfer(content, gaps, jobs=jobs, timeout_s=timeout_s):
        end = offset + len(piece)
        assert not any(seen[offset:end]), "a byte came twice"
        seen[offset:end] = b"\1" * len(piece)
        found[offset:end] = piece
    assert sum(seen) == sum(end - start for start, end in gaps)
    return found


@pytest.mark.parametrize("jobs", [1, 2, 3, 8, 64])
@pytest.mark.parametrize(
    "gaps",
    [
        [(0, len(CONTENT))],
        [(0, 1)],
        [(PART - 1, PART + 1)],
        [(5, 6), (7, 9000), (9001, 9002), (50_000, len(CONTENT))],
        [(i, i + 1) for i in range(0, 1000, 2)],
        [],
    ],
    ids=["whole", "one byte", "border", "some", "many", "none"],
)
def test_each_byte_comes_once(jobs: int, gaps: list[Span]) -> None:
    content = Memory(delay_s=0.0002)
    found = read(content, *gaps, jobs=jobs)
    assert all(found[start:end] == CONTENT[start:end] for start, end in gaps)
    assert content.most_open <= jobs
    assert all(end is not None and end - start <= PART for start, end in content.streams)


def test_there_are_more_workers_while_that_makes_it_faster() -> None:
    content = Memory(delay_s=0.005)
    read(content, (0, len(CONTENT)), jobs=8)
    assert 2 <= content.most_open <= 8


def test_content_without_ranges_is_read_once_from_its_beginning() -> None:
    content = Memory(has_ranges=False, size=None)
    pieces = dict(transfer(content, [(5000, 6000)], jobs=8, timeout_s=None))
    assert b"".join(pieces[offset] for offset in sorted(pieces)) == CONTENT
    assert content.streams == [(0, None)]


def test_a_server_that_asks_for_patience_gets_fewer_connections() -> None:
    content = Memory(delay_s=0.002)
    found = bytearray()
    most = 0
    for _, piece in transfer(content, [(0, len(CONTENT))], jobs=8, timeout_s=10):
        content.n_busy += 1
        found += piece
        most = max(most, content.n_open)
    assert sorted(found) == sorted(CONTENT)
    assert most == 1


def test_all_comes_though_workers_end_because_they_are_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # all of them see at the same time that one is enough
    wanted = iter([8] * 12 + [1] * 1000)
    monkeypatch.setattr(transfer_module._Pace, "wanted", lambda *_: next(wanted))
    for _ in range(20):
        wanted = iter([8] * 12 + [1] * 1000)
        assert read(Memory(), (0, len(CONTENT))) == CONTENT


def test_a_slow_reader_holds_the_workers_back() -> None:
    content = Memory()
    jobs = 4
    pieces = transfer(content, [(0, len(CONTENT))], jobs=jobs, timeout_s=None)
    next(pieces)
    n_sent = -1
    while n_sent != content.n_sent:
        n_sent = content.n_sent
        time.sleep(0.1)
    # the queue, one piece in each hand, and the one that was taken
    assert n_sent <= (2 * jobs + jobs + 1) * PIECE
    assert sum(len(piece) for _, piece in pieces) == len(CONTENT) - PIECE


@pytest.mark.parametrize("fails_at", [0, 50_000, len(CONTENT) - 1])
@pytest.mark.parametrize("jobs", [1, 8])
def test_a_part_that_fails_ends_all(jobs: int, fails_at: int) -> None:
    with pytest.raises(FetchError, match="broken"):
        read(Memory(delay_s=0.0002, fails_at=fails_at), (0, len(CONTENT)), jobs=jobs)


@pytest.mark.parametrize("kind", [ZeroDivisionError, ValueError, OSError, MemoryError])
def test_a_mistake_in_a_worker_is_not_lost(kind: type[Exception]) -> None:
    with pytest.raises(kind):
        read(Memory(fails_at=50_000, error=kind), (0, len(CONTENT)))


@pytest.mark.parametrize("delay_s", [0.05, 0.5], ids=["slow", "silent"])
def test_takes_no_longer_than_it_may(delay_s: float) -> None:
    start = time.monotonic()
    with pytest.raises(FetchError, match="took longer than 0 seconds"):
        read(Memory(delay_s=delay_s), (0, len(CONTENT)), jobs=2, timeout_s=0.3)
    assert time.monotonic() - start < 1


def test_workers_end_when_nobody_reads_any_more() -> None:
    content = Memory(delay_s=0.001)
    pieces = transfer(content, [(0, len(CONTENT))], jobs=4, timeout_s=None)
    for _ in range(20):
        next(pieces)
    pieces.close()
    deadline = time.monotonic() + 5
    while content.n_open and time.monotonic() < deadline:
        time.sleep(0.01)
    assert content.n_open == 0
    assert content.n_sent < len(CONTENT)
