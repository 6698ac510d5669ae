"""A project on disk: where its files are, its indexes, and its lockfile read and written.

A project is the nearest directory upwards that has a `weights.toml`, or a `pyproject.toml` with
`[tool.weightpkg]`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from weightpkg import files
from weightpkg.config import IndexConfig, directory_of
from weightpkg.confusable import check_distinct, lookalike
from weightpkg.digest import Fingerprint
from weightpkg.errors import NamespaceNotFoundError, ProjectError
from weightpkg.index import Index
from weightpkg.lockfile import (
    DEFAULT_INDEX,
    LOCKFILE,
    LockedPackage,
    Lockfile,
    dump_lockfile,
    read_lockfile,
)
from weightpkg.locking import Locking, Offer, Upgrade, check_license, plan_lock
from weightpkg.manifest import MANIFEST, PYPROJECT, Manifest, has_table, read_manifest
from weightpkg.package import File, Model, Release, Resolved
from weightpkg.progress import Progress
from weightpkg.reference import ListRepository, is_reference, resolve_reference
from weightpkg.requirement import NormalizedName, Requirement
from weightpkg.settings import Settings
from weightpkg.store import Store, tree_digest

_DEFAULT = NormalizedName(DEFAULT_INDEX)


@dataclass(frozen=True)
class Project:
    """A project, by the path of its manifest."""

    manifest_path: Path

    @property
    def root(self) -> Path:
        """Its directory."""
        return self.manifest_path.parent

    @property
    def lockfile_path(self) -> Path:
        """Where its lockfile is, or would be."""
        return self.root / LOCKFILE

    @cached_property
    def manifest(self) -> Manifest:
        """What it wants; read once.

        Raises:
            DocumentError: the manifest is not valid.
            StoreError: it cannot be read.
        """
        with files.mapped(self.manifest_path):
            content = self.manifest_path.read_bytes()
        return read_manifest(content, source=self.manifest_path.name)

    def lockfile(self, warn: Callable[[str], None]) -> Lockfile:
        """What it uses.

        Raises:
            ProjectError: nothing is locked.
            DocumentError: the lockfile is not valid.
        """
        if not self.lockfile_path.exists():
            raise ProjectError(
                f"`{self.root}` has no {LOCKFILE}", hint="`weightpkg lock` writes it"
            )
        return load_lockfile(self.lockfile_path, warn)

    def old_lockfile(self, warn: Callable[[str], None]) -> Lockfile:
        """What it uses, or an empty lockfile where nothing is locked.

        Raises:
            DocumentError: the lockfile is not valid.
        """
        return self.lockfile(warn) if self.lockfile_path.exists() else Lockfile()

    def write(self, path: Path, content: bytes) -> bool:
        """Write one of its files, all or nothing; return whether it was another one before."""
        with files.mapped(path):
            if path.exists() and path.read_bytes() == content:
                return False
        files.write_file(path, content, temporary=path.parent)
        return True

    def write_lockfile(self, lockfile: Lockfile) -> bool:
        """Write the lockfile; return whether it was another one before."""
        return self.write(self.lockfile_path, dump_lockfile(lockfile))


def load_lockfile(path: Path, warn: Callable[[str], None]) -> Lockfile:
    """Read a lockfile.

    Raises:
        DocumentError: it is not valid.
        StoreError: it cannot be read.
    """
    with files.mapped(path):
        content = path.read_bytes()
    return read_lockfile(content, source=path.name, warn=warn)


def find_project(start: Path) -> Project | None:
    """Return the project that a directory is in, None where it is in none.

    Raises:
        DocumentError: a pyproject.toml on the way cannot be read.
    """
    start = start.absolute()
    for directory in (start, *start.parents):
        if (path := directory / MANIFEST).is_file():
            return Project(path)
        path = directory / PYPROJECT
        if path.is_file():
            with files.mapped(path):
                content = path.read_bytes()
            if has_table(content, source=str(path)):
                return Project(path)
    return None


def current_project() -> Project | None:
    """Return the project that this process is in; a directory that is gone is in none.

    Raises:
        DocumentError: a pyproject.toml on the way cannot be read.
    """
    try:
        here = Path.cwd()
    except FileNotFoundError:
        return None
    return find_project(here)


def require_project(start: Path) -> Project:
    """Return the project that a directory is in.

    Raises:
        ProjectError: it is in none.
    """
    project = find_project(start)
    if project is None:
        raise ProjectError(
            f"`{start}` is not in a project",
            hint=f"`weightpkg init` makes a {MANIFEST}, `weightpkg add NAME` does so too",
        )
    return project


class Indexes:
    """The default index, and those of the namespaces that a project names."""

    def __init__(self, root: Path, manifest: Manifest, settings: Settings) -> None:
        """Find out where they are, some of them relative to a project's root; nothing is read."""
        self._indexes = {_DEFAULT: settings.index(), **settings.namespaces()}
        configured = {config.name: config for config in settings.config().indexes}
        for name, location in manifest.indexes:
            if name == _DEFAULT:
                raise ProjectError(
                    f"`{DEFAULT_INDEX}` is the index without a prefix",
                    hint="WEIGHTPKG_INDEX says where that one is; give this one another name",
                )
            if name in configured:
                _check_same(name, location, configured[name], root)
            else:
                self._indexes[name] = Index(root / _directory(name, location))
        check_distinct(self._indexes)

    def directory(self, name: NormalizedName | None) -> Path:
        """Where an index is; the default one's place for none."""
        return self._indexes[name or _DEFAULT].directory

    def roots(self) -> dict[NormalizedName, str]:
        """The root of each index."""
        return {name: index.root for name, index in self._indexes.items()}

    def ask(self, text: str) -> Offer:
        """Resolve a requirement with the index of its namespace.

        Raises:
            ResolutionError: it is not to be had, or no index has the namespace.
        """
        requirement = Requirement.parse(text)
        name = requirement.namespace or _DEFAULT
        if name not in self._indexes:
            known = sorted(other for other in self._indexes if other != _DEFAULT)
            alike = lookalike(name, known)
            raise NamespaceNotFoundError(name, requirement.name, known, alike=alike)
        from weightpkg.resolve import resolve  # noqa: PLC0415  what is locked needs it not

        return Offer(resolve(replace(requirement, namespace=None), self._indexes[name]), name)

    def namespaces(self) -> dict[NormalizedName, Index]:
        """The indexes that have a prefix."""
        return {name: index for name, index in self._indexes.items() if name != _DEFAULT}

    def index(self, name: NormalizedName | None) -> Index | None:
        """The index of a namespace, the default one for none; None where there is none of that name."""
        return self._indexes.get(name or _DEFAULT)

    def model(self, index: NormalizedName, name: NormalizedName) -> Model:
        """What an index says of a model.

        Raises:
            ModelNotFoundError: it has none of that name.
            DocumentError: the model's page is not valid.
            TrustError: what is signed of it is refused.
            FetchError: it is not held, and cannot be had.
        """
        return self._indexes[index].model(name)

    def model_of(self, package: LockedPackage) -> Model | None:
        """What the index says of a locked package's model today; None where it says nothing.

        Raises:
            DocumentError: the model's page is not valid.
        """
        index = self._indexes.get(package.index) if package.index else None
        return index.model(package.name) if index and package.name in index else None

    def release_of(self, package: LockedPackage) -> Release | None:
        """The same of its release.

        Raises:
            DocumentError: the model's page is not valid.
        """
        model = self.model_of(package)
        releases = model.releases if model else ()
        return next((r for r in releases if r.version == package.version), None)


