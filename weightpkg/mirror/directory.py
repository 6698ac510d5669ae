"""A mirror: a directory of static files that is an index and a source for all that lockfiles need.

    index/<namespace>/             pages, aliases and license texts, or a signed index's metadata and targets
    blobs/sha256/ab/<hex>          files of models; beside each its list of chunks
    models/<conversion key>/       converted models
    locks/<sha256>.lock            the lockfiles that it was made for
    mirror.toml                    what is here and for whom, written last: `contents`
    .weightpkg/                    what only whoever fills it needs; nobody serves it

Whatever has its final name is whole, so that an end at any point is gone on from by doing it again.
What was hashed is sealed as `seals` does: as long as nobody touched it, it is not hashed again. A need
that is not met in full is not in `mirror.toml`, and is an error in the end.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from weightpkg import files
from weightpkg.contents import (
    CONTENTS,
    Contents,
    Entry,
    Need,
    dump_contents,
    entry_of,
    gaps,
    needed_by,
    read_contents,
    read_model_rows,
)
from weightpkg.digest import READ_SIZE, Fingerprint, sound_chunks
from weightpkg.errors import (
    DocumentError,
    StoreError,
)
from weightpkg.progress import Progress
from weightpkg.store import MANIFEST, Store
from weightpkg.verify import Expected, by_file, check_files

STATE = ".weightpkg"


class Mirror:
    """A mirror in a directory."""

    def __init__(self, directory: Path) -> None:
        """Nothing is read or written yet."""
        self.directory = directory
        self.store = Store(directory / STATE, objects=directory)
        self.seals = Seals(directory)

    def contents(self) -> Contents:
        """What it has; nothing, where no mirror was finished.

        Raises:
            DocumentError: its list is damaged.
            StoreError: it cannot be read.
        """
        path = self.directory / CONTENTS
        if not path.exists():
            return Contents((), {})
        with files.mapped(path):
            content = path.read_bytes()
        return read_contents(content, source=str(path))

    @contextmanager
    def alone(self, progress: Progress) -> Iterator[None]:
        """Be the only one who changes it for the length of the `with`.

        Raises:
            StoreError: the directory cannot be written.
        """
        files.make_directory(self.directory)
        lock = self.directory / STATE / "locks" / "mirror.lock"
        waiting = f"another process works on `{self.directory}`; waiting for it"
        with files.lock(lock, on_wait=lambda: progress.note(waiting)), self.store.use():
            self.seals.read()
            try:
                yield
            finally:
                with suppress(StoreError):  # it is only the next one's time that is lost
                    self.seals.write(self.store)

    def write(self, name: str, content: bytes) -> Entry:
        """Have a small file; return what it is."""
        path = self.directory / name
        with files.mapped(path):
            is_there = path.is_file() and not path.is_symlink() and path.read_bytes() == content
        if not is_there:
            files.write_file(path, content, temporary=self.store.temporary, mode=0o444)
        return entry_of(name, content)

    def finish(self, contents: Contents) -> None:
        """Write what it has, the very last.

        Raises:
            DocumentError: it does not have what it says that it has.
        """
        if missing := gaps(contents):
            raise DocumentError(missing[0], source=CONTENTS, hint="run the same command again")
        self.write(CONTENTS, dump_contents(contents))


class Seals:
    """What the system says of files that were hashed; other facts mean that somebody touched them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / STATE / "sealed.json"
        self._facts: dict[str, str] = {}
        self._read: dict[str, str] = {}

    def read(self) -> None:
        """Read what earlier processes knew; what cannot be read is not known."""
        with suppress(OSError, ValueError):
            found = json.loads(self._path.read_bytes())
            self._facts = {str(name): str(facts) for name, facts in found.items()}
        self._read = dict(self._facts)

    def write(self, store: Store) -> None:
        """Keep it for the next process."""
        if self._facts != self._read:
            content = json.dumps(self._facts, indent=0, sort_keys=True).encode()
            files.write_file(self._path, content, temporary=store.temporary, is_name_durable=False)

    def has(self, path: Path) -> bool:
        """Whether a file is as it was when it was hashed."""
        facts = self._facts.get(self._name(path))
        return facts is not None and facts == _facts_of(path)

    def add(self, path: Path) -> None:
        """Remember that a file was hashed just now."""
        self._facts[self._name(path)] = _facts_of(path)

    def _name(self, path: Path) -> str:
        return path.relative_to(self._directory).as_posix()


