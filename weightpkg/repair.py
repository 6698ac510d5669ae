"""Making good what `verify` finds: only damaged chunks are fetched, only damaged files made anew.

A blob is copied without its damaged chunks, these are fetched, all of it is hashed, and then it
takes the place of the damaged one by one rename. A converted model is made again from its sources,
and each bad file takes its place in the same way. What was bad goes to `quarantine`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec

from blake3 import blake3

from weightpkg import files
from weightpkg.digest import CHUNK_SIZE, Digest, Fingerprint, fingerprint_file, hash_file
from weightpkg.errors import StoreError, WeightpkgError
from weightpkg.fetch import Fetcher
from weightpkg.index import Index
from weightpkg.install import convert_blobs
from weightpkg.package import File, RelativePath, parse_source
from weightpkg.partial import Partial, Provenance
from weightpkg.store import Store, tree_digest
from weightpkg.verify import Problem

P = ParamSpec("P")
FindFile = Callable[[Digest], File | None]
"""Finds what is known of a blob's file, and so where it can be had; None where nothing is."""


@dataclass(frozen=True, slots=True)
class Repaired:
    """What became of a problem: `error` is None where it was made good."""

    problem: Problem
    error: WeightpkgError | None
    fetched: int = 0


def repair(
    problems: Sequence[Problem],
    store: Store,
    fetcher: Fetcher,
    find_file: FindFile,
) -> list[Repaired]:
    """Make good what can be made good; blobs first, since models are made of them.

    Args:
        problems: as `verify` found them.
        store: where.
        fetcher: fetches what is damaged.
        find_file: says where.
    """
    done: list[Repaired] = []
    for blob in dict.fromkeys(problem.blob for problem in problems):
        own = [problem for problem in problems if problem.blob == blob]
        if blob is not None:
            done += _attempt(own, fetcher, _repair_blob, blob, store, fetcher, find_file)
    for key in dict.fromkeys(problem.conversion for problem in problems):
        own = [problem for problem in problems if problem.conversion == key]
        if key is not None:
            done += _attempt(own, fetcher, _repair_model, key, own, store, fetcher, find_file)
    for problem in problems:
        if problem.blob is None and problem.conversion is None:
            done += _attempt([problem], fetcher, store.set_aside, problem.path)
    return done


def _attempt(
    problems: Sequence[Problem],
    fetcher: Fetcher,
    action: Callable[P, None],
    *args: P.args,
    **kwargs: P.kwargs,
) -> list[Repaired]:
    before = fetcher.received
    try:
        action(*args, **kwargs)
    except WeightpkgError as error:
        return [Repaired(problem, error) for problem in problems]
    first, *others = problems
    fetched = fetcher.received - before
    return [Repaired(first, None, fetched), *(Repaired(problem, None) for problem in others)]


def _repair_blob(blob: Digest, store: Store, fetcher: Fetcher, find_file: FindFile) -> None:
    path = store.blob_path(blob)
    with store.lock(blob):
        if _is_sound(blob, path, store):
            return
    file = find_file(blob)
    if file is None:
        raise StoreError(
            f"nothing says where `{path}` can be had again",
            hint="`--find-links DIR` names a directory that has it",
        )
    with store.lock(blob):
        if os.path.lexists(path):
            known = store.known(blob)
            if known is not None and path.is_file():
                _save_good_chunks(path, store.partial_path(blob), known)
            store.set_aside(path, keep_name=True)
    fetcher.fetch(file, is_damaged=True)


def _is_sound(blob: Digest, path: Path, store: Store) -> bool:
    """Where the bytes of a blob are right, make good its permissions and its list of chunks."""
    if not path.is_file() or path.is_symlink():
        return False
    with files.mapped(path):
        found = fingerprint_file(path)
    if found.sha256 != blob:
        return False
    files.set_mode(path, 0o444)
    if store.known(blob) != found:
        store.write_chunks(found)
    return True


def _save_good_chunks(path: Path, partial_path: Path, known: Fingerprint) -> None:
    """Begin a download of a damaged blob with all of its chunks that are not damaged."""
    with (
        files.mapped(path),
        path.open("rb") as stream,
        Partial(partial_path, size=known.size) as partial,
    ):
        partial.forget()
        partial.begin(Provenance("the damaged blob", known.blake3.hex))
        for i, digest in enumerate(known.chunks):
            stream.seek(i * CHUNK_SIZE)
            chunk = stream.read(CHUNK_SIZE)
            if blake3(chunk).hexdigest() == digest:
                partial.write(i * CHUNK_SIZE, chunk)


def _repair_model(
    key: str,
    problems: Sequence[Problem],
    store: Store,
    fetcher: Fetcher,
    find_file: FindFile,
) -> None:
    """Convert again, and put each file that is not as it should be in its place."""
    if all(problem.kind == "mode" for problem in problems):
        for problem in problems:
            files.set_mode(problem.path, 0o444)
        return
    record = next((r for r in store.installed() if r.conversion == key), None)
    if record is None:  # it was uninstalled meanwhile
        return
    for source in record.files:
        if store.blob(source.sha256) is None and (file := find_file(source.sha256)):
            fetcher.fetch(file)
    with store.lock(Digest("sha256", key)), files.scratch_directory(store.temporary) as fresh:
        convert_blobs(record.full_name, record.files, store, fresh, fetcher.progress)
        if tree_digest(fresh) != record.tree:
            again = record.full_name
            raise StoreError(
                f"`{record}` was converted by another version of weightpkg",
                hint=f"weightpkg uninstall {again}; weightpkg install {again}",
            )
        _replace(store.model_path(key), fresh, store)


def _replace(directory: Path, fresh: Path, store: Store) -> None:
    """Give a directory the files of a fresh one, where it has others."""
    names = {path.relative_to(fresh) for path in fresh.rglob("*") if path.is_file()}
    for path in sorted(directory.rglob("*"), reverse=True):
        if path.relative_to(directory) not in names:
            store.set_aside(path)
    bad = sorted(name for name in names if not _is_same(fresh / name, directory / name))
    for name in bad:
        if os.path.lexists(directory / name):
            store.set_aside(directory / name, keep_name=True)
    files.replace_files(fresh, bad, directory)


def _is_same(fresh: Path, path: Path) -> bool:
    if not path.is_file() or path.is_symlink() or path.stat().st_mode & 0o222:
        return False
    with files.mapped(path):
        if fresh.samefile(path):
            return True
        return hash_file(fresh, "blake3") == hash_file(path, "blake3")


def make_find_file(store: Store, index: Index) -> FindFile:
    """Make what finds a blob's file: in the records of what is installed, and in the index."""
    files_of = {file.sha256: file for record in store.installed() for file in record.files}

    def find_file(digest: Digest) -> File | None:
        known = next((file for _, file in index.find(digest)), None)
        recorded = files_of.get(digest)
        if recorded is None:
            return known
        own = tuple(tuple(parse_source(text) for text in parts) for parts in recorded.sources)
        newer = known.sources if known else ()
        return File(
            path=RelativePath(recorded.path),
            sha256=digest,
            size=recorded.size,
            blake3=recorded.blake3,
            sources=(*newer, *(parts for parts in own if parts not in newer)),
        )

    return find_file