def _directory(name: NormalizedName, location: str) -> Path:
    """Return the directory of an index that only the project names; it is relative to the project's.

    Raises:
        ProjectError: it is elsewhere, so that it has to be configured whose signatures count.
    """
    directory = directory_of(location)
    if directory is None:
        raise ProjectError(
            f"the project's index `{name}` is at `{location}`, and nothing says whose signatures count",
            hint=f"`weightpkg index add {location} --name {name} --root FILE`, with the file that its "
            "maintainers give you",
        )
    return directory


def _check_same(name: NormalizedName, location: str, config: IndexConfig, root: Path) -> None:
    """Refuse a project that means another index than the one that has the namespace here.

    Raises:
        ProjectError: it does.
    """
    directory = directory_of(location)
    if directory is not None and config.directory is not None:
        is_same = (root / directory).absolute() == config.directory.absolute()
    else:
        is_same = location.rstrip("/") == config.url.rstrip("/")
    if not is_same:
        raise ProjectError(
            f"the project's index `{name}` is at `{location}`, and config.toml has it at `{config.url}`",
            hint="a namespace has one index: change one of the two",
        )


Learn = Callable[[Resolved], Resolved]
"""Finds out the digests that a source does not say."""


def make_ask(
    indexes: Indexes,
    store: Store,
    list_repository: ListRepository,
    learn: Learn = lambda resolved: resolved,
) -> Callable[[str], Offer]:
    """Make what resolves anything that a manifest can want.

    What a source does not say of its files is looked up in the store, where it may be installed;
    `learn` is asked about what is not known there.
    """

    def ask(text: str) -> Offer:
        if not is_reference(text):
            return indexes.ask(text)
        resolved = resolve_reference(text, list_repository)
        return Offer(learn(_with_digests(resolved, store)), None)

    return ask