def _facts_of(path: Path) -> str:
    with suppress(OSError):
        entry = path.lstat()
        return f"{entry.st_ino} {entry.st_size} {entry.st_mtime_ns} {entry.st_ctime_ns}"
    return ""


def is_sound(path: Path, known: Fingerprint, progress: Progress) -> bool:
    """Whether a file has the digests of all its chunks, and no bytes beyond them."""
    with files.mapped(path), progress.task(f"verifying {path.name[:12]}", known.size) as advance:
        if path.stat().st_size != known.size:
            return False
        good = sound_chunks(path, dict(enumerate(known.chunks)), advance=advance)
    return len(good) == len(known.chunks)


def copy_blob(source: Path, known: Fingerprint, store: Store, progress: Progress) -> bool:
    """Have a blob in another store, by a clone or a link where the disk can; whether it is whole."""
    shared = files.take(source, store.temporary, allow_hardlink=True)
    if shared is not None:
        with files.taken(shared) as new:
            is_good = is_sound(shared, known, progress)
            if is_good:
                store.publish(new, known)
            return is_good
    with store.new_file() as copy:
        with files.mapped(source), source.open("rb") as stream:
            while piece := stream.read(READ_SIZE):
                copy.write(piece)
        is_good = is_sound(copy.path, known, progress)
        if is_good:
            store.publish(copy, known)
        return is_good


def copy_file(source: Path, target: Path) -> None:
    """Clone a file, or copy it where the disk cannot: it has no second name, which onnx refuses."""
    with suppress(OSError):
        files.disk.reflink(source, target)
        return
    target.unlink(missing_ok=True)
    with files.mapped(target):
        shutil.copyfile(source, target)  # by the system, where it can


def model_entries(directory: Path, prefix: str) -> list[Entry]:
    """Return what a model directory says that its files are, itself included.

    Raises:
        StoreError: its manifest cannot be read.
    """
    path = directory / MANIFEST
    with files.mapped(path):
        content = path.read_bytes()
    try:
        rows, _ = read_model_rows(content, source=str(path))
    except DocumentError as error:
        raise StoreError(error.message, hint="remove the directory") from error
    listed = [replace(row, path=f"{prefix}/{row.path}") for row in rows]
    return [*listed, entry_of(f"{prefix}/{MANIFEST}", content)]


def names_in(directory: Path) -> set[str]:
    """Return the files below a directory, relative to it."""
    return {path.relative_to(directory).as_posix() for path, _ in files.walk(directory)}


def bad_files(
    directory: Path,
    entries: Iterable[Entry],
    chunks: dict[str, tuple[str, ...]],
    progress: Progress,
) -> list[str]:
    """Return the files that are not as they should be, each with what is wrong.

    Args:
        directory: of the mirror.
        entries: what to look at.
        chunks: lists of chunks, by path, of files of which they are known.
        progress: told of the bytes read.
    """
    expected = [
        Expected(directory / e.path, e.size, e.blake3, (), chunks=chunks.get(e.path, ()))
        for e in entries
    ]
    total = sum(one.size or 0 for one in expected)
    if not expected:
        return []
    with progress.task("verifying", total) as advance:
        return [
            f"{problem.kind}: `{problem.path.relative_to(directory).as_posix()}`"
            for problem in check_files(by_file(expected), advance)
            if problem.kind != "mode" or _others_may_write(problem.path)
        ]


