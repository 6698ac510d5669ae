"""Having in a mirror all that lockfiles and names need: what is there, in the store, or to be fetched.

A plan says what will be done. Whatever cannot be had is a `Gap`, and what needs it is left out of the
mirror's list; a disk that takes no more ends it all. `mirror` says what a mirror is.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from weightpkg import files
from weightpkg.contents import (
    CONTENTS,
    Contents,
    Entry,
    Need,
    Package,
    blob_name,
    entry_of,
    lock_name,
)
from weightpkg.digest import Digest, Fingerprint
from weightpkg.errors import (
    IntegrityError,
    ModelNotFoundError,
    StoreError,
    WeightpkgError,
)
from weightpkg.install import convert_blobs
from weightpkg.lockfile import LockedPackage
from weightpkg.mirror.directory import (
    Mirror,
    bad_files,
    copy_blob,
    copy_file,
    is_sound,
    model_entries,
    names_in,
)
from weightpkg.mirror.wanted import Wanted, pages_of, signed_indexes, update_index
from weightpkg.package import File
from weightpkg.placing import place_file
from weightpkg.progress import Progress
from weightpkg.requirement import NormalizedName
from weightpkg.store import MANIFEST, InstalledFile, Store, placed_sources, tree_digest
from weightpkg.syncing import is_same_converter
from weightpkg.trust.index import SignedIndex

if TYPE_CHECKING:
    from weightpkg.fetch import Fetcher

_SIGNED_PAGE = re.compile(
    r"index/(?P<index>[^/]+)/targets/models/[0-9a-f]{64}\.(?P<name>[a-z0-9-]+)\.toml\Z"
)
Action = Literal["there", "copy", "fetch", "convert"]


@dataclass(frozen=True, slots=True)
class Step:
    """What is to be done for a file or a converted model, and its bytes, where they are known."""

    name: str
    action: Action
    size: int | None


@dataclass(frozen=True, slots=True)
class Gap:
    """Something that could not be had, and what needs it."""

    name: str
    needed_by: str
    error: WeightpkgError

    def __str__(self) -> str:
        return f"`{self.name}` for `{self.needed_by}`: {self.error.message}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a mirror has in the end, and what it should have had as well."""

    contents: Contents
    gaps: tuple[Gap, ...]


def plan_create(wanted: Iterable[Wanted], mirror: Mirror, store: Store) -> list[Step]:
    """Say what is to be done for all that is wanted to be there; nothing is touched or hashed.

    Args:
        wanted: what it is for; without conversions, models are left as they are.
        mirror: where it shall be.
        store: what may have it already.
    """
    steps: dict[str, Step] = {}
    for package in _packages(wanted):
        for file in package.files:
            if file.sha256:
                steps.setdefault(file.sha256.hex, _blob_step(file, file.sha256, mirror, store))
        if package.conversion:
            steps.setdefault(package.conversion, _model_step(package, mirror, store))
    return list(steps.values())


def _packages(wanted: Iterable[Wanted]) -> list[LockedPackage]:
    return list(dict.fromkeys(package for one in wanted for package in one.packages))


def _blob_step(file: File, digest: Digest, mirror: Mirror, store: Store) -> Step:
    if mirror.store.blob(digest):
        return Step(str(file.path), "there", file.size)
    return Step(str(file.path), "copy" if store.blob(digest) else "fetch", file.size)


def _model_step(package: LockedPackage, mirror: Mirror, store: Store) -> Step:
    key = package.conversion or ""
    if path := mirror.store.model(key):
        return Step(f"{package} as ONNX", "there", files.tree_size(path))
    if path := store.model(key):
        return Step(f"{package} as ONNX", "copy", files.tree_size(path))
    return Step(f"{package} as ONNX", "convert", None)


def create(
    wanted: Sequence[Wanted],
    mirror: Mirror,
    store: Store,
    fetcher: Callable[[Path], Fetcher],
    progress: Progress,
) -> Outcome:
    """Have in a mirror all that is wanted, beside what it has.

    Args:
        wanted: what it is for; packages without a conversion get no converted model.
        mirror: where.
        store: what may have blobs and models already; it is only read.
        fetcher: makes what fetches into the mirror, for the directory of an index.
        progress: told of each step.

    Raises:
        StoreError: the directory cannot be written.
        DocumentError: what the mirror says that it has is damaged.
    """
    if mirror.directory.resolve() == store.root.resolve():
        raise StoreError(f"`{mirror.directory}` is the store", hint="give the mirror its own place")
    with mirror.alone(progress), held(store):
        old = mirror.contents()
        filling = _Filling(mirror, store, fetcher, progress, dict(old.files))
        filling.publish_signed(wanted, old)
        needs = {need.key: filling.with_pages(need) for need in old.needs}
        for one in wanted:
            if need := filling.need(one):
                needs[need.key] = need
        contents = Contents(tuple(needs.values()), filling.files)
        if needs or (mirror.directory / CONTENTS).exists():
            mirror.finish(contents)
    return Outcome(contents, tuple(filling.gaps))


