"""What a search needs of an index's pages, in one SQLite file, so that pages need not be read for it.

A catalogue is a cache: pages are the truth, and it is made of them again where it is missing, stale
or damaged. It is never written in place: a new one is built beside it and renamed over it, so that
readers always have a whole one, and of several processes that build, the last one wins.

It is stale when a page's size or time of change is another one. To ask that of every page of a large
index takes longer than the search; there, only the directory's own time is looked at, which changes
when a page is added, removed or renamed into place, and all pages once a day. So what must be
noticed at once is renamed into place, as editors and version control do it.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from weightpkg import files
from weightpkg.digest import Digest
from weightpkg.errors import DocumentError, StoreError
from weightpkg.listing import Listing
from weightpkg.requirement import is_name

VERSION = 1  # goes up when what a catalogue has, or is made of, changes
_LOOK_AT_ALL = 2_000  # so many pages take 10 ms
_LOOK_AFTER_NS = 24 * 3600 * 10**9
_RECENT_NS = 2 * 10**9  # some systems' times of change are as coarse as that
_ABANDONED_S = 24 * 3600
_LIMIT = 2**63  # of an integer in SQLite; times of change can be anything
_MAX_WORDS = 100  # SQLite's expressions are not endless

_TABLES = """
CREATE TABLE meta (version INTEGER, changed INTEGER, made INTEGER, count INTEGER);
CREATE TABLE pages (page TEXT, changed INTEGER, size INTEGER, name TEXT, words TEXT, summary TEXT);
CREATE TABLE files (sha256 BLOB, page TEXT);
CREATE TABLE todo (page TEXT, changed INTEGER, size INTEGER);
"""
# what an old catalogue knows of pages as they still are; `todo` has the others then. What differs is
# found by sorting both, which takes memory that does not grow with them
_COPY = """
CREATE TABLE gone AS
    SELECT page, changed, size FROM old.pages EXCEPT SELECT * FROM todo ORDER BY 1, 2, 3;
CREATE TABLE fresh AS
    SELECT * FROM todo EXCEPT SELECT page, changed, size FROM old.pages ORDER BY 1, 2, 3;
INSERT INTO pages SELECT * FROM old.pages WHERE page NOT IN (SELECT page FROM gone);
INSERT INTO files SELECT * FROM old.files WHERE page NOT IN (SELECT page FROM gone);
DROP TABLE gone;
DROP TABLE todo;
ALTER TABLE fresh RENAME TO todo;
"""
# made at the end: to keep them in order while a million pages come in any order is slow
_INDICES = """
CREATE INDEX files_by_sha256 ON files (sha256, page);
CREATE INDEX faults ON pages (page) WHERE name IS NULL;
"""

# a name counts more than a tag, and a tag more than a summary
_SCORE = """CASE
    WHEN name = {word} THEN 100
    WHEN substr(name, 1, length({word})) = {word} THEN 60
    WHEN instr('-' || name || '-', '-' || {word} || '-') THEN 50
    WHEN instr(name, {word}) THEN 40
    WHEN instr(words, char(10) || {word} || char(10)) THEN 30
    WHEN instr(words, {word}) THEN 15
    ELSE 10
END"""

Stamp = tuple[int, int]
"""A page's time of change in nanoseconds, and its size."""


class Source(Protocol):
    """The pages that a catalogue is made of."""

    @property
    def key(self) -> str:
        """What tells them from other pages."""

    def changed(self) -> int:
        """A number below 2**63 that changes with them."""

    def is_stale(self, made: Made, stamps: Callable[[], dict[str, Stamp]]) -> bool:
        """Whether a catalogue may not be of them any more; `stamps` are those that it has."""

    def listed(self, old: Callable[[], Mapping[str, Stamp]]) -> Iterator[tuple[str, Stamp]]:
        """Yield each page with its stamp; `old` are those of an older catalogue."""


@dataclass(frozen=True, slots=True)
class Made:
    """What a catalogue knows of itself: `Source.changed`, when it was made, and how many pages it has."""

    changed: int
    made: int
    count: int


