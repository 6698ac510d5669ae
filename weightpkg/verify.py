"""Hashing what the store has again, offline: what is bad, and whose it is.

Every blob is compared with the BLAKE3 that was found when its SHA-256 was right, chunk by chunk on
all cores; a model directory's manifest is compared with the record, and every file in it with the
manifest; modes and what else lies there are looked at too. All that is found is listed.
"""

from __future__ import annotations

import os
import re
import stat
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Literal

from weightpkg import files
from weightpkg.digest import Digest, hash_file, sound_chunks
from weightpkg.document import parse_document
from weightpkg.errors import DocumentError
from weightpkg.progress import Advance, Progress
from weightpkg.store import MANIFEST, Installed, Store

Kind = Literal["missing", "truncated", "corrupt", "unexpected", "unreadable", "mode"]

_BLOB_NAME = re.compile(r"([0-9a-f]{64})(\.chunks)?\Z")
_MANY_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as it was installed.

    models: what needs it.
    blob: the SHA-256, where it is a blob or the list of its chunks.
    conversion: the key, where it is in a model directory.
    """

    kind: Kind
    path: Path
    models: tuple[str, ...] = ()
    blob: Digest | None = None
    conversion: str | None = None

    def __str__(self) -> str:
        whose = ", ".join(self.models) or "needed by nothing installed"
        return f"{self.kind}: `{self.path}` ({whose})"


@dataclass(frozen=True, slots=True)
class Expected:
    """A file as it should be; `size` and `digest` are None where only its presence is known.

    `chunks` are the BLAKE3 of each chunk, where they are known.
    """

    path: Path
    size: int | None
    digest: Digest | None
    models: tuple[str, ...]
    blob: Digest | None = None
    conversion: str | None = None
    chunks: tuple[str, ...] = ()

    def problem(self, kind: Kind) -> Problem:
        """Say what is wrong with it."""
        return Problem(kind, self.path, self.models, self.blob, self.conversion)


def verify(
    store: Store, progress: Progress, records: Sequence[Installed] | None = None
) -> list[Problem]:
    """Check what some models need, or all that the store has; return what is bad, by path.

    Args:
        store: where.
        progress: told of the bytes read.
        records: what to check; if not given, everything, also what nothing installed needs.

    Raises:
        StoreError: a record cannot be read.
    """
    is_all = records is None
    records = store.installed() if records is None else records
    problems: list[Problem] = []
    expected = _expected_blobs(store, records)
    if is_all:
        problems += _look_around(store, expected)
    for record_key, models in _conversions(records).items():
        found, inside = _read_directory(store, *record_key, tuple(models))
        problems += found
        expected |= inside
    one_file = by_file(expected.values())
    total = sum(names[0].size or 0 for names in one_file)
    with progress.task("verifying", total) as advance:
        problems += check_files(one_file, advance)
    return sorted(problems, key=lambda problem: str(problem.path))


def _conversions(records: Iterable[Installed]) -> dict[tuple[str, Digest], list[str]]:
    found: dict[tuple[str, Digest], list[str]] = defaultdict(list)
    for record in records:
        if record.conversion and record.tree:
            found[record.conversion, record.tree].append(record.full_name)
    return found


def _expected_blobs(store: Store, records: Iterable[Installed]) -> dict[Path, Expected]:
    expected: dict[Path, Expected] = {}
    for record in records:
        for file in record.files:
            if file.is_kept:
                path = store.blob_path(file.sha256)
                models = (*(expected[path].models if path in expected else ()), record.full_name)
                known = store.known(file.sha256)
                chunks = known.chunks if known and known.blake3 == file.blake3 else ()
                expected[path] = Expected(
                    path, file.size, file.blake3, models, file.sha256, chunks=chunks
                )
    for kept in list(expected.values()):
        if kept.blob:
            path = store.chunks_path(kept.blob)
            expected[path] = Expected(path, None, None, kept.models, kept.blob)
    return expected


def _look_around(store: Store, expected: dict[Path, Expected]) -> Iterator[Problem]:
    """Add the blobs that nothing installed needs, and yield what is no blob at all."""
    for path, _ in files.walk(store.root / "blobs"):
        if path in expected:
            continue
        match = _BLOB_NAME.match(path.name)
        if match is None or path.parent.name != match[1][:2]:
            yield Problem("unexpected", path)
            continue
        blob = Digest("sha256", match[1])
        known = store.known(blob)
        if match[2]:
            expected[path] = Expected(path, None, None, (), blob)
        elif known:
            expected[path] = Expected(path, known.size, known.blake3, (), blob, chunks=known.chunks)
        else:
            expected[path] = Expected(path, path.stat().st_size, blob, (), blob)


def by_file(expected: Iterable[Expected]) -> list[tuple[Expected, ...]]:
    """Bring together what is one file: a blob, and its names in model directories that use it."""
    found: dict[object, list[Expected]] = defaultdict(list)
    for file in expected:
        with suppress(OSError):
            entry = file.path.lstat()
            if entry.st_nlink > 1:
                found[entry.st_dev, entry.st_ino, file.size, file.digest].append(file)
                continue
        found[file.path].append(file)
    return [tuple(names) for names in found.values()]


def check_files(expected: Sequence[tuple[Expected, ...]], advance: Advance) -> Iterator[Problem]:
    """Check large files one after the other on all cores, and small ones side by side.

    Args:
        expected: files, each under all the names that it has here.
        advance: called with the bytes read.
    """
    lock = Lock()

    def count(size: int) -> None:
        with lock:
            advance(size)

    large = [names for names in expected if (names[0].size or 0) >= _MANY_BYTES]
    small = [names for names in expected if (names[0].size or 0) < _MANY_BYTES]
    for names in large:
        yield from _check(names, count, is_alone=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for found in pool.map(lambda names: list(_check(names, count, is_alone=False)), small):
            yield from found


def _check(
    names: Sequence[Expected], advance: Callable[[int], None], *, is_alone: bool
) -> Iterator[Problem]:
    """Check one file, which is read once, under all the names that it has here."""
    file = names[0]
    kind: Kind | None
    try:
        entry = file.path.lstat()
        if stat.S_ISREG(entry.st_mode):
            # a hard link that is elsewhere has the permissions that its owner wants
            is_ours = entry.st_nlink <= len(names) and not file.path.name.endswith(".chunks")
            if entry.st_mode & 0o222 and is_ours:
                yield from (name.problem("mode") for name in names)
            kind = _compare(file, entry.st_size, advance, is_alone=is_alone)
        else:
            kind = "unexpected"
    except FileNotFoundError:
        kind = "missing"
    except OSError:
        kind = "unreadable"
    if kind is not None:
        yield from (name.problem(kind) for name in names)


def _compare(
    file: Expected, size: int, advance: Callable[[int], None], *, is_alone: bool
) -> Kind | None:
    if file.digest is None:
        return None if _is_list_of_chunks(file) else "corrupt"
    if size != file.size:
        return "truncated" if size < (file.size or 0) else "corrupt"
    if is_alone and file.chunks:
        good = sound_chunks(file.path, dict(enumerate(file.chunks)), advance=advance)
        return None if len(good) == len(file.chunks) else "corrupt"
    found = hash_file(file.path, file.digest.algorithm, advance=advance, all_cores=is_alone)
    return None if found == file.digest else "corrupt"


def _is_list_of_chunks(file: Expected) -> bool:
    with suppress(DocumentError, ValueError):
        found = Store.read_chunks(file.path)
        return found.sha256 == file.blob
    return False


def _read_directory(
    store: Store, key: str, tree: Digest, models: tuple[str, ...]
) -> tuple[list[Problem], dict[Path, Expected]]:
    """Return what is wrong with a model directory itself, and what its files should be."""
    directory = store.model_path(key)
    manifest = directory / MANIFEST
    size = files.tree_size(manifest)
    closing = Expected(manifest, size, tree, models, conversion=key)
    if bad := [p for p in _check((closing,), lambda _: None, is_alone=False) if p.kind != "mode"]:
        return bad, {}
    expected = {manifest: closing}
    with files.mapped(manifest):
        rows = parse_document(manifest.read_bytes(), source=str(manifest)).tables("files")
    for row in rows:
        path = directory / row.required("path", str)
        digest = row.parsed("blake3", lambda text: Digest("blake3", text))
        expected[path] = Expected(path, row.required("size", int), digest, models, conversion=key)
    extra = sorted(set(directory.rglob("*")) - set(expected))
    return [Problem("unexpected", path, models, conversion=key) for path in extra], expected