@contextmanager
def held(store: Store) -> Iterator[None]:
    """Have nothing collected of a store for the length of the `with`, if that can be written."""
    with ExitStack() as stack:
        with suppress(StoreError):
            stack.enter_context(store.use())
        yield


@dataclass(slots=True)
class _Filling:
    """A mirror while it is filled; `files` are all that it will have, `gaps` what it will not."""

    mirror: Mirror
    store: Store
    fetcher: Callable[[Path], Fetcher]
    progress: Progress
    files: dict[str, Entry]
    gaps: list[Gap] = field(default_factory=list)
    _blobs: dict[Digest, Fingerprint] = field(default_factory=dict)
    _models: dict[str, Digest] = field(default_factory=dict)
    _signed: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)

    def publish_signed(self, wanted: Sequence[Wanted], old: Contents) -> None:
        """Have what signed indexes publish today: for what is wanted, and for all that was before.

        Their metadata is one whole, so what was mirrored of another time must not stay beside it.
        """
        for namespace, (index, names) in signed_indexes(wanted).items():
            update_index(index, self.progress)
            before = (_SIGNED_PAGE.match(path) for path in old.files)
            names |= {match["name"] for match in before if match and match["index"] == namespace}
            files = dict(self._published(namespace, index, names))
            prefix = f"index/{namespace}/"
            self.files = {p: e for p, e in self.files.items() if not p.startswith(prefix)} | files

    def _published(
        self, namespace: str, index: SignedIndex, names: Iterable[str]
    ) -> Iterator[tuple[str, Entry]]:
        written: dict[str, Entry] = {}
        for name in sorted(names):
            pages = []
            with suppress(ModelNotFoundError):  # it was taken out of the index
                for path, content in index.published([NormalizedName(name)]):
                    place = f"index/{namespace}/{path}"
                    if place not in written:
                        written[place] = self.mirror.write(place, content)
                    pages += [] if path.startswith("metadata/") else [place]
            self._signed[namespace, name] = tuple(pages)
        yield from written.items()

    def with_pages(self, need: Need) -> Need:
        """Return a need with the pages that its packages have today."""
        return replace(need, packages=tuple(map(self._with_pages, need.packages)))

    def _with_pages(self, package: Package) -> Package:
        for page in package.pages:
            if match := _SIGNED_PAGE.match(page):
                own = self._signed.get((match["index"], match["name"]))
                return package if own is None else replace(package, pages=own)
        return package

    def need(self, one: Wanted) -> Need | None:
        """Have all of one lockfile or name; None where something of it cannot be had."""
        packages = [self._package(package, one) for package in one.packages]
        whole = [package for package in packages if package is not None]
        if len(whole) < len(packages):
            return None
        lock = None
        if one.lock is not None:
            lock = Digest("sha256", hashlib.sha256(one.lock).hexdigest())
            self._write(lock_name(lock), one.lock)
        return Need(name=one.name, lock=lock, packages=tuple(whole))

    def _package(self, package: LockedPackage, one: Wanted) -> Package | None:
        directory = one.indexes.directory(package.index)
        before = len(self.gaps)
        blobs = []
        for file in package.files:
            with self._gap(str(file.path), package):
                blobs.append((file, self._blob(file, self.fetcher(directory))))
        tree = None
        if package.conversion and len(self.gaps) == before:
            with self._gap(f"{package} as ONNX", package):
                tree = self._model(package, blobs)
        if len(self.gaps) > before:
            return None
        return Package(
            name=package.key,
            license=package.license,
            files=tuple((str(file.path), found.sha256) for file, found in blobs),
            conversion=package.conversion if tree else None,
            tree=tree,
            pages=tuple(self._pages(package, one)),
        )

    @contextmanager
    def _gap(self, name: str, package: LockedPackage) -> Iterator[None]:
        """Go on without something; but a disk that takes no more ends it all."""
        try:
            yield
        except StoreError:
            raise
        except WeightpkgError as error:
            self.gaps.append(Gap(name, str(package), error))
            self.progress.note(f"missing: {self.gaps[-1]}")

    def _write(self, name: str, content: bytes) -> None:
        self.files[name] = self.mirror.write(name, content)

    def _blob(self, file: File, fetcher: Fetcher) -> Fingerprint:
        digest = file.sha256
        if digest is None:
            raise ValueError(f"a locked file has a digest, and {file.path} has none")
        if digest not in self._blobs:
            found = self._sound(file, digest) or self._copied(file, digest)
            if found is None:
                is_there = self.mirror.store.blob(digest) is not None
                found = fetcher.fetch(file, is_damaged=is_there)
            self._blobs[digest] = found
            self._list_blob(found)
        return self._blobs[digest]

    def _list_blob(self, found: Fingerprint) -> None:
        name = blob_name(found.sha256)
        path = self.mirror.store.chunks_path(found.sha256)
        with files.mapped(path):
            chunks = path.read_bytes()
        self.mirror.seals.add(self.mirror.store.blob_path(found.sha256))
        self.files[f"{name}.chunks"] = entry_of(f"{name}.chunks", chunks)
        self.files[name] = Entry(
            path=name, size=found.size, blake3=found.blake3, sha256=found.sha256
        )

    def _sound(self, file: File, digest: Digest) -> Fingerprint | None:
        """Return what is known of a blob that is here and whole."""
        path = self.mirror.store.blob(digest)
        known = self.mirror.store.fingerprint(digest)
        if path is None or path.is_symlink() or known is None or not _is(file, known):
            return None
        if self.mirror.seals.has(path):
            return known
        return known if is_sound(path, known, self.progress) else None

    def _copied(self, file: File, digest: Digest) -> Fingerprint | None:
        """Have a blob of the store here, too; None where that has none that is whole."""
        source, known = self.store.blob(digest), self.store.fingerprint(digest)
        if source is None or known is None or not _is(file, known):
            return None
        return known if copy_blob(source, known, self.mirror.store, self.progress) else None

    def _model(
        self, package: LockedPackage, blobs: Sequence[tuple[File, Fingerprint]]
    ) -> Digest | None:
        """Have a converted model; return its tree, None where only another version can make it."""
        key = package.conversion or ""
        if key in self._models:
            return self._models[key]
        path = self.mirror.store.model_path(key)
        if not self._has_model(package, path):
            if path.exists():
                self.mirror.store.remove(path)
            if not self._copy_model(package, path) and not self._convert(package, blobs):
                return None
        tree = tree_digest(path)
        _check_tree(package, tree)
        self._models[key] = tree
        for entry in model_entries(path, f"models/{key}"):
            self.files[entry.path] = entry
            self.mirror.seals.add(self.mirror.directory / entry.path)
        return tree

    def _has_model(self, package: LockedPackage, path: Path) -> bool:
        if not (path / MANIFEST).is_file() or package.tree not in (None, tree_digest(path)):
            return False
        try:
            entries = model_entries(path, f"models/{path.name}")
        except StoreError:
            return False
        if {entry.path.split("/", 2)[2] for entry in entries} != names_in(path):
            return False
        if any(self.files.get(entry.path, entry) != entry for entry in entries):
            return False  # it is not what the mirror said that it has
        touched = [e for e in entries if not self.mirror.seals.has(self.mirror.directory / e.path)]
        return not bad_files(self.mirror.directory, touched, {}, self.progress)

    def _copy_model(self, package: LockedPackage, path: Path) -> bool:
        """Have a model of the store here, too; whether that has it, and it is what was locked."""
        source = self.store.model(path.name)
        if source is None or (package.tree and tree_digest(source) != package.tree):
            return False
        with files.scratch_directory(self.mirror.store.temporary) as new:
            self._copy_files(source, new, package)
            entries = model_entries(new, new.name)
            if bad_files(new.parent, entries, {}, self.progress):
                self.progress.note(f"the store's `{package}` as ONNX is damaged; converting it")
                return False
            files.publish_directory(new, path)
        return True

    def _copy_files(self, source: Path, new: Path, package: LockedPackage) -> None:
        placed = placed_sources(source)
        in_place = {
            file.path.text: self.mirror.store.blob_path(file.sha256)
            for file in package.files
            if file.sha256 and file.sha256.hex in placed
        }
        for name in sorted(names_in(source)):
            files.make_directory((new / name).parent, is_durable=False)
            if blob := in_place.get(name):
                place_file(blob, new / name)
            else:
                copy_file(source / name, new / name)

    def _convert(self, package: LockedPackage, blobs: Sequence[tuple[File, Fingerprint]]) -> bool:
        if not is_same_converter(package):
            self.progress.note(
                f"{package} was locked with converter {package.converter}: its converted model is "
                "left out"
            )
            return False
        sources = [
            InstalledFile(str(file.path), found.size, found.sha256, found.blake3)
            for file, found in blobs
        ]
        with self.mirror.store.new_model(package.conversion or "") as new:
            convert_blobs(package.full_name, sources, self.mirror.store, new, self.progress)
        return True

    def _pages(self, package: LockedPackage, one: Wanted) -> Iterator[str]:
        if (signed := self._signed.get((package.index or "", package.name))) is not None:
            yield from signed
            return
        for path, content in pages_of(package, one):
            self._write(path, content)
            if "/metadata/" not in path:
                yield path


def _is(file: File, known: Fingerprint) -> bool:
    return file.size in (None, known.size) and file.blake3 in (None, known.blake3)


def _check_tree(package: LockedPackage, tree: Digest) -> None:
    if package.tree is not None and is_same_converter(package) and package.tree != tree:
        raise IntegrityError(
            f"`{package}` was converted to {tree}, and {package.tree} is locked",
            hint="if it is so again, the lockfile was made on a machine that converts otherwise: "
            "report it",
        )