def _others_may_write(path: Path) -> bool:
    """Whether anyone but a file's owner may write to it; a stick's file system knows no more."""
    return bool(path.stat().st_mode & 0o022)


def verify(mirror: Mirror, progress: Progress) -> list[str]:
    """Return all that is wrong with a mirror, offline: missing, damaged, unexpected, its modes.

    Raises:
        DocumentError: there is no list of what it has, or that is damaged.
        StoreError: it cannot be read.
    """
    if not (mirror.directory / CONTENTS).is_file():
        raise DocumentError(
            "is not there, so nothing says what should be",
            source=str(mirror.directory / CONTENTS),
            hint="`weightpkg mirror create` writes it when all is there",
        )
    contents = mirror.contents()
    chunks = {}
    for path, entry in contents.files.items():
        if path.startswith("blobs/") and entry.sha256 and f"{path}.chunks" in contents.files:
            known = mirror.store.fingerprint(entry.sha256)
            if known and known.blake3 == entry.blake3:
                chunks[path] = known.chunks
    bad = bad_files(mirror.directory, contents.files.values(), chunks, progress)
    extra = [f"unexpected: `{path}`" for path in unexpected(mirror, contents)]
    return sorted([*(f"incomplete: {gap}" for gap in gaps(contents)), *bad, *extra])


def unexpected(mirror: Mirror, contents: Contents) -> list[str]:
    """Return the files, links and whatever else a mirror has that its list does not."""
    found = []
    for parent, directories, names in os.walk(mirror.directory):
        place = Path(parent).relative_to(mirror.directory)
        if place == Path():
            directories[:] = [name for name in directories if name != STATE]
        links = [name for name in directories if (Path(parent) / name).is_symlink()]
        found += [(place / name).as_posix() for name in [*names, *links]]
    return sorted(set(found) - contents.files.keys() - {CONTENTS})


def plan_prune(mirror: Mirror, drop: Sequence[str]) -> tuple[Contents, list[str]]:
    """Return what a mirror shall have when some needs are dropped, and which files go then.

    Args:
        mirror: where.
        drop: names of needs, or the first digits of lockfiles' digests.

    Raises:
        DocumentError: the list is damaged, or has no such need.
    """
    old = mirror.contents()
    for text in drop:
        if not any(_is_called(need, text) for need in old.needs):
            known = ", ".join(f"`{need.name}`" for need in old.needs) or "nothing"
            raise DocumentError(
                f"nothing here is for `{text}`",
                source=str(mirror.directory / CONTENTS),
                hint=f"it is for {known}",
            )
    needs = tuple(n for n in old.needs if not any(_is_called(n, text) for text in drop))
    paths = {path for need in needs for path in needed_by(need, old.files)}
    contents = replace(old, needs=needs, files={p: e for p, e in old.files.items() if p in paths})
    return contents, unexpected(mirror, contents)


def _is_called(need: Need, text: str) -> bool:
    return need.name == text or (need.lock is not None and need.lock.hex.startswith(text.lower()))


def prune(mirror: Mirror, drop: Sequence[str], progress: Progress) -> tuple[list[str], int]:
    """Remove what nobody needs; return the files removed, and the bytes that this freed.

    Raises:
        DocumentError: the list is damaged, or has no such need.
        StoreError: something cannot be removed.
    """
    with mirror.alone(progress):
        contents, doomed = plan_prune(mirror, drop)
        mirror.finish(contents)  # first: it must never name what is gone
        freed = sum(mirror.store.remove(mirror.directory / name) for name in doomed)
        _remove_empty(mirror.directory, doomed)
    return doomed, freed


def _remove_empty(root: Path, removed: Iterable[str]) -> None:
    parents = {parent for name in removed for parent in (root / name).parents}
    inside = [path for path in parents if path != root and path.is_relative_to(root)]
    for path in sorted(inside, key=lambda path: -len(path.parts)):
        with suppress(OSError):  # it is not empty
            files.disk.rmdir(path)
