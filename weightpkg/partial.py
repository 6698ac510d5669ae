"""A blob on its way: its bytes as they come, in any order, and a journal of what is there.

    partial/<hex>            the file, with holes
    partial/<hex>.journal    lines of JSON: what came, from where, and the BLAKE3 of whole chunks

Both stay when a process ends, however it ends, and the next one goes on from them. A killed
process leaves what it wrote in the system's cache, so a range in the journal is believed until the
machine starts again; after that, only chunks whose digest still is what the journal says.

While the bytes come, one thread follows behind the first gap and hashes, so that nothing is read
from the disk again in the end.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Condition, Thread
from typing import Any, Self

from blake3 import blake3

from weightpkg import files
from weightpkg.digest import CHUNK_SIZE, Digest, Fingerprint, Hasher, sound_chunks
from weightpkg.errors import StoreError
from weightpkg.progress import Advance
from weightpkg.spans import Span, Spans

_JOURNAL_STEP = 1024 * 1024
_MAX_JOURNAL = 64 * 1024 * 1024
_FLUSH_STEP = 128 * 1024 * 1024


class WrongChunkError(Exception):
    """A chunk has come whole, and is not the one that it should be; never seen by users.

    `is_brought` says whether all of it is of the present source.
    """

    def __init__(self, *, is_brought: bool) -> None:
        super().__init__()
        self.is_brought = is_brought


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where bytes came from: a source's text, and what it called them then."""

    source: str
    validator: str | None


