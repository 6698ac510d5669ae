from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections import namedtuple
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from blake3 import blake3

from http_server import endless, redirect, serve
from weightpkg import files
from weightpkg.digest import Digest, Fingerprint
from weightpkg.errors import (
    DigestMismatchError,
    FetchError,
    IntegrityError,
    SizeMismatchError,
    StoreError,
)
from weightpkg.fetch import Fetcher, OpenSource
from weightpkg.package import File, RelativePath, parse_source
from weightpkg.progress import Advance, Progress, Silence
from weightpkg.sources.openers import Openers
from weightpkg.sources.pip_config import PipConfig
from weightpkg.sources.transport import TransportSettings
from weightpkg.store import Store

if TYPE_CHECKING:
    from http_server import Handler, Site

CONTENT = b"weights " * 100_000
SHA256 = Digest("sha256", hashlib.sha256(CONTENT).hexdigest())


@dataclass
class Told:
    """Remembers what progress was told."""

    tasks: list[tuple[str, int | None]] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def task(self, description: str, total: int | None) -> AbstractContextManager[Advance]:
        self.tasks.append((description, total))
        return nullcontext(self.steps.append)

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.fixture
def site() -> Iterator[Site]:
    with serve() as site:
        site.files |= {"/m": CONTENT, "/wrong": b"w" * len(CONTENT), "/part0": CONTENT[:1000]}
        site.files |= {"/part1": CONTENT[1000:], "/short": CONTENT[:-1], "/long": CONTENT + b"x"}
        yield site


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def open_source(site: Site, tmp_path: Path) -> Iterator[OpenSource]:
    config = PipConfig(index_urls=(), transport=TransportSettings(timeout_s=10, retries=0))
    with Openers(
        config, {"HF_ENDPOINT": site.url}, index_dir=tmp_path / "index", temp_dir=tmp_path
    ) as openers:
        yield openers


def fetch(file: File, open_source: OpenSource, store: Store, progress: Progress) -> Fingerprint:
    return Fetcher(open_source, store, progress).fetch(file)


def file(
    *sources: str, size: int | None = len(CONTENT), sha256: Digest = SHA256, chunk: str = ""
) -> File:
    """A file of an index; parts of a source that are to be joined are written with a `+`."""
    alternatives = tuple(tuple(map(parse_source, source.split("+"))) for source in sources)
    digest = Digest("blake3", chunk) if chunk else None
    return File(
        path=RelativePath("m.gguf"), sha256=sha256, size=size, blake3=digest, sources=alternatives
    )


def left_behind(store: Store) -> list[str]:
    """The blobs and whatever is still temporary."""
    places = [
        *store.temporary.iterdir(),
        *(store.root / "blobs").rglob("*"),
        *(store.root / "partial").rglob("*"),
    ]
    return sorted(path.name for path in places if path.is_file() and path.suffix != ".chunks")


def test_fetches_a_file_and_tells_every_step(
    site: Site, store: Store, open_source: OpenSource
) -> None:
    told = Told()
    found = fetch(file(site.url + "/m"), open_source, store, told)
    assert (found.size, found.sha256) == (len(CONTENT), SHA256)
    assert left_behind(store) == [SHA256.hex]
    assert told.tasks == [("m.gguf", len(CONTENT))]
    assert sum(told.steps) == len(CONTENT)
    assert told.notes == []


def test_fetches_nothing_that_is_there(site: Site, store: Store, open_source: OpenSource) -> None:
    for _ in range(2):
        fetch(file(site.url + "/m"), open_source, store, Silence())
    assert site.paths() == ["/m"]


def test_joins_parts(site: Site, store: Store, open_source: OpenSource) -> None:
    parts = f"{site.url}/part0+{site.url}/part1"
    assert fetch(file(parts), open_source, store, Silence()).sha256 == SHA256
    assert site.paths() == ["/part0", "/part1"]


@pytest.mark.parametrize("is_absolute", [False, True], ids=["relative", "absolute"])
def test_fetches_a_file_of_this_machine(
    store: Store, open_source: OpenSource, tmp_path: Path, *, is_absolute: bool
) -> None:
    path = tmp_path / "index" / "files" / "m.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    source = path.as_uri() if is_absolute else "file:files/m.gguf"
    assert fetch(file(source), open_source, store, Silence()).sha256 == SHA256