@dataclass(frozen=True, slots=True)
class Directory:
    """Pages in a directory."""

    path: Path

    @property
    def key(self) -> str:
        """The directory's path."""
        return str(self.path.absolute())

    def changed(self) -> int:
        """The directory's time of change."""
        return self.path.stat().st_mtime_ns % _LIMIT

    def is_stale(self, made: Made, stamps: Callable[[], dict[str, Stamp]]) -> bool:
        """Whether pages have changed; of a large index, whether they may have."""
        if made.count <= _LOOK_AT_ALL:
            return stamps() != dict(islice(self.listed(dict), made.count + 1))
        is_settled = made.changed == self.changed() and made.changed < made.made - _RECENT_NS
        return not is_settled or not 0 <= time.time_ns() - made.made < _LOOK_AFTER_NS

    def listed(self, old: Callable[[], Mapping[str, Stamp]]) -> Iterator[tuple[str, Stamp]]:  # noqa: ARG002  as `Source` has it
        """Yield the pages that there are; what no name leads to is only of interest to lint."""
        with os.scandir(self.path) as entries:
            for entry in entries:
                page = entry.name.removesuffix(".toml")
                if page != entry.name and is_name(page):
                    with suppress(FileNotFoundError):
                        status = entry.stat(follow_symlinks=False)
                        yield page, (status.st_mtime_ns % _LIMIT, status.st_size)


