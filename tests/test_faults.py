"""Everything that can go wrong on the network, against all that fetches: right bytes, or an error."""

from __future__ import annotations

import hashlib
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from durability import report
from fault_server import FAULTS, FaultServer, fault_server
from weightpkg import transfer
from weightpkg.digest import Digest, Fingerprint, Hasher
from weightpkg.errors import DigestMismatchError, FetchError, IntegrityError
from weightpkg.fetch import Fetcher, _name_of
from weightpkg.package import File, RelativePath, parse_source
from weightpkg.partial import Partial, Provenance
from weightpkg.progress import Silence
from weightpkg.sources import remote
from weightpkg.sources.openers import Openers
from weightpkg.sources.pip_config import PipConfig
from weightpkg.sources.transport import Transport, TransportSettings
from weightpkg.store import Store

SIZE = 1024 * 1024
CONTENT = random.Random(0).randbytes(SIZE)
SHA256 = Digest("sha256", hashlib.sha256(CONTENT).hexdigest())
RESUMED = SIZE * 5 // 16
SMALL = 64 * 1024
SLOW_S = 0.25
WAYS = ("fresh", "resumed", "parallel")

GIVES_UP = {
    "range-ignored": "half has come, all would come again, and the limit is a fifth",
    "file-replaced": "the same: its first answer has no ranges either",
}
SENDS_UNASKED = {
    "length-too-small": "the server goes on after the length that it said",
    "endless": "the server goes on after the range that was asked for",
    "endless-after-content": "the same",
    "bad-chunk-size": "half of it comes and cannot be read, more than once",
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
    return SLOW_S if is_slow else 10


def make_parts_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PART_SIZE", SMALL)
    monkeypatch.setattr(transfer, "_TRIAL_S", 0.0)
    monkeypatch.setattr(remote, "FIRST_RANGE", SMALL)


def file(*urls: str) -> File:
    sources = tuple((parse_source(url),) for url in urls)
    return File(path=RelativePath("model.gguf"), sha256=SHA256, size=SIZE, sources=sources)


@contextmanager
def fetching(store: Store, *, jobs: int = 1, timeout_s: float = 10) -> Iterator[Fetcher]:
    # those that never come are waited for once more, and no third time
    settings = TransportSettings(timeout_s=timeout_s, retries=2 if timeout_s > SLOW_S else 1)
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
        make_parts_small(monkeypatch)
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
    report(f"faults of servers: {way}", 1, 0)


@pytest.fixture
def good() -> Iterator[FaultServer]:
    with fault_server(CONTENT) as server:
        yield server


MISSING = {
    "truncated": SIZE // 2,
    "truncated-without-length": SIZE // 2,
    "truncated-chunk": SIZE // 2,
    "bad-chunk-size": SIZE // 2,
    "reset": SIZE // 2,
    "stall": SIZE // 2,
    "range-ignored": SIZE // 2,
    "range-ignored-and-truncated": SIZE // 2,
    "http-1.0-truncated": SIZE // 2,
    "length-too-small": SIZE // 2,
    "404": SIZE,
    "drip-body": SIZE,
    "login-page": SIZE,
    "corrupt-byte": SIZE,
    "other-file": SIZE,
    "endless": SIZE,
    # only its first half is wrong, and nobody can tell
    "file-replaced": SIZE,
}


@pytest.mark.parametrize("fault", MISSING)
def test_goes_on_in_the_middle_with_the_next_source(
    server: FaultServer, good: FaultServer, store: Store, delays: list[float], fault: str
) -> None:
    with fetching(store, timeout_s=patience_s(fault)) as fetcher:
        fetcher.fetch(file(server.url(fault), good.url("none")))
    assert is_had(store)
    assert good.sent <= MISSING[fault]


@pytest.mark.parametrize("fault", ["login-page", "shorter-file", "longer-file", "truncated"])
def test_a_bad_source_does_not_say_how_large_a_file_is(
    server: FaultServer, good: FaultServer, store: Store, delays: list[float], fault: str
) -> None:
    sources = file(server.url(fault), good.url("none")).sources
    with fetching(store) as fetcher:
        fetcher.fetch(File(path=RelativePath("model.gguf"), sha256=SHA256, sources=sources))
    assert is_had(store)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weightpkg.digest.CHUNK_SIZE", SMALL)
    monkeypatch.setattr("weightpkg.partial.CHUNK_SIZE", SMALL)


@pytest.fixture
def known(small_chunks: None, store: Store) -> Fingerprint:
    """The chunks of a blob that was there once."""
    hasher = Hasher()
    hasher.update(CONTENT)
    store.write_chunks(hasher.finish())
    return hasher.finish()


def leave_wrong_chunks(store: Store, url: str, *chunks: int) -> None:
    with Partial(store.partial_path(SHA256), size=SIZE) as partial:
        partial.resume(lambda _: None)
        partial.begin(Provenance(url, None))
        for start in range(0, SIZE, SMALL):
            right = CONTENT[start : start + SMALL]
            partial.write(start, right[::-1] if start // SMALL in chunks else right)


@pytest.mark.parametrize("jobs", [1, 4])
@pytest.mark.parametrize("chunks", [(0,), (7,), (15,), (0, 1, 9), tuple(range(16))], ids=str)
def test_fetches_only_the_wrong_chunks_where_chunks_are_known(
    known: Fingerprint,
    good: FaultServer,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    chunks: tuple[int, ...],
    jobs: int,
) -> None:
    monkeypatch.setattr(remote, "FIRST_RANGE", SMALL)
    leave_wrong_chunks(store, "https://example.org/bad", *chunks)
    with fetching(store, jobs=jobs) as fetcher:
        fetcher.fetch(file(good.url("none")))
    assert is_had(store)
    assert good.sent == len(chunks) * SMALL


def test_keeps_what_a_corrupting_source_brought_rightly(
    known: Fingerprint, server: FaultServer, good: FaultServer, store: Store
) -> None:
    with fetching(store) as fetcher:
        fetcher.fetch(file(server.url("corrupt-byte"), good.url("none")))
    assert is_had(store)
    assert good.sent <= SIZE * 2 / 3 + SMALL


def test_refuses_a_corrupting_source_by_its_first_wrong_chunk(
    known: Fingerprint, server: FaultServer, store: Store
) -> None:
    with fetching(store) as fetcher, pytest.raises(DigestMismatchError, match="each chunk"):
        fetcher.fetch(file(server.url("corrupt-byte")))
    assert store.blob(SHA256) is None
    assert server.sent <= SIZE


def test_finishes_what_is_complete_without_asking_anyone(store: Store) -> None:
    with Partial(store.partial_path(SHA256), size=SIZE) as partial:
        partial.resume(lambda _: None)
        partial.write(0, CONTENT)
    fetch(store, "http://127.0.0.1:1/nobody")
    assert is_had(store)


PROCESS = """
import sys
from pathlib import Path
from weightpkg.digest import Digest
from weightpkg.fetch import Fetcher
from weightpkg.package import File, RelativePath, parse_source
from weightpkg.progress import Silence
from weightpkg.sources.openers import Openers
from weightpkg.sources.pip_config import PipConfig
from weightpkg.sources.transport import TransportSettings
from weightpkg.store import Store

root, url, size, sha256 = sys.argv[1:]
store = Store(Path(root))
file = File(path=RelativePath("model.gguf"), sha256=Digest("sha256", sha256), size=int(size),
            sources=((parse_source(url),),))
config = PipConfig(index_urls=(), transport=TransportSettings())
with Openers(config, {}, index_dir=store.root, temp_dir=store.root) as openers:
    Fetcher(openers, store, Silence()).fetch(file)
"""


def start_process(store: Store, url: str, content: bytes) -> subprocess.Popen[bytes]:
    sha256 = hashlib.sha256(content).hexdigest()
    words = [str(store.root), url, str(len(content)), sha256]
    return subprocess.Popen([sys.executable, "-c", PROCESS, *words])


def test_eight_processes_fetch_once(server: FaultServer, store: Store) -> None:
    processes = [start_process(store, server.url("none"), CONTENT) for _ in range(8)]
    assert [process.wait(100) for process in processes] == [0] * 8
    assert is_had(store)
    assert (server.sent, len(server.requests)) == (SIZE, 1)


def test_a_killed_process_is_gone_on_with(store: Store) -> None:
    content = random.Random(1).randbytes(12 * SIZE)
    half = len(content) // 2
    with fault_server(content) as server:
        process = start_process(store, server.url("stall"), content)
        path = store.partial_path(Digest("sha256", hashlib.sha256(content).hexdigest()))
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and not (
            path.exists() and path.stat().st_size == half and server.sent == half
        ):
            time.sleep(0.01)
        process.kill()
        process.wait()
        assert not list((store.root / "blobs").rglob("*"))
        server.reset()
        assert start_process(store, server.url("none"), content).wait(100) == 0
        (request,) = server.requests
        asked = re.match(r"bytes=(\d+)-", request.headers["Range"])
        # at most what comes between two lines of the journal comes again
        assert asked is not None
        assert half - SIZE <= int(asked[1]) <= half
        assert server.sent == len(content) - int(asked[1])
    assert store.blob(Digest("sha256", path.name)) is not None


def file_without_digest(url: str) -> File:
    return File(path=RelativePath("model.gguf"), sha256=None, sources=((parse_source(url),),))


def leave_other_bytes(store: Store, url: str, validator: str | None) -> None:
    """Leave the beginning of what the same URL had earlier."""
    path = store.partial_path(_name_of(file_without_digest(url)))
    with Partial(path, size=None) as partial:
        partial.resume(lambda _: None)
        partial.begin(Provenance(url, validator))
        partial.write(0, bytes(RESUMED))


@pytest.mark.parametrize(
    ("fault", "validator"),
    [("none", '"older"'), ("none", None), ("etag-none", None), ("etag-weak", None)],
)
def test_without_a_digest_never_joins_versions(
    server: FaultServer, store: Store, fault: str, validator: str | None
) -> None:
    url = server.url(fault)
    leave_other_bytes(store, url, validator)
    with fetching(store) as fetcher:
        fetcher.fetch(file_without_digest(url))
    assert is_had(store)


def test_without_a_digest_goes_on_with_the_same_version(server: FaultServer, store: Store) -> None:
    url = server.url("none")
    path = store.partial_path(_name_of(file_without_digest(url)))
    with Partial(path, size=None) as partial:
        partial.resume(lambda _: None)
        partial.begin(Provenance(url, server.etag))
        partial.write(0, CONTENT[:RESUMED])
    with fetching(store) as fetcher:
        fetcher.fetch(file_without_digest(url))
        assert fetcher.received == SIZE - RESUMED
    assert is_had(store)


@pytest.mark.parametrize("fault", ["etag-changes", "file-replaced"])
def test_without_a_digest_refuses_what_changes_meanwhile(
    server: FaultServer, store: Store, delays: list[float], fault: str
) -> None:
    with fetching(store) as fetcher, pytest.raises(FetchError):
        fetcher.fetch(file_without_digest(server.url(fault)))
    assert not is_had(store)
    assert list((store.root / "partial").iterdir()) == [] or fault == "file-replaced"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("fault", ["none", "truncated-once", "pieces", "etag-none", "http-1.0"])
def test_joins_parts_whatever_goes_wrong_in_one(
    server: FaultServer,
    good: FaultServer,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    delays: list[float],
    fault: str,
    way: str,
) -> None:
    if way == "parallel":
        make_parts_small(monkeypatch)
    sha256 = Digest("sha256", hashlib.sha256(CONTENT * 3).hexdigest())
    urls = [good.url("none"), server.url(fault), good.url("redirect")]
    wanted = File(
        path=RelativePath("model.gguf"),
        sha256=sha256,
        size=3 * SIZE,
        sources=(tuple(map(parse_source, urls)),),
    )
    if way == "resumed":
        with Partial(store.partial_path(sha256), size=3 * SIZE) as partial:
            partial.resume(lambda _: None)
            partial.write(SIZE // 2, (CONTENT * 2)[SIZE // 2 :][:SIZE])
    with fetching(store, jobs=4) as fetcher:
        fetcher.fetch(wanted)
    assert fetcher.received <= 3.6 * SIZE
    blob = store.blob(sha256)
    assert blob is not None
    assert blob.read_bytes() == CONTENT * 3
