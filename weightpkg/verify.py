"""Hashing everything that is installed again, offline: what is bad, and whose it is.

Blobs are read whole and compared with the BLAKE3 of their record; a model directory's manifest is
compared with the record, and every file in it with the manifest. All that is found is listed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from weightpkg import files
from weightpkg.digest import Digest, hash_file
from weightpkg.document import parse_document
from weightpkg.errors import DocumentError, StoreError
from weightpkg.progress import Advance, Progress
from weightpkg.store import MANIFEST, Store

Kind = Literal["missing", "truncated", "corrupt", "unexpected", "unreadable"]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as it was installed."""

    kind: Kind
    path: Path
    models: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.kind}: `{self.path}` ({', '.join(self.models)})"


@dataclass(frozen=True, slots=True)
class _Expected:
    """A file as it should be."""

    path: Path
    size: int
    digest: Digest
    models: tuple[str, ...]


def verify(store: Store, progress: Progress) -> list[Problem]:
    """Check all that is installed; return what is bad, in the order of paths.

    Raises:
        StoreError: a record cannot be read.
    """
    blobs: dict[Path, _Expected] = {}
    directories: dict[tuple[Path, Digest], list[str]] = defaultdict(list)
    for record in store.installed():
        for file in record.files:
            path = store.blob_path(file.sha256)
            known = blobs[path].models if path in blobs else ()
            blobs[path] = _Expected(path, file.size, file.blake3, (*known, record.full_name))
        if record.conversion and record.tree:
            place = store.model_path(record.conversion)
            directories[place, record.tree].append(record.full_name)
    problems: list[Problem] = []
    expected = list(blobs.values())
    for (directory, tree), models in directories.items():
        found, inside = _read_directory(directory, tree, tuple(models))
        problems += found
        expected += inside
    with progress.task("verifying", sum(file.size for file in expected)) as advance:
        problems += _check_all(expected, advance)
    return sorted(problems, key=lambda problem: str(problem.path))


def _check_all(expected: Iterable[_Expected], advance: Advance) -> Iterator[Problem]:
    for file in expected:
        kind = _check(file, advance)
        if kind is not None:
            yield Problem(kind, file.path, file.models)


def _check(file: _Expected, advance: Advance) -> Kind | None:
    try:
        size = file.path.lstat().st_size
        if size != file.size:
            return "truncated" if size < file.size else "corrupt"
        found = hash_file(file.path, file.digest.algorithm, advance=advance)
    except FileNotFoundError:
        return "missing"
    except OSError:
        return "unreadable"
    return None if found == file.digest else "corrupt"


def _read_directory(
    directory: Path, tree: Digest, models: tuple[str, ...]
) -> tuple[list[Problem], list[_Expected]]:
    """Return what is wrong with a model directory itself, and what its files should be."""
    manifest = directory / MANIFEST
    expected = [_Expected(manifest, files.tree_size(manifest), tree, models)]
    if not manifest.is_file():
        return [Problem("missing", manifest, models)], []
    if _check(expected[0], lambda _: None) is not None:
        return [Problem("corrupt", manifest, models)], []
    try:
        rows = list(parse_document(manifest.read_bytes(), source=str(manifest)).tables("files"))
        expected = [
            _Expected(
                directory / row.required("path", str),
                row.required("size", int),
                row.parsed("blake3", lambda text: Digest("blake3", text)),
                models,
            )
            for row in rows
        ]
    except (DocumentError, OSError) as error:
        raise StoreError(f"`{manifest}`: {error}") from error
    known = {manifest, *(file.path for file in expected)}
    extra = sorted(set(directory.rglob("*")) - known)
    return [Problem("unexpected", path, models) for path in extra], expected