@dataclass(frozen=True, slots=True)
class Catalog:
    """The catalogue of an index's pages.

    Args:
        source: the pages.
        cache: where to keep catalogues; None keeps none.
        read: returns what a page says; `DocumentError` where it is not valid.
        note: told when many pages have to be read.
    """

    source: Source
    cache: Path | None
    read: Callable[[str], Listing]
    note: Callable[[str], None] = field(default=lambda _: None)

    def search(self, words: Sequence[str], limit: int | None) -> list[tuple[str, int]]:
        """Return the pages that match all of the words, and their scores, best first."""
        marks = [f"?{i + 1}" for i in range(min(len(words), _MAX_WORDS))]
        score = " + ".join(_SCORE.format(word=mark) for mark in marks) or "1"
        # most pages have nothing of what is looked for, and are seen off before they are scored
        matches = "".join(f" AND (instr(words, {m}) OR instr(summary, {m}))" for m in marks)
        query = (
            f"SELECT page, {score} AS score FROM pages WHERE name IS NOT NULL{matches} "  # noqa: S608  of our own text
            f"ORDER BY score DESC, length(name), name LIMIT {-1 if limit is None else int(limit)}"
        )
        # a command line can have what is no text
        texts = [word.lower().encode(errors="replace").decode() for word in words[:_MAX_WORDS]]
        return self._ask(query, texts)

    def holders(self, digest: Digest) -> list[str]:
        """Return the pages that name a file of a SHA-256."""
        query = "SELECT DISTINCT page FROM files WHERE sha256 = ? ORDER BY page"
        return [page for (page,) in self._ask(query, [bytes.fromhex(digest.hex)])]

    def faulty(self) -> list[str]:
        """Return the pages that cannot be read."""
        query = "SELECT page FROM pages WHERE name IS NULL ORDER BY page"
        return [page for (page,) in self._ask(query, [])]

    def _ask(self, query: str, values: Sequence[str | bytes]) -> list[tuple[Any, ...]]:
        try:
            try:
                return self._answer(query, values)
            except sqlite3.DatabaseError:
                # damaged where opening it did not show
                files.discard(self._path)
                return self._answer(query, values)
        except OSError as error:
            reason = f"cannot be read: {error.strerror or error}"
            raise DocumentError(reason, source=self.source.key) from error

    def _answer(self, query: str, values: Sequence[str | bytes]) -> list[tuple[Any, ...]]:
        with self._open() as connection:
            return connection.execute(query, values).fetchall()

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with ExitStack() as stack:
            connection = self._load()
            if connection is None:
                connection = stack.enter_context(closing(self._make(None)))
            else:
                stack.enter_context(closing(connection))
                if self._is_stale(connection):
                    connection = stack.enter_context(closing(self._make(connection)))
            yield connection

    @property
    def _path(self) -> Path:
        key = hashlib.sha256(os.fsencode(self.source.key)).hexdigest()[:16]
        return (self.cache or Path()) / f"{key}.sqlite"

    def _load(self) -> sqlite3.Connection | None:
        """Open the catalogue that is there, if there is one for this version."""
        if self.cache is None or not self._path.is_file():
            return None
        connection = _connect(self._path)
        with suppress(sqlite3.DatabaseError):
            if connection.execute("SELECT version FROM meta").fetchall() == [(VERSION,)]:
                return connection
        connection.close()
        return None

    def _is_stale(self, connection: sqlite3.Connection) -> bool:
        made = Made(*connection.execute("SELECT changed, made, count FROM meta").fetchone())
        return self.source.is_stale(made, lambda: _stamps(connection))

    def _make(self, old: sqlite3.Connection | None) -> sqlite3.Connection:
        """Make the catalogue; take from an old one what it knows of pages as they still are."""
        try:
            if self.cache is not None:
                return self._make_file(self.cache, old)
        except StoreError:
            pass  # nothing can be kept there, and the answer is wanted all the same
        except sqlite3.DatabaseError:
            if old is not None:  # it may be the damaged one; else the disk is full
                return self._make(None)
        connection = sqlite3.connect(":memory:")
        self._fill(connection, None)
        return connection

    def _make_file(self, cache: Path, old: sqlite3.Connection | None) -> sqlite3.Connection:
        place = files.make_directory(cache / "tmp", is_durable=False)
        files.sweep(place, older_than=time.time() - _ABANDONED_S)
        with files.scratch_directory(place) as scratch:
            with closing(_connect(scratch / self._path.name, mode="rwc")) as new:
                self._fill(new, old)
            files.replace_cache(scratch / self._path.name, self._path)
        return _connect(self._path)

    def _fill(self, new: sqlite3.Connection, old: sqlite3.Connection | None) -> None:
        new.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;" + _TABLES)
        if old is not None:
            new.execute("ATTACH DATABASE ? AS old", [_uri(self._path)])
        made, changed = time.time_ns(), self.source.changed()
        listed = self.source.listed(lambda: {} if old is None else _stamps(old))
        rows = ((page, *stamp) for page, stamp in listed)
        new.executemany("INSERT INTO todo VALUES (?, ?, ?)", rows)
        meta = (VERSION, changed, made, _count(new, "todo"))
        if old is not None:
            new.executescript(_COPY)
        if (count := _count(new, "todo")) > _LOOK_AT_ALL:
            self.note(f"reading {count:,} pages of the index, once")
        # from the disk one by one, as a list of a million pages would take 250 MB
        for page, *stamp in new.execute("SELECT * FROM todo"):
            self._add(new, page, stamp)
        new.execute("INSERT INTO meta VALUES (?, ?, ?, ?)", meta)
        new.execute("DROP TABLE todo")
        new.commit()
        new.executescript(_INDICES)

    def _add(self, new: sqlite3.Connection, page: str, stamp: Sequence[int]) -> None:
        try:
            listing = self.read(page)
        except DocumentError:
            new.execute("INSERT INTO pages (page, changed, size) VALUES (?, ?, ?)", [page, *stamp])
            return
        texts = (listing.name, "\n".join(["", listing.name, *listing.words, ""]), listing.summary)
        row = [page, *stamp, *(text.lower() for text in texts)]
        new.execute("INSERT INTO pages VALUES (?, ?, ?, ?, ?, ?)", row)
        rows = [(bytes.fromhex(digest.hex), page) for digest in listing.digests]
        new.executemany("INSERT INTO files VALUES (?, ?)", rows)


def _stamps(connection: sqlite3.Connection) -> dict[str, Stamp]:
    rows = connection.execute("SELECT page, changed, size FROM pages")
    return {page: (changed, size) for page, changed, size in rows}


def _count(connection: sqlite3.Connection, table: str) -> int:
    (count,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608  a table of ours
    return int(count)


def _connect(path: Path, *, mode: str = "ro") -> sqlite3.Connection:
    return sqlite3.connect(_uri(path, mode=mode), uri=True)


def _uri(path: Path, *, mode: str = "ro") -> str:
    """What SQLite calls a file; one that is read is never changed in place."""
    return f"{path.absolute().as_uri()}?mode={mode}" + ("&immutable=1" if mode == "ro" else "")
