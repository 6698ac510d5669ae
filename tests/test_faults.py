"""Everything that can go wrong on the network, against all that fetches: right bytes, or an error."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fault_server import FAULTS, FaultServer, fault_server
from weightpkg import transfer
from weightpkg.digest import Digest
from weightpkg.errors import FetchError, IntegrityError
from weightpkg.fetch import Fetcher
from weightpkg.package import File, RelativePath, parse_source
from weightpkg.partial import Partial, Provenance
from weightpkg.progress import Silence
from weightpkg.sources import remote
from weightpkg.sources.openers import Openers
from weightpkg.sources.pip_config import PipConfig
from weightpkg.sources.transport import Transport, TransportSettings
from weightpkg.store import Store

SIZE = 1024 * 1024
CONTENT = random.Random(0).randbytes(SIZE)  # noqa: S311 no secret
SHA256 = Digest("sha256", hashlib.sha256(CONTENT).hexdigest())
RESUMED = SIZE * 5 // 16
SMALL = 64 * 1024
WAYS = ("fresh", "resumed", "parallel")

GIVES_UP = {
    "range-ignored": "half has come, all would come again, and the limit is a fifth",
    "file-replaced": "the same: its first answer has no ranges either",
}
SENDS_UNASKED = {
    "length-too-small": "the server goes on after the length that it said",
    "endless": "the server goes on after the range that was asked for",
    "endless-after-content": "the same",
    "bad-chunk-size-once": "it all comes, and half of it cannot be read",
}
"""Of these a system takes more than anybody reads, before the connection is closed."""


@pytest.fixture(scope="module")
def running() -> Iterator[FaultServer]:
    with fault_server(CONTENT, drip_s=0.02) as server:
        yield server


@pytest.fixture
def server(running: FaultServer) -> FaultServer:
    running.reset()
    return running


@pytest.fixture
def delays(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the transport would have waited."""
    found: list[float] = []
    monkeypatch.setattr(Transport, "sleep", lambda _, seconds: found.append(seconds))
    return found


def patience_s(fault: str) -> float:
    """Return how long to wait for an answer, so that only those that never come are waited for."""
    is_slow = any(word in fault for word in ("stall", "drip", "continue-endless", "head-endless"))
    return 0.25 if is_slow else 10


def file(*urls: str) -> File:
    sources = tuple((parse_source(url),) for url in urls)
    return File(path=RelativePath("model.gguf"), sha256=SHA256, size=SIZE, sources=sources)


@contextmanager
def fetching(store: Store, *, jobs: int = 1, timeout_s: float = 10) -> Iterator[Fetcher]:
    settings = TransportSettings(timeout_s=timeout_s, retries=2)
    config = PipConfig(index_urls=(), transport=settings)
    with Openers(config, {}, index_dir=store.root, temp_dir=store.root) as openers:
        yield Fetcher(openers, store, Silence(), jobs=jobs)


def fetch(store: Store, *urls: str) -> None:
    with fetching(store) as fetcher:
        fetcher.fetch(file(*urls))


def leave_a_part(store: Store, url: str, validator: str | None) -> None:
    """Leave what an earlier process has left that was killed."""
    with Partial(store.partial_path(SHA256), size=SIZE) as partial:
        partial.resume(lambda _: None)
        partial.begin(Provenance(url, validator))
        partial.write(0, CONTENT[:RESUMED])


def is_had(store: Store) -> bool:
    """Whether the blob is there, which must then be right; and nothing must be half done."""
    assert list(store.temporary.iterdir()) == []
    path = store.blob(SHA256)
    if path is None:
        assert not list((store.root / "blobs").rglob("*.chunks"))
        return False
    assert path.read_bytes() == CONTENT
    assert list((store.root / "partial").iterdir()) == []
    return True


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("fault", FAULTS)
def test_right_bytes_or_one_error(
    server: FaultServer,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    delays: list[float],
    fault: str,
    way: str,
) -> None:
    url = server.url(fault)
    if way == "resumed":
        leave_a_part(store, url, server.etag)
    if way == "parallel":
        monkeypatch.setattr(transfer, "PART_SIZE", SMALL)
        monkeypatch.setattr(transfer, "_TRIAL_S", 0.0)
        monkeypatch.setattr(remote, "FIRST_RANGE", SMALL)
    start = time.monotonic()
    jobs = 4 if way == "parallel" else 1
    message = ""
    with fetching(store, jobs=jobs, timeout_s=patience_s(fault)) as fetcher:
        try:
            fetcher.fetch(file(url))
        except (FetchError, IntegrityError) as error:
            message = error.message
        elapsed = time.monotonic() - start
    assert "\n" not in message
    ends = {"either", "succeeds" if is_had(store) else "fails"}
    assert FAULTS[fault].outcome in ends or fault in GIVES_UP
    assert fetcher.received <= 1.2 * SIZE
    assert server.sent <= 1.2 * SIZE or fault in SENDS_UNASKED
    assert elapsed < 8
    fetch(store, server.url("none"))
    assert is_had(store)
