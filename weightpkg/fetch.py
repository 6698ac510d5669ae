"""From a file that an index names to a verified blob in the store.

Sources are tried in order and none is trusted. What comes is written where it belongs, survives the
end of the process, and is gone on with by the next, or by the next source: only a digest decides
what becomes a blob. That is the BLAKE3 where the index gives it, which is checked as fast as bytes
come, and else the SHA-256. A store that cannot be written ends it at once.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from weightpkg import files
from weightpkg.adopt import Places, adopt, find_candidates
from weightpkg.digest import Digest, Fingerprint, fingerprint_file, git_sha1
from weightpkg.errors import (
    DigestMismatchError,
    FetchError,
    IntegrityError,
    SizeMismatchError,
    StoreError,
)
from weightpkg.package import File, FileSource, HttpsSource, Parts, Source
from weightpkg.partial import Partial, Provenance, WrongChunkError, discard_partial
from weightpkg.progress import Advance, Progress
from weightpkg.replacement import Replacement, replaced
from weightpkg.sources import Content, Pieces
from weightpkg.store import Store
from weightpkg.transfer import Piece, transfer

OpenSource = Callable[[Source, int, int | None], AbstractContextManager[Content]]
"""Opens a source of any kind of which a range will be read first; `FetchError` where it cannot."""

DEFAULT_JOBS = 8
_NO_ROOM = "`weightpkg gc` frees what is not needed; WEIGHTPKG_HOME can be on a larger disk"
_LEAST_SPEED = 16 * 1024
_GRACE_S = 600.0


@dataclass
class Fetcher:
    """Fetches files for one run, and remembers which sources were no good in it.

    Args:
        open_source: opens sources.
        store: where blobs go.
        progress: told of every step.
        jobs: how many connections a file may take.
        timeout_s: how long a file may take; if None, ten minutes and what its size takes at 16 KiB
            a second.
        places: where files that are on this machine already are looked for.
        replacements: mirrors that are asked before the sources of a file, or instead of them.
        received: bytes that came from sources so far.
    """

    open_source: OpenSource
    store: Store
    progress: Progress
    jobs: int = DEFAULT_JOBS
    timeout_s: float | None = None
    places: Places = field(default_factory=Places)
    replacements: tuple[Replacement, ...] = ()
    received: int = 0
    _wrong: set[Parts] = field(default_factory=set)
    _slow: set[Parts] = field(default_factory=set)
    _down: set[Replacement] = field(default_factory=set)

    def fetch(self, file: File, *, is_damaged: bool = False) -> Fingerprint:
        """Have the file's bytes in the store, from this machine or whichever sources deliver them.

        Args:
            file: what the index says of it; if it gives no digest, whatever comes is taken.
            is_damaged: the blob that is there is no good, and to be replaced.

        Raises:
            IntegrityError: a source delivered other bytes, and no other delivered the right ones.
            FetchError: no source could be read.
            StoreError: the store cannot be written, or has no room.
        """
        file = replaced(file, self.replacements)
        name = file.sha256 or _name_of(file)
        with (
            self.store.use(),
            self.store.lock(name, on_wait=lambda: self._waiting(file)),
        ):
            # another process may have fetched it while this one waited
            if not is_damaged and file.sha256 and (found := self._find_blob(file.sha256)):
                return found
            with self.progress.task(str(file.path), file.size) as advance:
                return self._adopt(file, name, advance) or self._download(file, name, advance)

    def _find_blob(self, digest: Digest) -> Fingerprint | None:
        """Return what is known of a blob; where its list of chunks is lost, it is made again."""
        path = self.store.blob(digest)
        found = self.store.fingerprint(digest)
        if path is None or found is not None:
            return found
        with files.mapped(path):
            found = fingerprint_file(path)
        if found.sha256 != digest:
            return None
        self.store.write_chunks(found)
        return found

    def _adopt(self, file: File, name: Digest, advance: Advance) -> Fingerprint | None:
        if file.sha256 is None:
            return None
        found = adopt(file, find_candidates(file, self.places), self.store, advance)
        if found is None:
            return None
        discard_partial(self.store.partial_path(name))
        self.progress.note(f"took {file.path} from {found[1].path}")
        return found[0]

    def _download(self, file: File, name: Digest, advance: Advance) -> Fingerprint:
        known = self.store.known(name)
        with Partial(
            self.store.partial_path(name),
            size=file.size,
            sha256=file.sha256 if file.blake3 else None,
            chunks=known.chunks if known else (),
        ) as partial:
            partial.resume(advance)
            fingerprint = _from_disk(file, partial, advance)
            fingerprint = fingerprint or self._from_any(file, partial, advance)
            self.store.publish(partial, fingerprint)
            return fingerprint

    def _waiting(self, file: File) -> None:
        self.progress.note(f"another process is fetching {file.path}; waiting for it")

    def _from_any(self, file: File, partial: Partial, advance: Advance) -> Fingerprint:
        failures: list[FetchError | IntegrityError] = []
        down = {each.blob(file.sha256) for each in self._down if file.sha256}
        sources = sorted(file.sources, key=lambda parts: parts in self._slow or parts in down)
        for parts in sources:
            if parts in self._wrong:
                continue
            try:
                return self._from_one(file, parts, partial, advance)
            except IntegrityError as error:
                self._wrong.add(parts)
                failures.append(error)
            except FetchError as error:
                self._slow.add(parts)
                self._note_down(file, parts, error)
                failures.append(error)
            if parts != sources[-1]:
                self.progress.note(f"{failures[-1].message}; trying the next source")
        raise _no_source(file, failures)

    def _note_down(self, file: File, parts: Parts, error: FetchError) -> None:
        """Ask a mirror last from now on that did not even answer; one file may just not be there."""
        if not hasattr(error, "status") and not isinstance(parts[0], FileSource):
            for each in self.replacements:
                if file.sha256 and each.blob(file.sha256) == parts:
                    self._down.add(each)

    def _from_one(
        self, file: File, parts: Parts, partial: Partial, advance: Advance
    ) -> Fingerprint:
        """Have all bytes from one source, but for those that others have brought already."""
        name = " + ".join(map(_shown, parts))
        self._check_room(file, (file.size or 0) - partial.spans.size)
        with open_parts(self.open_source, parts, *_first_gap(partial)) as content:
            origin = Provenance(name, content.validator)
            if not _has_digest(file) and (content.validator is None or partial.origins - {origin}):
                # nothing would tell that it became part of one version and part of another
                with _counted(partial, advance):
                    partial.forget()
            self._check_size(file, content, partial)
            partial.begin(origin)
            found = self._verified(file, content, partial, advance, name)
            if not _has_digest(file) and content.validator != origin.validator:
                with _counted(partial, advance):
                    partial.forget()
                raise FetchError(
                    f"`{name}`: changed while it was read", hint="run the same command again"
                )
            return found

    def _verified(
        self, file: File, content: Content, partial: Partial, advance: Advance, name: str
    ) -> Fingerprint:
        while True:
            fingerprint = self._copy(file, content, partial, advance)
            try:
                _check(file, fingerprint, partial.path, name)
            except IntegrityError:
                is_all = partial.brought.size == partial.size
                with _counted(partial, advance):
                    (partial.forget if is_all else partial.drop_others)()
                partial.size = content.size if file.size is None else file.size
                if is_all:
                    raise
                # what was there before may be wrong, and only this source can be blamed for its own
                continue
            return fingerprint

    def _copy(
        self, file: File, content: Content, partial: Partial, advance: Advance
    ) -> Fingerprint:
        while True:
            try:
                self._copy_once(file, content, partial, advance)
                with _counted(partial, advance):
                    return partial.finish()
            except WrongChunkError as error:
                # if part of it is another source's, or what the disk made of it, once more
                if error.is_brought:
                    raise DigestMismatchError(
                        content.name, expected="the digest of each chunk", found="another one"
                    ) from error

    def _copy_once(self, file: File, content: Content, partial: Partial, advance: Advance) -> None:
        with closing(self._pieces(content, partial)) as pieces:
            for offset, piece in pieces:
                self._check_piece(file, content, partial, offset + len(piece), advance)
                self.received += len(piece)
                with _counted(partial, advance):
                    partial.write(offset, piece)
        if partial.size is not None and not partial.is_complete:
            raise FetchError(
                f"`{content.name}`: ended after {partial.spans.reach():,} of {partial.size:,} bytes"
            )

    def _pieces(self, content: Content, partial: Partial) -> Generator[Piece, None, None]:
        end = content.size if partial.size is None else partial.size
        timeout_s = self.timeout_s or _GRACE_S + (end or 0) / _LEAST_SPEED
        gaps = [(0, -1)] if end is None else list(partial.spans.gaps(end))
        return transfer(content, gaps, jobs=self.jobs, timeout_s=timeout_s)

    def _check_size(self, file: File, content: Content, partial: Partial) -> None:
        """Refuse what cannot be right, or cannot be stored, before its first byte."""
        if file.size is not None and content.size not in (None, file.size):
            raise SizeMismatchError(content.name, expected=file.size, found=content.size or 0)
        if file.size is None:
            partial.size = None  # an earlier source may have been wrong about it
            if content.size is not None:
                partial.limit(content.size)
        self._check_room(file, (partial.size or 0) - partial.spans.size)

    def _check_room(self, file: File, needed: int) -> None:
        room = shutil.disk_usage(self.store.temporary).free
        if needed > room:
            raise StoreError(
                f"`{file.path}` needs {needed:,} bytes, and {room:,} are free in "
                f"`{self.store.root}`",
                hint=_NO_ROOM,
            )

    def _check_piece(
        self, file: File, content: Content, partial: Partial, end: int, advance: Advance
    ) -> None:
        if file.size is not None and end > file.size:
            with _counted(partial, advance):
                partial.drop_brought()
            raise SizeMismatchError(content.name, expected=file.size, found=end)
        if partial.size is None:
            self._check_room(file, end - partial.spans.size)


def _from_disk(file: File, partial: Partial, advance: Advance) -> Fingerprint | None:
    """Return what an earlier process has brought whole, and had no time to give its name."""
    if not partial.is_complete or not _has_digest(file):
        return None
    with _counted(partial, advance):
        try:
            found = partial.finish()
            _check(file, found, partial.path, str(partial.path))
        except WrongChunkError:
            return None
        except IntegrityError:
            partial.forget()
            return None
    return found


@contextmanager
def _counted(partial: Partial, advance: Advance) -> Iterator[None]:
    """Tell progress how many bytes more, or fewer, are there at the end of the `with`."""
    before = partial.spans.size
    try:
        yield
    finally:
        advance(partial.spans.size - before)


def _has_digest(file: File) -> bool:
    return bool(file.sha256 or file.blake3 or file.git_sha1)


def _first_gap(partial: Partial) -> tuple[int, int | None]:
    return next(partial.spans.gaps(partial.size or 0), (0, None))


@contextmanager
def open_parts(
    open_source: OpenSource, parts: Parts, start: int, end: int | None
) -> Iterator[Content]:
    """Open one source, or several whose bytes are joined in order.

    Args:
        open_source: opens each.
        parts: the sources.
        start: the byte of the whole that will be read first.
        end: where reading will stop for the first time.

    Raises:
        FetchError: one of them cannot be had.
    """
    with ExitStack() as stack:
        if len(parts) == 1:
            yield stack.enter_context(open_source(parts[0], start, end))
        else:
            # in the middle, nobody knows yet which part it is
            first = 1 if start else None
            yield _Joined([stack.enter_context(open_source(part, 0, first)) for part in parts])


class _Joined:
    """Several contents as one."""

    def __init__(self, contents: Sequence[Content]) -> None:
        sizes = [content.size for content in contents]
        validators = [content.validator for content in contents]
        self._contents = contents
        self.name = " + ".join(content.name for content in contents)
        self.size = None if None in sizes else sum(size for size in sizes if size is not None)
        self.validator = None if None in validators else " + ".join(map(str, validators))
        self.has_ranges = self.size is not None and all(c.has_ranges for c in contents)

    @property
    def n_busy(self) -> int:
        """How often any of them has asked for patience."""
        return sum(content.n_busy for content in self._contents)

    def stream(self, start: int, end: int | None = None) -> Pieces:
        """Yield the bytes of a range; `FetchError` as the contents raise it."""
        if not self.has_ranges:
            for content in self._contents:
                yield from content.stream(0, None)
            return
        base = 0
        for content in self._contents:
            size = content.size or 0
            first, last = max(start - base, 0), min((end or 0) - base, size)
            if first < last:
                yield from content.stream(first, last)
            base += size


def _check(file: File, found: Fingerprint, path: Path, origin: str) -> None:
    if file.size is not None and found.size != file.size:
        raise SizeMismatchError(origin, expected=file.size, found=found.size)
    for wanted, actual in ((file.blake3, found.blake3), (file.sha256, found.sha256)):
        if wanted is not None and wanted != actual:
            raise DigestMismatchError(origin, expected=str(wanted), found=str(actual))
    if file.sha256 is None and file.git_sha1 is not None:
        name = git_sha1(path, found.size)
        if name != file.git_sha1:
            raise DigestMismatchError(origin, expected=f"git:{file.git_sha1}", found=f"git:{name}")


def _name_of(file: File) -> Digest:
    """Return what the partial of a file without a digest is called."""
    text = "\n".join(source.text for parts in file.sources for source in parts)
    return Digest("sha256", hashlib.sha256(text.encode()).hexdigest())


def _shown(source: Source) -> str:
    """Return the source for messages, without what a URL may hide."""
    if not isinstance(source, HttpsSource):
        return source.text
    bare = re.split(r"[?#]", source.text, maxsplit=1)[0]
    return re.sub(r"//[^/]*@", "//", bare)


def _no_source(
    file: File, failures: Sequence[FetchError | IntegrityError]
) -> FetchError | IntegrityError:
    if len(failures) == 1:
        return failures[0]
    reasons = "".join(f"\n  {error.message}" for error in failures)
    why_none = " all have brought wrong bytes before" if file.sources else " none is named"
    hint = next((error.hint for error in failures if error.hint), None)
    is_wrong = any(isinstance(error, IntegrityError) for error in failures)
    kind = IntegrityError if is_wrong else FetchError
    return kind(f"no source has `{file.path}`:{reasons or why_none}", hint=hint)
