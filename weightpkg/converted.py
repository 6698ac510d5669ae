"""Converted models from a mirror: taken when their tree is the one that is locked, else made here."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from weightpkg import files
from weightpkg.contents import MODEL_MANIFEST, Entry, read_model_rows
from weightpkg.digest import Digest, hash_file
from weightpkg.document import MAX_DOCUMENT_SIZE
from weightpkg.errors import (
    DigestMismatchError,
    DocumentError,
    FetchError,
    IntegrityError,
    SizeMismatchError,
)
from weightpkg.package import File, Source
from weightpkg.placing import place_file
from weightpkg.transfer import transfer

if TYPE_CHECKING:
    from weightpkg.fetch import Fetcher
    from weightpkg.replacement import Replacement


def take_model(key: str, tree: Digest, sources: Iterable[File], fetcher: Fetcher) -> bool:
    """Have a converted model in the store, if a mirror has the one that is locked.

    Args:
        key: of its conversion.
        tree: the digest of its manifest, which has all the others.
        sources: what it was converted from; some of it may be part of it as it is.
        fetcher: fetches into the store, and knows the mirrors.

    Returns:
        Whether it is there; where no mirror has it, it has to be converted.

    Raises:
        StoreError: the store cannot be written.
    """
    store = fetcher.store
    for replacement in fetcher.replacements:
        if store.model(key) is not None:
            return True
        with store.use(), store.lock(Digest("sha256", key)):
            try:
                _take(key, tree, tuple(sources), replacement, fetcher)
            except (FetchError, IntegrityError, DocumentError) as error:
                fetcher.progress.note(
                    f"no converted model from `{replacement.location}`: {error.message}"
                )
    return store.model(key) is not None


def _take(
    key: str, tree: Digest, sources: tuple[File, ...], replacement: Replacement, fetcher: Fetcher
) -> None:
    prefix = f"models/{key}"
    manifest = _small(replacement.source(f"{prefix}/{MODEL_MANIFEST}"), fetcher)
    found = Digest("sha256", hashlib.sha256(manifest).hexdigest())
    if found != tree:
        raise DigestMismatchError(
            f"{prefix}/{MODEL_MANIFEST}", expected=str(tree), found=str(found)
        )
    entries, in_place = read_model_rows(manifest, source=f"{prefix}/{MODEL_MANIFEST}")
    placed = {
        file.path.text: file for file in sources if file.sha256 and file.sha256.hex in in_place
    }
    with fetcher.store.new_model(key) as new:
        for entry in entries:
            path = new / entry.path
            files.make_directory(path.parent, is_durable=False)
            if entry.path in placed:
                blob = fetcher.fetch(placed[entry.path])
                place_file(fetcher.store.blob_path(blob.sha256), path)
                _check(path, entry)
            else:
                _fetch(entry, replacement.source(f"{prefix}/{entry.path}"), path, fetcher)
        (new / MODEL_MANIFEST).write_bytes(manifest)


def _small(source: Source, fetcher: Fetcher) -> bytes:
    parts: list[bytes] = []
    with (
        fetcher.open_source(source, 0, None) as content,
        closing(content.stream(0, content.size)) as pieces,
    ):
        for piece in pieces:
            parts.append(piece)
            if sum(map(len, parts)) > MAX_DOCUMENT_SIZE:
                raise FetchError(f"`{content.name}`: larger than {MAX_DOCUMENT_SIZE:,} bytes")
    return b"".join(parts)


def _fetch(entry: Entry, source: Source, path: Path, fetcher: Fetcher) -> None:
    with fetcher.progress.task(entry.path, entry.size) as advance:
        with fetcher.open_source(source, 0, None) as content:
            if content.size not in (None, entry.size):
                raise SizeMismatchError(content.name, expected=entry.size, found=content.size or 0)
            with files.keep_file(path) as file:
                pieces = transfer(
                    content, [(0, entry.size)], jobs=fetcher.jobs, timeout_s=fetcher.timeout_s
                )
                with closing(pieces):
                    for offset, piece in pieces:
                        if offset + len(piece) > entry.size:
                            raise SizeMismatchError(
                                content.name, expected=entry.size, found=offset + len(piece)
                            )
                        file.write_at(offset, piece)
                        fetcher.received += len(piece)
                        advance(len(piece))
        _check(path, entry)


def _check(path: Path, entry: Entry) -> None:
    with files.mapped(path):
        size, found = path.stat().st_size, hash_file(path, "blake3", all_cores=True)
    if size != entry.size or found != entry.blake3:
        raise DigestMismatchError(entry.path, expected=str(entry.blake3), found=str(found))