def _with_digests(resolved: Resolved, store: Store) -> Resolved:
    variant = resolved.variant
    if all(file.sha256 for file in variant.files):
        return resolved
    found = [record for record in store.installed() if record.reference == resolved.reference]
    known = {file.path: file for file in found[-1].files} if found else {}
    own = (
        replace(file, sha256=was.sha256, size=was.size, blake3=was.blake3)
        if file.sha256 is None and (was := known.get(file.path.text))
        else file
        for file in variant.files
    )
    return replace(resolved, variant=replace(variant, files=tuple(own)))


def _fetched(resolved: Resolved, fetch: Callable[[File], Fingerprint]) -> Resolved:
    """Fetch the files whose digest is not known, which are then in the store."""
    own = []
    for file in resolved.variant.files:
        if file.sha256 is None:
            found = fetch(file)
            own.append(replace(file, sha256=found.sha256, size=found.size, blake3=found.blake3))
        else:
            own.append(file)
    return replace(resolved, variant=replace(resolved.variant, files=tuple(own)))


def lock(
    project: Project,
    settings: Settings,
    warn: Callable[[str], None],
    *,
    manifest: Manifest | None = None,
    upgrade: Upgrade | None = None,
    progress: Progress | None = None,
) -> Locking:
    """Decide what a project's lockfile shall say; nothing of the project is written.

    Args:
        project: the project.
        settings: where the default index and the store are.
        warn: told of a lockfile of a newer minor version.
        manifest: what is wanted, if not what the project's manifest says.
        upgrade: what may move.
        progress: told of files that are fetched because nobody says what digest they have; where
            it is not given, they are an error.

    Raises:
        WeightpkgError: as `plan_lock` and `Project.old_lockfile` say it.
    """
    wanted = manifest or project.manifest
    indexes, store = Indexes(project.root, wanted, settings), settings.store()
    old = project.old_lockfile(warn)
    with settings.sources(store) as sources:

        def learn(resolved: Resolved) -> Resolved:
            if progress is None:
                return resolved
            check_license(str(resolved), resolved.model.license, wanted.policy)
            return _fetched(resolved, settings.fetcher(sources, store, progress).fetch)

        ask = make_ask(indexes, store, sources.list_repository, learn)
        return plan_lock(wanted, old, ask, indexes.roots(), upgrade or Upgrade())


def known_facts(lockfile: Lockfile, store: Store) -> Lockfile:
    """Return a lockfile with what the store knows and it does not: BLAKE3, sizes, trees.

    Raises:
        StoreError: the store cannot be read.
    """
    packages = tuple(_known_facts(package, store) for package in lockfile.packages)
    return replace(lockfile, packages=packages)


def _known_facts(package: LockedPackage, store: Store) -> LockedPackage:
    tree = package.tree
    if package.conversion and tree is None and (directory := store.model(package.conversion)):
        tree = tree_digest(directory)
    return replace(package, tree=tree, files=tuple(_known(f, store) for f in package.files))


def _known(file: File, store: Store) -> File:
    if (file.blake3 and file.size is not None) or file.sha256 is None:
        return file
    known = store.known(file.sha256) if store.blob(file.sha256) else None
    if known is None:
        return file
    return replace(file, blake3=file.blake3 or known.blake3, size=known.size)
