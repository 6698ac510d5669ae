"""What a mirror or a bundle is for: lockfiles and names, and what indexes publish of their packages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from weightpkg import files
from weightpkg.errors import (
    DocumentError,
    FetchError,
    ModelNotFoundError,
    ResolutionError,
)
from weightpkg.index import Index
from weightpkg.license_policy import identifiers
from weightpkg.lockfile import LockedPackage, read_lockfile
from weightpkg.locking import check_roots, package_of
from weightpkg.manifest import Manifest
from weightpkg.package import UNKNOWN
from weightpkg.progress import Progress
from weightpkg.project import Indexes, find_project
from weightpkg.requirement import NormalizedName
from weightpkg.settings import Settings
from weightpkg.trust.index import SignedIndex


@dataclass(frozen=True, slots=True)
class Wanted:
    """A lockfile or a name, what it comes to, and the indexes that say so.

    lock: the lockfile's bytes; None for a name.
    """

    name: str
    packages: tuple[LockedPackage, ...]
    indexes: Indexes
    lock: bytes | None = None


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


def signed_indexes(
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


def update_index(index: SignedIndex, progress: Progress) -> None:
    """Bring a signed index up to date; where it cannot be reached, what is held has to do."""
    try:
        index.update()
    except FetchError as error:
        progress.note(f"the index is as it was when it was last reached: {error.message}")


def pages_of(package: LockedPackage, one: Wanted) -> Iterator[tuple[str, bytes]]:
    """Yield what an index publishes of a package: paths below a mirror, and bytes."""
    index = one.indexes.index(package.index) if package.index else None
    if index is None:  # its lockfile says all that is needed
        return
    with suppress(ModelNotFoundError):  # it was taken out of the index
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
