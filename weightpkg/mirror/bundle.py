"""A bundle: what a mirror would have in one file, for a disk that is carried; and what becomes of it.

`create` fetches and converts what the store does not have, and writes all of it in an order that is
always the same. `import_bundle` makes a mirror of it, member by member, each verified before it has its
name; nothing of it is believed because the bundle says so: blobs are hashed with the SHA-256 that is
their name, and converted models count only where a lockfile names their tree (`replacement`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from weightpkg import files
from weightpkg.contents import (
    CONTENTS,
    Contents,
    Entry,
    Need,
    Package,
    blob_name,
    dump_contents,
    entry_of,
    gaps,
    lock_name,
)
from weightpkg.digest import READ_SIZE, Digest, Hasher
from weightpkg.errors import (
    DigestMismatchError,
    DocumentError,
    IncompleteError,
    IntegrityError,
    StoreError,
    WeightpkgError,
)
from weightpkg.install import convert_model
from weightpkg.lockfile import LockedPackage
from weightpkg.mirror.bundle_file import (
    PATCHES,
    WHEELS,
    Bundle,
    BundleWriter,
    Listing,
    Patch,
)
from weightpkg.mirror.directory import Mirror, bad_files, copy_blob, model_entries
from weightpkg.mirror.patching import apply_patch, make_patch
from weightpkg.mirror.wanted import Wanted, pages_of
from weightpkg.package import File
from weightpkg.placing import place_file
from weightpkg.progress import Progress
from weightpkg.store import InstalledFile, Store, tree_digest
from weightpkg.syncing import is_same_converter

if TYPE_CHECKING:
    from weightpkg.fetch import Fetcher

_MAX_SMALL = 16 * 1024 * 1024
_MIN_PATCHED = 64 * 1024
_MODEL = re.compile(r"models/([0-9a-f]{64})/(.+)\Z")
_BLOB = re.compile(r"blobs/sha256/[0-9a-f]{2}/([0-9a-f]{64})(\.chunks)?\Z")

Source = Path | bytes


@dataclass(slots=True)
class Gathering:
    """What a bundle is to have, and where the bytes of each file are."""

    store: Store
    fetcher: Callable[[Path], Fetcher]
    progress: Progress
    files: dict[str, Entry] = field(default_factory=dict)
    sources: dict[str, Source] = field(default_factory=dict)
    gaps: list[str] = field(default_factory=list)

    def contents(self, wanted: Iterable[Wanted]) -> Contents:
        """Have in the store all that is wanted, and return it.

        Raises:
            IncompleteError: something cannot be had.
            StoreError: the store cannot be written.
        """
        needs = tuple(need for one in wanted if (need := self._need(one)))
        if self.gaps:
            raise IncompleteError(
                "the bundle", self.gaps, hint="nothing was written; what was fetched is kept"
            )
        contents = Contents(needs, self.files)
        if missing := gaps(contents):
            raise IncompleteError("the bundle", missing, hint="run the same command again")
        return contents

    def _need(self, one: Wanted) -> Need | None:
        before = len(self.gaps)
        packages = []
        for package in one.packages:
            try:
                packages.append(self._package(package, one))
            except StoreError:
                raise
            except WeightpkgError as error:
                self.gaps.append(f"`{package}`: {error.message}")
        if len(self.gaps) > before:
            return None
        lock = None
        if one.lock is not None:
            lock = Digest("sha256", hashlib.sha256(one.lock).hexdigest())
            self._add(entry_of(lock_name(lock), one.lock), one.lock)
        return Need(name=one.name, lock=lock, packages=tuple(packages))

    def _add(self, entry: Entry, source: Source) -> None:
        self.files[entry.path] = entry
        self.sources[entry.path] = source

    def _package(self, package: LockedPackage, one: Wanted) -> Package:
        fetcher = self.fetcher(one.indexes.directory(package.index))
        blobs = [self._blob(file, fetcher) for file in package.files]
        tree = self._model(package, blobs) if package.conversion else None
        pages = []
        for path, content in pages_of(package, one):
            self._add(entry_of(path, content), content)
            if "/metadata/" not in path:
                pages.append(path)
        return Package(
            name=package.key,
            license=package.license,
            files=tuple((file.path, file.sha256) for file in blobs),
            conversion=package.conversion if tree else None,
            tree=tree,
            pages=tuple(pages),
        )

    def _blob(self, file: File, fetcher: Fetcher) -> InstalledFile:
        found = fetcher.fetch(file)
        name, path = blob_name(found.sha256), self.store.blob_path(found.sha256)
        self._add(Entry(path=name, size=found.size, blake3=found.blake3, sha256=found.sha256), path)
        chunks = self.store.chunks_path(found.sha256)
        with files.mapped(chunks):
            content = chunks.read_bytes()
        self._add(entry_of(f"{name}.chunks", content), content)
        return InstalledFile(str(file.path), found.size, found.sha256, found.blake3)

    def _model(self, package: LockedPackage, blobs: Sequence[InstalledFile]) -> Digest | None:
        key = package.conversion or ""
        if self.store.model(key) is None and not is_same_converter(package):
            self.progress.note(
                f"{package} was locked with another converter: its model is left out"
            )
            return None
        path = convert_model(key, package.full_name, blobs, self.store, self.progress)
        tree = tree_digest(path)
        if package.tree not in (None, tree):
            raise IntegrityError(
                f"`{package}` was converted to {tree}, and {package.tree} is locked"
            )
        for entry in model_entries(path, f"models/{key}"):
            self._add(entry, path / entry.path.split("/", 2)[2])
        return tree


def create(
    wanted: Sequence[Wanted],
    output: Path,
    gathering: Gathering,
    *,
    base: Sequence[Path] = (),
    wheels: Sequence[Path] = (),
    volume_size: int | None = None,
) -> tuple[list[Path], Listing]:
    """Write a bundle; return its files and what it has.

    Args:
        wanted: what it is for.
        output: its name.
        gathering: where the bytes are had from, an empty one.
        base: volumes of the bundle that whoever imports it has imported before.
        wheels: files to carry beside it.
        volume_size: bytes of a volume.

    Raises:
        IncompleteError: something cannot be had; nothing is written.
        IntegrityError: what the store has is damaged.
        DocumentError: the base is no bundle.
        StoreError: the store or the output cannot be written.
    """
    store = gathering.store
    with store.use():
        contents = gathering.contents(wanted)
        document = dump_contents(contents)
        listing = Listing(entry_of(CONTENTS, document), tuple(contents.files.values()))
        sources = gathering.sources | {CONTENTS: document}
        listing = _once(listing)
        if base:
            with Bundle(base) as old:
                listing, patches = _against(old, contents, listing, sources, store)
            sources |= patches
        for path in wheels:
            entry = _entry_of_file(f"{WHEELS}{path.name}", path)
            listing = replace(listing, members=(*listing.members, entry))
            sources[entry.path] = path
        return _write(listing, sources, output, volume_size, gathering.progress), listing


def _once(listing: Listing) -> Listing:
    """Return a listing that carries the same bytes once: weights that a model uses as they are."""
    first: dict[Digest, str] = {}
    members, copies = [], list(listing.copies)
    for entry in sorted(listing.members, key=lambda entry: entry.path):
        path = first.setdefault(entry.blake3, entry.path)
        if path == entry.path or entry.size < _MIN_PATCHED:
            members.append(entry)
        else:
            copies.append((entry.path, path))
    return replace(listing, members=tuple(members), copies=tuple(copies))


def _write(
    listing: Listing,
    sources: dict[str, Source],
    output: Path,
    volume_size: int | None,
    progress: Progress,
) -> list[Path]:
    carried = listing.carried()
    total = sum(entry.size for entry in carried)
    with (
        BundleWriter(output, volume_size) as writer,
        progress.task(f"writing {output.name}", total) as advance,
    ):
        writer.start(listing)
        for entry in carried:
            writer.add(entry, _counted(_pieces(sources[entry.path]), advance))
        return writer.finish()


def _pieces(source: Source) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    with files.mapped(source), source.open("rb") as stream:
        while piece := stream.read(READ_SIZE):
            yield piece


def _counted(pieces: Iterator[bytes], advance: Callable[[int], None]) -> Iterator[bytes]:
    for piece in pieces:
        yield piece
        advance(len(piece))


def _entry_of_file(name: str, path: Path) -> Entry:
    hasher = Hasher()
    for piece in _pieces(path):
        hasher.update(piece)
    found = hasher.finish()
    return Entry(path=name, size=found.size, blake3=found.blake3, sha256=found.sha256)


def _against(
    old: Bundle, contents: Contents, listing: Listing, sources: dict[str, Source], store: Store
) -> tuple[Listing, dict[str, Source]]:
    """Return a listing of what is new, and the patches that it has."""
    # the first of a name is a blob, where there is one
    had = sorted(old.contents.files.items(), reverse=True)
    same = {entry.blake3: path for path, entry in had}
    like = _likes(old.contents)
    names = _roles(contents)
    members, patches = [], []
    copies = [copy for copy in listing.copies if contents.files[copy[0]].blake3 not in same]
    own = {path for path, _ in copies}
    made: dict[str, Source] = {}
    for path, entry in contents.files.items():
        if path in own:
            continue
        if entry.blake3 in same:
            copies.append((path, same[entry.blake3]))
            continue
        base = like.get(names.get(path, ("", "")))
        patch = _patch(old, base, entry, sources[path], store) if base else None
        if patch is None or base is None:
            members.append(entry)
            continue
        member = entry_of(f"{PATCHES}{path}", patch)
        patches.append(Patch(member, path, base))
        made[member.path] = patch
    return (
        Listing(listing.contents, tuple(members), tuple(patches), tuple(copies), old.digest),
        made,
    )


def _roles(contents: Contents) -> dict[str, tuple[str, str]]:
    """What each file is for: its package without the version, and what it is called there."""
    found = {}
    for need in contents.needs:
        for package in need.packages:
            model = package.name.partition("==")[0]
            for name, digest in package.files:
                found[blob_name(digest)] = (model, name)
            if package.conversion:
                prefix = f"models/{package.conversion}/"
                inside = (path for path in contents.files if path.startswith(prefix))
                found |= {path: (model, f"onnx:{path.removeprefix(prefix)}") for path in inside}
    return found


def _likes(contents: Contents) -> dict[tuple[str, str], str]:
    """The path of the file that has each role; the last one, where several releases have it."""
    return {role: path for path, role in sorted(_roles(contents).items())}


def _patch(old: Bundle, base: str, entry: Entry, source: Source, store: Store) -> bytes | None:
    was = old.contents.files[base]
    if base not in old.offsets or min(was.size, entry.size) < _MIN_PATCHED:
        return None  # a base that is told by another one itself has no bytes to compare
    with files.scratch_directory(store.temporary) as scratch:
        unpacked = scratch / "base"
        with unpacked.open("wb") as stream:
            for piece in old.pieces(was):
                stream.write(piece)
        new = source
        if isinstance(new, bytes):
            new = scratch / "new"
            new.write_bytes(b"".join(_pieces(source)))
        with unpacked.open("rb") as one, new.open("rb") as other:
            return make_patch(one, was.size, other, entry.size)


def verify_bundle(paths: Sequence[Path], progress: Progress) -> Bundle:
    """Check every byte of a bundle; return what it says.

    Raises:
        DocumentError: it is no bundle, or something of it is not right.
        IntegrityError: it is cut, or a member has another digest.
        IncompleteError: it does not have all that it is for.
        StoreError: it cannot be read.
    """
    with Bundle(paths) as bundle:
        if missing := gaps(bundle.contents):
            raise IncompleteError(bundle.name, missing, hint="make the bundle again")
        total = sum(entry.size for entry in bundle.carried)
        with progress.task("verifying", total) as advance:
            for entry in bundle.carried:
                for piece in bundle.pieces(entry):
                    advance(len(piece))
        bundle.check_end()
        return bundle


def import_bundle(
    paths: Sequence[Path], mirror: Mirror, store: Store | None, progress: Progress
) -> Contents:
    """Have in a mirror what a bundle has, and its blobs in a store, too.

    Args:
        paths: the volumes.
        mirror: where it goes; a bundle that is new to its base needs what that brought here.
        store: where blobs go besides; None for nowhere.
        progress: told of each step.

    Raises:
        DocumentError: it is no bundle, or something of it is not right.
        IntegrityError: bytes are not what the bundle says, or what the base should have brought.
        IncompleteError: it does not have all that it is for.
        StoreError: the mirror or the store cannot be written.
    """
    with Bundle(paths) as bundle, mirror.alone(progress):
        if missing := gaps(bundle.contents):
            raise IncompleteError(bundle.name, missing, hint="make the bundle again")
        bundle.check_end()
        old = mirror.contents()
        importing = _Importing(bundle, mirror, progress, dict(old.files))
        importing.run()
        needs = {need.key: need for need in (*old.needs, *bundle.contents.needs)}
        contents = Contents(tuple(needs.values()), importing.files)
        mirror.finish(contents)
        if store is not None:
            _into_store(bundle.contents, mirror, store, progress)
        return contents


def _into_store(contents: Contents, mirror: Mirror, store: Store, progress: Progress) -> None:
    with store.use():
        for path, entry in contents.files.items():
            match = _BLOB.match(path)
            if match and not match[2] and entry.sha256 and not store.blob(entry.sha256):
                known = mirror.store.fingerprint(entry.sha256)
                if known:
                    copy_blob(mirror.store.blob_path(entry.sha256), known, store, progress)


@dataclass(slots=True)
class _Importing:
    """A bundle on its way into a mirror."""

    bundle: Bundle
    mirror: Mirror
    progress: Progress
    files: dict[str, Entry]

    def run(self) -> None:
        contents = self.bundle.contents
        total = sum(entry.size for entry in contents.files.values())
        models: dict[str, list[Entry]] = {}
        with self.progress.task(f"importing {Path(self.bundle.name).name}", total) as advance:
            for path, entry in sorted(contents.files.items()):
                if match := _MODEL.match(path):
                    models.setdefault(match[1], []).append(entry)
                elif not path.endswith(".chunks") or not path.startswith("blobs/"):
                    self._one(entry)
                    advance(entry.size)
            for key, entries in models.items():
                self._model(key, entries)
                advance(sum(entry.size for entry in entries))

    def _one(self, entry: Entry) -> None:
        if _BLOB.match(entry.path):
            self._blob(entry)
        elif entry.size > _MAX_SMALL:
            raise DocumentError(f"`{entry.path}` is too large", source=self.bundle.name)
        else:
            content = b"".join(self._pieces(entry))
            found = entry_of(entry.path, content)
            if entry.sha256 != found.sha256:
                raise DigestMismatchError(
                    entry.path, expected=str(entry.sha256), found=str(found.sha256)
                )
            self.files[entry.path] = self.mirror.write(entry.path, content)

    def _blob(self, entry: Entry) -> None:
        digest = entry.sha256
        if digest is None or blob_name(digest) != entry.path:
            raise DocumentError(
                f"`{entry.path}` is listed with another digest", source=self.bundle.name
            )
        store, path = self.mirror.store, self.mirror.store.blob_path(digest)
        known = store.fingerprint(digest)
        if known is None or known.blake3 != entry.blake3 or not self._is_whole(entry):
            hasher = Hasher()  # with SHA-256: a bundle is not believed what its blobs are called
            with store.new_file() as new:
                for piece in self._pieces(entry):
                    hasher.update(piece)
                    new.write(piece)
                known = hasher.finish()
                if known.sha256 != digest or known.size != entry.size:
                    raise DigestMismatchError(
                        f"{self.bundle.name}: {entry.path}",
                        expected=str(digest),
                        found=str(known.sha256),
                    )
                store.publish(new, known)
        self.mirror.seals.add(path)
        self.files[entry.path] = entry
        chunks = f"{entry.path}.chunks"
        self.files[chunks] = entry_of(chunks, store.chunks_path(digest).read_bytes())

    def _is_whole(self, entry: Entry) -> bool:
        if self.mirror.seals.has(self.mirror.directory / entry.path):
            return True
        return not bad_files(self.mirror.directory, [entry], {}, self.progress)

    def _model(self, key: str, entries: Sequence[Entry]) -> None:
        path = self.mirror.store.model_path(key)
        is_there = path.exists() and all(self._is_whole(entry) for entry in entries)
        if not is_there:
            if path.exists():
                self.mirror.store.remove(path)
            with self.mirror.store.new_model(key) as new:
                for entry in entries:
                    self._write(entry, new / entry.path.split("/", 2)[2])
        for entry in entries:
            self.files[entry.path] = entry
            self.mirror.seals.add(self.mirror.directory / entry.path)

    def _write(self, entry: Entry, path: Path) -> None:
        files.make_directory(path.parent, is_durable=False)
        base = dict(self.bundle.listing.copies).get(entry.path, "")
        if _BLOB.match(base) and base in self.bundle.contents.files:
            place_file(self.mirror.directory / base, path)  # it was verified, and is the same
            return
        with files.mapped(path), path.open("xb") as stream:
            for piece in self._pieces(entry):
                stream.write(piece)

    def _pieces(self, entry: Entry) -> Iterator[bytes]:
        """Yield the bytes of a file of the contents, whatever way the bundle tells them."""
        listing = self.bundle.listing
        copies = dict(listing.copies)
        patches = {patch.path: patch for patch in listing.patches}
        if entry.path in copies:
            yield from self._checked(entry, self._from_base(copies[entry.path], None, entry))
        elif patch := patches.get(entry.path):
            content = b"".join(self.bundle.pieces(patch.member))
            yield from self._checked(entry, self._from_base(patch.base, content, entry))
        else:
            yield from self.bundle.pieces(entry)

    def _from_base(self, name: str, patch: bytes | None, entry: Entry) -> Iterator[bytes]:
        with self._base(name) as (stream, size):
            if patch is not None:
                yield from apply_patch(patch, stream, size, entry.size)
                return
            if size != entry.size:
                raise self._no_base(name)
            while piece := stream.read(READ_SIZE):
                yield piece

    @contextmanager
    def _base(self, name: str) -> Iterator[tuple[BinaryIO, int]]:
        path = self.mirror.directory / name
        if not path.is_file() or path.is_symlink():
            raise self._no_base(name)
        with files.mapped(path):
            stream = path.open("rb")
        with stream:
            yield stream, path.stat().st_size

    def _no_base(self, name: str) -> IntegrityError:
        base = self.bundle.listing.base
        return IntegrityError(
            f"`{self.bundle.name}` has only what is new, and `{name}` of its base is not in "
            f"`{self.mirror.directory}`",
            hint=f"import the bundle before it first; it is called {base.hex[:16] if base else ''}",
        )

    def _checked(self, entry: Entry, pieces: Iterator[bytes]) -> Iterator[bytes]:
        hasher = Hasher()
        for piece in pieces:
            hasher.update(piece)
            yield piece
        found = hasher.finish()
        if found.blake3 != entry.blake3:
            raise DigestMismatchError(
                entry.path,
                expected=str(entry.blake3),
                found=str(found.blake3),
                hint="what the base brought is damaged: `weightpkg mirror verify` says where",
            )
