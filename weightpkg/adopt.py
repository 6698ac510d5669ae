"""Files that are already on this machine, used instead of downloaded.

The Hugging Face cache, Ollama's and LM Studio's stores and any directory that is named are looked
through for a file of the right digest, or name and size. What is found is taken as a reflink, a
hard link or a copy, never moved, and hashed before it becomes a blob, as everything is.

Layouts: https://huggingface.co/docs/hub/local-cache for the first; Ollama keeps
`blobs/sha256-<hex>`, LM Studio `models/<publisher>/<repository>/<file>`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from weightpkg import files
from weightpkg.digest import Fingerprint, Hasher, read_pieces
from weightpkg.errors import StoreError
from weightpkg.package import File, FileSource, HfSource
from weightpkg.progress import Advance
from weightpkg.store import Store


@dataclass(frozen=True, slots=True)
class Places:
    """Where other tools keep model files, and directories that the user names.

    hubs: Hugging Face caches.
    ollama: Ollama's directories of models.
    directories: looked through for files by name and size.
    """

    hubs: tuple[Path, ...] = ()
    ollama: tuple[Path, ...] = ()
    directories: tuple[Path, ...] = ()

    @classmethod
    def of_machine(cls, environ: Mapping[str, str], home: Path) -> Places:
        """Where they are by these tools' own rules."""
        cache = Path(environ.get("XDG_CACHE_HOME") or home / ".cache")
        hub_home = Path(environ.get("HF_HOME") or cache / "huggingface")
        hub = Path(environ.get("HF_HUB_CACHE") or hub_home / "hub")
        ollama = environ.get("OLLAMA_MODELS")
        own = (Path(ollama),) if ollama else (home / ".ollama" / "models",)
        service = Path("/usr/share/ollama/.ollama/models")
        studio = (home / ".lmstudio" / "models", cache / "lm-studio" / "models")
        return cls(hubs=(hub,), ollama=(*own, service), directories=studio)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file that may be the right one.

    is_immutable: whether its owner never writes to it again, so that it may be shared.
    """

    path: Path
    is_immutable: bool


def find_candidates(file: File, places: Places) -> Iterator[Candidate]:
    """Yield the files of this machine that may be this one, the surest first."""
    for path in _by_digest(file, places):
        if _is_regular(path) and (file.size is None or path.stat().st_size == file.size):
            yield Candidate(path, is_immutable=True)
    for parts in file.sources:
        if len(parts) == 1 and isinstance(parts[0], FileSource):
            path = Path(parts[0].path)
            if path.is_absolute() and _is_regular(path):  # opening a pipe would wait for its writer
                yield Candidate(path, is_immutable=False)
    if file.size is not None:
        name = file.path.text.rpartition("/")[2]
        yield from (Candidate(p, is_immutable=False) for p in _by_name(name, file.size, places))


def _by_digest(file: File, places: Places) -> Iterator[Path]:
    if file.sha256 is None:
        return
    for ollama in places.ollama:
        yield ollama / "blobs" / f"sha256-{file.sha256.hex}"
    repositories = {
        f"models--{source.repo.replace('/', '--')}": source.path
        for parts in file.sources
        for source in parts
        if isinstance(source, HfSource) and len(parts) == 1
    }
    for hub in places.hubs:
        for repository, path in repositories.items():
            yield hub / repository / "blobs" / file.sha256.hex
            yield from sorted((hub / repository).glob(f"snapshots/*/{_escaped(path)}"))
        yield from sorted(hub.glob(f"models--*/blobs/{file.sha256.hex}"))


def _by_name(name: str, size: int, places: Places) -> Iterator[Path]:
    for directory in places.directories:
        paths = [directory] if directory.is_file() else sorted(directory.rglob(_escaped(name)))
        for path in paths:
            with suppress(OSError):
                if _is_regular(path) and path.stat().st_size == size:
                    yield path


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _is_regular(path: Path) -> bool:
    with suppress(OSError):
        return path.is_file()
    return False


def adopt(
    file: File, candidates: Iterable[Candidate], store: Store, advance: Advance
) -> tuple[Fingerprint, Candidate] | None:
    """Make the first candidate that has the file's digests its blob; None where there is none.

    Args:
        file: with a SHA-256; the digest's lock must be held.
        candidates: files to look at.
        store: where the blob goes.
        advance: called with the bytes read.

    Raises:
        StoreError: the store cannot be written.
    """
    for candidate in candidates:
        fingerprint = take(candidate, store, advance, expected=file)
        if fingerprint is not None:
            return fingerprint, candidate
    return None


def take(
    candidate: Candidate, store: Store, advance: Advance, *, expected: File | None = None
) -> Fingerprint | None:
    """Have a file's bytes in the store; the file itself is left as it is.

    Args:
        candidate: the file.
        store: where the blob goes.
        advance: called with the bytes read.
        expected: what it must be; anything, if not given.

    Returns:
        What it is; None where it is something else than expected, or cannot be read.

    Raises:
        StoreError: the store cannot be written.
    """
    # a second name of a symbolic link would be a link, too
    path = candidate.path.resolve()
    if not os.access(path, os.R_OK):
        return None
    shared = files.take(path, store.temporary, allow_hardlink=candidate.is_immutable)
    if shared is not None:
        with files.taken(shared) as new:
            return _publish(shared, new, store, expected, advance)
    with store.new_file() as copy:
        try:
            with path.open("rb", buffering=0) as stream:
                for piece in read_pieces(stream):
                    copy.write(piece)
        except OSError:
            return None  # there are other places, and other sources
        return _publish(copy.path, copy, store, expected, advance)


def _publish(
    path: Path, new: files.OpenFile, store: Store, expected: File | None, advance: Advance
) -> Fingerprint | None:
    """Make a new file of the store a blob, if it is what was expected."""
    hasher = Hasher()
    with files.mapped(path), path.open("rb", buffering=0) as stream:
        for piece in read_pieces(stream):
            hasher.update(piece)
            advance(len(piece))
    found = hasher.finish()
    if expected is not None and not _is_expected(expected, found):
        advance(-found.size)
        return None
    store.publish(new, found)
    return found


def _is_expected(file: File, found: Fingerprint) -> bool:
    return (
        file.sha256 == found.sha256
        and file.size in (None, found.size)
        and file.blake3 in (None, found.blake3)
    )


def walk_models(path: Path) -> Iterator[Path]:
    """Yield a file, or the files in a folder that may be models or belong to one, sorted.

    Raises:
        StoreError: there is no such file or folder.
    """
    if not path.exists():
        raise StoreError(f"`{path}`: no such file or folder")
    if path.is_file():
        yield path
        return
    for file in sorted(path.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        if file.is_file() and not hidden:
            yield file