class Partial:
    """A blob on its way, held by one process; close it, or use it in a `with` statement.

    Args:
        path: its file.
        size: of the whole, None where that is not known yet.
        sha256: the SHA-256 to take for granted when BLAKE3 is checked; computed if None.
        chunks: the BLAKE3 of each chunk, where known; wrong ones are found as they come.

    `brought` are those of its bytes that the present source has brought.
    """

    def __init__(
        self,
        path: Path,
        *,
        size: int | None,
        sha256: Digest | None = None,
        chunks: Sequence[str] = (),
    ) -> None:
        self.size = size
        self.spans = Spans()
        self.brought = Spans()
        self.origins: set[Provenance] = set()
        self._chunks = tuple(chunks)
        self._sha256 = sha256
        self._unwritten = Spans()
        self._file = files.keep_file(path)
        self.path = path
        self._follower: _Follower | None = None
        try:
            self._journal = _Journal(journal_path(path))
        except BaseException:
            self._file.close()
            raise

    def resume(self, advance: Advance) -> None:
        """Find out what is there already, and count it as done.

        Raises:
            StoreError: it cannot be read.
        """
        found = self._journal.read()
        length = self.path.stat().st_size
        whole = {i for i in found.chunks if _chunk_span(i, self.size or length)[1] <= length}
        with files.mapped(self.path):
            good = sound_chunks(self.path, {i: found.chunks[i] for i in sorted(whole)})
        for i in good:
            self.spans.add(*_chunk_span(i, self.size or length))
        for start, end in found.spans:
            self.spans.add(start, min(end, length))
        for i in whole - good:
            self.spans.remove(*_chunk_span(i, self.size or length))
        if self.size is not None:
            self.limit(self.size)
        # where a source names no version, what it gave before may be of another one
        self.origins = {
            Provenance(origin.source, origin.validator or "earlier") for origin in found.origins
        }
        if not self.spans.size:
            self.origins = set()
        if list(self.spans) != list(found.spans):
            # what is not true now must not seem so again when the file is longer
            self._begin_journal({i: found.chunks[i] for i in sorted(good)})
        advance(self.spans.size)

    @property
    def is_complete(self) -> bool:
        """Whether all bytes are there, right or wrong."""
        return self.spans.size == self.size

    def limit(self, size: int) -> None:
        """Know the size of the whole; what is beyond it is no part of it."""
        self.size = size
        self.spans.remove(size, sys.maxsize)

    def begin(self, origin: Provenance) -> None:
        """Note where the next bytes come from."""
        self.brought = Spans()
        self.origins.add(origin)
        self._journal.append({"source": origin.source, "validator": origin.validator})

    def drop_others(self) -> None:
        """Have only what the present source has brought."""
        self._keep(self.brought)
        for start, end in self.spans:
            self.brought.add(start, end)

    def drop_brought(self) -> None:
        """Have only what other sources have brought."""
        for start, end in self.brought:
            self.spans.remove(start, end)
        self._keep(self.spans)

    def forget(self) -> None:
        """Have nothing of it."""
        self.origins = set()
        self._keep(Spans())
        self._file.truncate(0)

    def _keep(self, spans: Spans) -> None:
        self._stop_following()
        self.spans, self.brought, self._unwritten = spans, Spans(), Spans()
        self._begin_journal({})

    def _begin_journal(self, chunks: Mapping[int, str]) -> None:
        """Let the journal say what is true now, and nothing else."""
        self._journal.clear()
        for origin in self.origins:
            self._journal.append({"source": origin.source, "validator": origin.validator})
        for i, digest in chunks.items():
            self._journal.append({"chunk": i, "blake3": digest})
        for span in self.spans:
            self._journal.append({"span": span})

    def write(self, offset: int, piece: bytes) -> int:
        """Take bytes for a place; return how many were missing there.

        What is there already may have been hashed, and is not written again.

        Raises:
            WrongChunkError: with them a chunk is complete, and is not the right one; it is missing
                again.
            StoreError: the disk is full, or may not be written.
        """
        data = memoryview(piece)
        taken = 0
        for start, end in list(self.spans.gaps(offset + len(piece), offset)):
            self._file.write_at(start, data[start - offset : end - offset])
            for spans in (self.spans, self.brought, self._unwritten):
                spans.add(start, end)
            taken += end - start
        if self._unwritten.size >= _JOURNAL_STEP:
            self._write_journal()
        self._follow()
        return taken

    def _follow(self) -> _Follower:
        follower = self._follower = self._follower or _Follower(
            self.path, Hasher(self._sha256), self._chunks
        )
        follower.advance(self.spans.reach(), is_end=self.spans.reach() == self.size)
        self._take_news(follower)
        return follower

    def _take_news(self, follower: _Follower) -> None:
        for i, digest in follower.news():
            self._journal.append({"chunk": i, "blake3": digest})
        if follower.error:
            raise StoreError(f"`{self.path}`: {follower.error}") from follower.error
        if follower.wrong is not None:
            span = _chunk_span(follower.wrong, self.size or self.spans.reach())
            is_brought = self.brought.has(*span)
            for spans in (self.spans, self.brought, self._unwritten):
                spans.remove(*span)
            self._journal.append({"lost": span})
            follower.forgive()
            raise WrongChunkError(is_brought=is_brought)

    def _write_journal(self) -> None:
        for span in self._unwritten:
            self._journal.append({"span": span})
        self._unwritten = Spans()

    def finish(self) -> Fingerprint:
        """Return what all of the bytes are.

        Raises:
            WrongChunkError: a chunk is not the right one; it is missing again.
            StoreError: they cannot be read.
        """
        if self.size is None:
            self.size = self.spans.reach()
        if self.spans.reach() != self.size:
            raise ValueError("some bytes are missing")
        follower = self._follow()
        follower.wait()
        self._take_news(follower)
        fingerprint = follower.hasher.finish()
        self._stop_following()
        return fingerprint

    def publish(self, path: Path) -> None:
        """Make it a file of that name; it is no partial any more.

        Raises:
            StoreError: the disk is full, or may not be written.
        """
        self._file.truncate(self.size or 0)
        self._file.publish(path)
        self._unwritten = Spans()
        self._journal.remove()

    def close(self) -> None:
        """Let it go; what is there stays, if anything is."""
        self._stop_following()
        with suppress(StoreError):  # what is not in the journal is fetched again
            self._write_journal()
        self._journal.close()
        self._file.close()
        if not self.spans.size:
            discard_partial(self.path)

    def _stop_following(self) -> None:
        if self._follower:
            self._follower.stop()
            self._follower = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Follower:
    """A thread that hashes a growing file chunk by chunk, always behind what is there."""

    def __init__(self, path: Path, hasher: Hasher, chunks: Sequence[str]) -> None:
        self.hasher = hasher
        self.wrong: int | None = None
        self.error: OSError | ValueError | None = None
        self._chunks = chunks
        self._news: list[tuple[int, str]] = []
        self._hashed = 0
        self._reach = 0
        self._is_end = False
        self._is_stopped = False
        self._change = Condition()
        self._flush: Thread | None = None
        with files.mapped(path):
            self._descriptor = os.open(path, os.O_RDONLY)
        self._thread = Thread(target=self._run, daemon=True, name="weightpkg-hash")
        self._thread.start()

    def advance(self, reach: int, *, is_end: bool) -> None:
        """Say how many bytes are there without a gap, and whether that is all."""
        if reach // CHUNK_SIZE == self._reach // CHUNK_SIZE and is_end == self._is_end:
            return
        with self._change:
            self._reach, self._is_end = reach, is_end
            self._change.notify_all()

    def news(self) -> list[tuple[int, str]]:
        """Return the digests of chunks that were not returned before."""
        if not self._news:
            return []
        with self._change:
            news, self._news = self._news, []
            return news

    def forgive(self) -> None:
        """Go on after a wrong chunk, which will come again."""
        with self._change:
            self.wrong = None
            self._reach, self._is_end = self._hashed, False

    def wait(self) -> None:
        """Wait until everything that is there was hashed, or something is wrong."""
        with self._change:
            self._change.wait_for(lambda: self.wrong is not None or self._is_idle())

    def stop(self) -> None:
        """End the thread."""
        with self._change:
            self._is_stopped = True
            self._change.notify_all()
        self._thread.join()
        if self._flush:
            self._flush.join()
        os.close(self._descriptor)

    def _is_idle(self) -> bool:
        return self.error is not None or (self._is_end and self._hashed == self._reach)

    def _run(self) -> None:
        try:
            while span := self._next():
                self._hash(*span)
        except (OSError, ValueError) as error:  # the latter where someone has cut the file
            with self._change:
                self.error = error
                self._change.notify_all()

    def _next(self) -> Span | None:
        """Wait for a chunk; None at the end."""
        with self._change:
            while not self._is_stopped:
                start = self._hashed
                end = min(start + CHUNK_SIZE, self._reach)
                is_whole = end - start == CHUNK_SIZE or (self._is_end and end > start)
                if is_whole and self.wrong is None:
                    return start, end
                self._change.wait()
            return None

    def _hash(self, start: int, end: int) -> None:
        i = start // CHUNK_SIZE
        with _map(self._descriptor, start, end) as mapped, memoryview(mapped) as data:
            digest = blake3(data).hexdigest()
            is_wrong = i < len(self._chunks) and digest != self._chunks[i]
            if not is_wrong:
                self.hasher.add_chunk(data, digest)
        with self._change:
            if is_wrong:
                self.wrong = i
            else:
                self._news.append((i, digest))
                self._hashed = end  # not before all of it has gone through both hashes
            self._change.notify_all()
        if end % _FLUSH_STEP == 0:
            self._start_flush()

    def _start_flush(self) -> None:
        """Have the disk take what is there while more comes, so that little is left for the end."""
        if self._flush is None or not self._flush.is_alive():
            self._flush = Thread(
                target=files.flush, args=(self._descriptor,), daemon=True, name="weightpkg-flush"
            )
            self._flush.start()


