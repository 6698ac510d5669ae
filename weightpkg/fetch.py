"""From a file that an index names to a verified blob in the store.

Sources are tried in order and none is trusted: what comes is counted and hashed while it is
written, reading stops at the first byte too many, and only the digest decides. Wrong bytes leave
nothing behind and the next source is tried; a store that cannot be written ends it at once.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from weightpkg.digest import Fingerprint
from weightpkg.errors import FetchError, IntegrityError, SizeMismatchError, StoreError
from weightpkg.package import File, HttpsSource, Parts, Source
from weightpkg.progress import Advance, Progress
from weightpkg.sources import Stream
from weightpkg.store import BlobWriter, Store

OpenSource = Callable[[Source], AbstractContextManager[Stream]]
"""Opens a source of any kind; `FetchError` where it cannot be had."""

_NO_ROOM = "free some space, or set WEIGHTPKG_HOME to a larger disk"


def fetch_file(
    file: File, open_source: OpenSource, store: Store, progress: Progress
) -> Fingerprint:
    """Have the file's bytes in the store, from the first source that delivers them.

    Args:
        file: what the index says of it.
        open_source: opens its sources.
        store: where the blob goes; if it is there, nothing is fetched.
        progress: told of every step.

    Raises:
        IntegrityError: a source delivered other bytes, and no other delivered the right ones.
        FetchError: no source could be read.
        StoreError: the store cannot be written, or has no room.
    """
    with store.lock(file.sha256):
        # another process may have fetched it while this one waited
        if found := store.fingerprint(file.sha256):
            return found
        failures: list[FetchError | IntegrityError] = []
        for parts in file.sources:
            try:
                return _fetch_parts(file, parts, open_source, store, progress)
            except (FetchError, IntegrityError) as error:
                failures.append(error)
                if len(failures) < len(file.sources):
                    progress.note(f"{error.message}; trying the next source")
    raise _no_source(file, failures)


def _fetch_parts(
    file: File, parts: Parts, open_source: OpenSource, store: Store, progress: Progress
) -> Fingerprint:
    where = " + ".join(_shown(source) for source in parts)
    room = shutil.disk_usage(store.temporary).free
    if (file.size or 0) > room:
        raise StoreError(
            f"`{file.path}` has {file.size:,} bytes, and {room:,} are free in `{store.root}`",
            hint=_NO_ROOM,
        )
    with store.new_blob() as blob, progress.task(str(file.path), file.size) as advance:
        for source in parts:
            with open_source(source) as stream:
                _copy(stream, blob, advance, size=file.size, room=room, where=where)
        return blob.commit(file.sha256, size=file.size, blake3=file.blake3, where=where)


def _copy(
    stream: Stream, blob: BlobWriter, advance: Advance, *, size: int | None, room: int, where: str
) -> None:
    """Write a stream's pieces, and stop where they pass what was promised or what there is room for."""
    end = None if stream.size is None else blob.size + stream.size
    _check_size(end or 0, size=size, room=room, where=where)
    for piece in stream.pieces:
        _check_size(blob.size + len(piece), size=size, room=room, where=where)
        blob.write(piece)
        advance(len(piece))
    if end is not None and blob.size != end:
        raise FetchError(f"`{where}`: {blob.size:,} bytes came where {end:,} were announced")


def _check_size(found: int, *, size: int | None, room: int, where: str) -> None:
    if size is not None and found > size:
        raise SizeMismatchError(where, expected=size, found=found)
    if found > room:
        raise StoreError(f"`{where}`: more than the {room:,} bytes that are free", hint=_NO_ROOM)


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
    hint = next((error.hint for error in failures if error.hint), None)
    is_wrong = any(isinstance(error, IntegrityError) for error in failures)
    kind = IntegrityError if is_wrong else FetchError
    return kind(f"no source has `{file.path}`:{reasons or ' none is named'}", hint=hint)
