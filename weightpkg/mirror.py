"""A mirror: a directory of static files that is an index and a source for all that lockfiles need.

    index/<namespace>/             pages, aliases and licence texts, or a signed index's metadata and targets
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

import hashlib
import json
import os
import re
import shutil
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
    dump_contents,
    entry_of,
    gaps,
    lock_name,
    needed_by,
    read_contents,
    read_model_rows,
)
from weightpkg.digest import READ_SIZE, Digest, Fingerprint, sound_chunks
from weightpkg.errors import (
    DocumentError,
    FetchError,
    IntegrityError,
    ModelNotFoundError,
    ResolutionError,
    StoreError,
    WeightpkgError,
)
from weightpkg.index import Index
from weightpkg.install import convert_blobs
from weightpkg.license_policy import identifiers
from weightpkg.lockfile import LockedPackage, read_lockfile
from weightpkg.locking import check_roots, package_of
from weightpkg.manifest import Manifest
from weightpkg.package import UNKNOWN, File
from weightpkg.placing import place_file
from weightpkg.progress import Progress
from weightpkg.project import Indexes, find_project
from weightpkg.requirement import NormalizedName
from weightpkg.settings import Settings
from weightpkg.store import MANIFEST, InstalledFile, Store, placed_sources, tree_digest
from weightpkg.syncing import is_same_converter
from weightpkg.trust import SignedIndex
from weightpkg.verify import Expected, by_file, check_files

if TYPE_CHECKING:
    from weightpkg.fetch import Fetcher

STATE = ".weightpkg"
_SIGNED_PAGE = re.compile(
    r"index/(?P<index>[^/]+)/targets/models/[0-9a-f]{64}\.(?P<name>[a-z0-9-]+)\.toml\Z"
)
Action = Literal["there", "copy", "fetch", "convert"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A lockfile or a name, what it comes to, and the indexes that say so.

    lock: the lockfile's bytes; None for a name.
    """

    name: str
    packages: tuple[LockedPackage, ...]
    indexes: Indexes
    lock: bytes | None = None


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


def wanted_by_lock(path: Path, settings: Settings, warn: Callable[[str], None]) -> Wanted:
    """Return what a lockfile wants; its indexes are those of the project beside it, if there is one.

    Raises:
        DocumentError: it is not valid.
        StoreError: it cannot be read.
    """
    with files.mapped(path):
        content = path.read_bytes()
    lockfile = read_lockfile(content, source=path.name, warn=warn)
    project = find_project(path.absolute().parent)
    manifest, root = (project.manifest, project.root) if project else (Manifest(), Path.cwd())
    indexes = Indexes(root, manifest, settings)
    check_roots(lockfile, indexes.roots())
    return Wanted(path.name, lockfile.packages, indexes, content)


def wanted_by_name(name: str, settings: Settings) -> Wanted:
    """Return what a name wants: its default variant, if it has none.

    Raises:
        ResolutionError: there is no such model.
    """
    indexes = Indexes(Path.cwd(), Manifest(), settings)
    package = package_of(indexes.ask(name))
    return Wanted(package.key, (package,), indexes)


def without_models(wanted: Wanted) -> Wanted:
    """Return the same without converted models."""
    bare = (replace(package, conversion=None, tree=None) for package in wanted.packages)
    return replace(wanted, packages=tuple(bare))


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
        for namespace, (index, names) in _signed_indexes(wanted).items():
            _update(index, self.progress)
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
        if {entry.path.split("/", 2)[2] for entry in entries} != _names_in(path):
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
        for name in sorted(_names_in(source)):
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


def _signed_indexes(
    wanted: Iterable[Wanted],
) -> dict[NormalizedName, tuple[SignedIndex, set[str]]]:
    """The signed indexes among those that are wanted, with the names of models."""
    found: dict[NormalizedName, tuple[SignedIndex, set[str]]] = {}
    for one in wanted:
        for package in one.packages:
            index = one.indexes.index(package.index) if package.index else None
            if package.index and isinstance(index, SignedIndex):
                found.setdefault(package.index, (index, set()))[1].add(package.name)
    return found


def _update(index: SignedIndex, progress: Progress) -> None:
    """Bring a signed index up to date; where it cannot be reached, what is held has to do."""
    try:
        index.update()
    except FetchError as error:
        progress.note(f"the index is as it was when it was last reached: {error.message}")


def pages_of(package: LockedPackage, one: Wanted) -> Iterator[tuple[str, bytes]]:
    """Yield what an index publishes of a package: paths below a mirror, and bytes."""
    if package.index is None:
        return
    index = one.indexes.index(package.index)
    with suppress(ModelNotFoundError):  # it was taken out of the index; its lockfile still says all
        if isinstance(index, SignedIndex):
            published = index.published([package.name])
        else:
            published = _unsigned(package, index)
        for name, content in published:
            yield f"index/{package.index}/{name}", content


def _unsigned(package: LockedPackage, index: Index) -> Iterator[tuple[str, bytes]]:
    names = [f"models/{package.name}.toml"]
    names += [f"aliases/{alias}.toml" for alias in _aliases_of(package.name, index)]
    if package.license != UNKNOWN:
        leaves = identifiers(package.license)
        names += [f"licenses/{leaf.replace(' ', '-')}.txt" for leaf in leaves]
    for name in names:
        path = index.directory / name
        if path.is_file():
            with files.mapped(path):
                yield name, path.read_bytes()


def _aliases_of(model: NormalizedName, index: Index) -> Iterator[str]:
    """Yield the aliases that lead to a model; those that lead nowhere are passed over."""
    for alias in index.aliases():
        with suppress(ResolutionError, DocumentError):
            if index.target(NormalizedName(alias)) == model:
                yield alias


def _is(file: File, known: Fingerprint) -> bool:
    return file.size in (None, known.size) and file.blake3 in (None, known.blake3)


def _check_tree(package: LockedPackage, tree: Digest) -> None:
    if package.tree is not None and is_same_converter(package) and package.tree != tree:
        raise IntegrityError(
            f"`{package}` was converted to {tree}, and {package.tree} is locked",
            hint="if it is so again, the lockfile was made on a machine that converts otherwise: "
            "report it",
        )


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
    with files.mapped(target), source.open("rb") as stream, target.open("xb") as copy:
        shutil.copyfileobj(stream, copy, READ_SIZE)


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


def _names_in(directory: Path) -> set[str]:
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