def test_refuses_a_source_that_is_no_regular_file(
    store: Store, open_source: OpenSource, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, reason in (("pipe", "not a regular file"), ("none", "No such file")):
        with pytest.raises(FetchError, match=reason):
            fetch(file(f"file:{tmp_path / path}"), open_source, store, Silence())


def test_checks_blake3_where_the_index_has_it(
    site: Site, store: Store, open_source: OpenSource
) -> None:
    source = site.url + "/m"
    with pytest.raises(DigestMismatchError, match="blake3"):
        fetch(file(source, chunk="0" * 64), open_source, store, Silence())
    assert left_behind(store) == []
    right = blake3(CONTENT).hexdigest()
    assert fetch(file(source, chunk=right), open_source, store, Silence()).blake3.hex == right


def test_names_source_and_digests_of_wrong_bytes(
    site: Site, store: Store, open_source: OpenSource
) -> None:
    with pytest.raises(DigestMismatchError) as caught:
        fetch(file(site.url + "/wrong?token=secret"), open_source, store, Silence())
    assert caught.value.where == site.url + "/wrong"
    assert caught.value.expected == str(SHA256)
    assert caught.value.found == f"sha256:{hashlib.sha256(site.files['/wrong']).hexdigest()}"
    assert left_behind(store) == []


@pytest.mark.parametrize(
    ("path", "found"),
    [
        pytest.param("/short", len(CONTENT) - 1, id="too few"),
        pytest.param("/long", len(CONTENT) + 1, id="too many"),
        pytest.param("/login", 40, id="login page"),
    ],
)
def test_refuses_another_size(
    site: Site, store: Store, open_source: OpenSource, path: str, found: int
) -> None:
    site.files["/login"] = b"<html><form>your password?</form></html>"
    with pytest.raises(SizeMismatchError) as caught:
        fetch(file(site.url + path), open_source, store, Silence())
    assert (caught.value.expected, caught.value.found) == (len(CONTENT), found)
    assert left_behind(store) == []


def test_reads_no_byte_of_a_body_that_is_announced_too_long(
    site: Site, store: Store, open_source: OpenSource
) -> None:
    told = Told()
    with pytest.raises(SizeMismatchError):
        fetch(file(site.url + "/long"), open_source, store, told)
    assert sum(told.steps) == 0


def test_stops_at_the_first_piece_too_many(
    site: Site, store: Store, open_source: OpenSource
) -> None:
    site.answers["/endless"] = endless
    told = Told()
    with pytest.raises(SizeMismatchError):
        fetch(file(site.url + "/endless"), open_source, store, told)
    assert sum(told.steps) <= len(CONTENT)
    assert left_behind(store) == []


def test_fetches_a_file_of_unknown_size(site: Site, store: Store, open_source: OpenSource) -> None:
    found = fetch(file(site.url + "/m", size=None), open_source, store, Silence())
    assert found.size == len(CONTENT)


Usage = namedtuple("Usage", "total used free")  # noqa: PYI024 as shutil has it


@pytest.mark.parametrize("path", ["/m", "/endless"])
@pytest.mark.parametrize("size", [len(CONTENT), None], ids=["known", "unknown"])
def test_stops_where_the_disk_is_full(
    site: Site,
    store: Store,
    open_source: OpenSource,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    size: int | None,
) -> None:
    site.answers["/endless"] = endless
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1_000_000, 500_000, 500_000))
    other = site.url + "/part0"
    with pytest.raises(StoreError, match="free"):
        fetch(file(site.url + path, other, size=size), open_source, store, Silence())
    assert store.blob(SHA256) is None
    assert "/part0" not in site.paths()
    assert size is None or site.requests == []


def truncated(handler: Handler) -> None:
    handler.reply(200, CONTENT[:1000], length=len(CONTENT))


def packed(handler: Handler) -> None:
    handler.reply(200, CONTENT, {"Content-Encoding": "gzip"})


BAD = {
    "truncated": ("connection", FetchError),
    "packed": ("compressed", FetchError),
    "none": ("HTTP 404", FetchError),
    "loop": ("redirects", FetchError),
    "wrong": ("expected sha256", IntegrityError),
    "short": ("expected 800,000 bytes", IntegrityError),
    "endless": ("expected 800,000 bytes", IntegrityError),
}


@pytest.fixture
def bad(site: Site) -> Site:
    site.answers |= {"/truncated": truncated, "/packed": packed, "/endless": endless}
    site.answers["/loop"] = redirect("/loop")
    return site


@pytest.mark.parametrize("path", BAD)
def test_takes_the_next_source_after_a_bad_one(
    bad: Site, store: Store, open_source: OpenSource, path: str
) -> None:
    told = Told()
    sources = (f"{bad.url}/{path}", f"{bad.url}/m")
    assert fetch(file(*sources), open_source, store, told).sha256 == SHA256
    assert left_behind(store) == [SHA256.hex]
    assert len(told.notes) == 1
    assert BAD[path][0] in told.notes[0]
    assert told.notes[0].endswith("trying the next source")


@pytest.mark.parametrize("path", BAD)
def test_leaves_nothing_of_a_bad_source(
    bad: Site, store: Store, open_source: OpenSource, path: str
) -> None:
    reason, kind = BAD[path]
    with pytest.raises(kind, match=reason):
        fetch(file(f"{bad.url}/{path}"), open_source, store, Silence())
    with pytest.raises((FetchError, IntegrityError)):
        fetch(file(f"{bad.url}/part0+{bad.url}/{path}"), open_source, store, Silence())
    assert store.blob(SHA256) is None
    assert list(store.temporary.iterdir()) == []


def test_lists_every_source_and_its_reason(
    bad: Site, store: Store, open_source: OpenSource
) -> None:
    sources = (f"{bad.url}/none", "hf:org/repo@main/m.gguf", "pypi:m==1/m.gguf")
    with pytest.raises(FetchError) as caught:
        fetch(file(*sources), open_source, store, Silence())
    first, *reasons = caught.value.message.split("\n  ")
    assert first == "no source has `m.gguf`:"
    expected = ("HTTP 404", "there is no repository `org/repo`", "forbids every index")
    assert [part in reason for part, reason in zip(expected, reasons, strict=True)] == [True] * 3
    assert caught.value.hint is not None


def test_wrong_bytes_weigh_more_than_missing_ones(
    bad: Site, store: Store, open_source: OpenSource
) -> None:
    with pytest.raises(IntegrityError) as caught:
        fetch(file(f"{bad.url}/none", f"{bad.url}/wrong"), open_source, store, Silence())
    assert caught.value.exit_code == 3
    assert "HTTP 404" in caught.value.message
    assert "expected sha256" in caught.value.message


def test_a_store_that_cannot_be_written_ends_it_at_once(
    site: Site, store: Store, open_source: OpenSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    store.temporary  # noqa: B018  made before the disk is full
    monkeypatch.setattr(files.disk, "write", full)
    with pytest.raises(StoreError, match="no space"):
        fetch(file(site.url + "/m", site.url + "/part0"), open_source, store, Silence())
    assert set(site.paths()) <= {"/m"}
    assert left_behind(store) == []