@dataclass(frozen=True, slots=True)
class _Found:
    """What a journal says."""

    chunks: dict[int, str]
    spans: Spans
    origins: set[Provenance]


class _Journal:
    """Lines of JSON, appended; whatever is not one is not there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = files.keep_file(path)
        self._end = path.stat().st_size

    def read(self) -> _Found:
        """Return what it says, and note that this process goes on with it."""
        found = _Found({}, Spans(), set())
        if self._end > _MAX_JOURNAL:
            self.clear()
        with files.mapped(self._path):
            content = self._path.read_bytes()
        boot, this_boot = "", _boot_id()
        for row in _rows(content):
            boot = str(row.get("boot", boot))
            _apply(row, found, is_believed=boot == this_boot)
        if not content.endswith(b"\n"):
            self._write(b"\n")
        self.append({"boot": this_boot})
        return found

    def append(self, row: dict[str, object]) -> None:
        """Add a line."""
        self._write(json.dumps(row, separators=(",", ":")).encode() + b"\n")

    def _write(self, line: bytes) -> None:
        self._file.write_at(self._end, line)
        self._end += len(line)

    def clear(self) -> None:
        """Say nothing any more."""
        self._file.truncate(0)
        self._end = 0
        self.append({"boot": _boot_id()})

    def remove(self) -> None:
        """Remove its file."""
        self.close()
        files.discard(self._path)

    def close(self) -> None:
        """Close its file."""
        self._file.close()


def _rows(content: bytes) -> Iterator[dict[str, Any]]:
    for line in content.split(b"\n"):
        with suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict):
                yield row


def _apply(row: dict[str, Any], found: _Found, *, is_believed: bool) -> None:
    with suppress(TypeError, ValueError):  # a line that a power cut has garbled
        if "chunk" in row:
            found.chunks[_place(row["chunk"])] = str(row.get("blake3"))
        elif "span" in row and is_believed:
            start, end = map(_place, row["span"])
            found.spans.add(start, end)
        elif "lost" in row:
            start, end = map(_place, row["lost"])
            found.spans.remove(start, end)
            found.chunks.pop(start // CHUNK_SIZE, None)
        elif "source" in row:
            validator = row.get("validator")
            found.origins.add(
                Provenance(str(row["source"]), validator if isinstance(validator, str) else None)
            )


def _place(value: object) -> int:
    if isinstance(value, int) and 0 <= value <= sys.maxsize:
        return value
    raise ValueError("not a place in a file")


def _boot_id() -> str:
    """Return what is another text after the machine has started again; random if unknown."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{time.time():.6f}"


def _map(descriptor: int, start: int, end: int) -> mmap.mmap:
    return mmap.mmap(descriptor, end - start, access=mmap.ACCESS_READ, offset=start)


def _chunk_span(i: int, size: int) -> Span:
    return i * CHUNK_SIZE, min((i + 1) * CHUNK_SIZE, size)


def journal_path(path: Path) -> Path:
    """Where the journal of a partial file is."""
    return path.with_name(f"{path.name}.journal")


def discard_partial(path: Path) -> None:
    """Remove a partial file and its journal, if they are there."""
    for file in (path, journal_path(path)):
        files.discard(file)
