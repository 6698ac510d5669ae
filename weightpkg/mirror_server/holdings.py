"""What a mirror has: repositories, their commits, and the files of each.

It is read from the index pages and lockfiles of the mirror, and of them only what has its blob here
in its size. A variant answers under the hub's repository that its sources name, at the revisions that
they name, and under `NAMESPACE/MODEL` and `NAMESPACE/MODEL-VARIANT`. Where no source pins a commit,
the commit is made of the files: the same files are the same commit in every mirror.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from weightpkg.contents import blob_name
from weightpkg.digest import Digest
from weightpkg.document import MAX_DOCUMENT_SIZE, parse_document
from weightpkg.errors import DocumentError
from weightpkg.formats.json_text import read_json
from weightpkg.lockfile import read_lockfile
from weightpkg.package import File, HfSource, Model
from weightpkg.page import read_model

MAIN = "main"
_COMMIT = re.compile(r"[0-9a-f]{40}\Z")
_PAGE = re.compile(r"(?P<folder>(?:[^/]+/)?models)/(?P<name>[^/]+\.toml)\Z")
_ROLE = re.compile(r"(?P<version>\d{1,18})\.(?P<role>.+)\.json\Z")


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a repository; its bytes are the blob of `sha256`."""

    path: str
    sha256: Digest
    size: int


Files = dict[str, Entry]


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """A variant of which the mirror has every file."""

    namespace: str | None
    name: str
    variant: str
    version: str
    is_default: bool
    task: str | None
    license: str
    tags: tuple[str, ...]
    architecture: str
    quantization: str | None
    files: tuple[tuple[File, Entry], ...]


@dataclass(slots=True)
class Repository:
    """What answers under one `ORG/NAME`: commits with their files, and the names of commits."""

    id: str
    about: Held
    commits: dict[str, Files] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)

    def commit(self, revision: str) -> str | None:
        """Return which commit a branch, a tag or a commit is; None if it is none of this one's."""
        commit = self.revisions.get(revision, revision)
        return commit if commit in self.commits else None


@dataclass(frozen=True, slots=True)
class Holdings:
    """All repositories by their names, and the blobs that they are made of.

    `gaps` are packages of lockfiles that are left out as a file is missing or has another size.
    """

    repositories: dict[str, Repository]
    sizes: dict[Digest, int]
    gaps: tuple[str, ...]
    faults: tuple[str, ...]


def read_holdings(root: Path) -> Holdings:
    """Look through a mirror; pages and lockfiles that cannot be read are among the `faults`."""
    faults: list[str] = []
    gaps: list[str] = []
    held = [each for offered in _of_indexes(root, faults) if (each := _held(root, offered))]
    for offered in _of_lockfiles(root, faults):
        if each := _held(root, offered):
            held.append(each)
        else:
            gaps.append(f"{offered[0].name}-{offered[0].variant} {offered[0].version}")
    repositories = _repositories(held)
    sizes = {entry.sha256: entry.size for each in held for _, entry in each.files}
    return Holdings(repositories, sizes, tuple(dict.fromkeys(gaps)), tuple(faults))


Offered = tuple[Held, tuple[File, ...]]
"""A variant, its files still to be found."""


def _held(root: Path, offered: Offered) -> Held | None:
    held, files = offered
    entries = [_entry(root, file) for file in files]
    found = tuple((file, entry) for file, entry in zip(files, entries, strict=True) if entry)
    return replace(held, files=found) if len(found) == len(files) else None


def _entry(root: Path, file: File) -> Entry | None:
    if file.sha256 is None:
        return None
    path = root / blob_name(file.sha256)
    try:
        size = path.stat().st_size if path.is_file() and not path.is_symlink() else None
    except OSError:
        size = None
    if size is None or file.size not in {None, size}:
        return None
    return Entry(file.path.text, file.sha256, size)


def _of_indexes(root: Path, faults: list[str]) -> Iterator[Offered]:
    for directory in _directories(root / "index"):
        for namespace, content, source in _pages(directory, faults):
            try:
                model = read_model(parse_document(content, source=source))
            except DocumentError as error:
                faults.append(error.message)
                continue
            yield from _of_model(namespace, model)


def _pages(directory: Path, faults: list[str]) -> Iterator[tuple[str, bytes, str]]:
    """Yield the namespace, the bytes and the name of each current page of an index."""
    unsigned = directory / "models"
    for path in sorted(unsigned.glob("*.toml")) if unsigned.is_dir() else ():
        if (content := _content(path)) is not None:
            yield directory.name, content, f"{directory.name}/models/{path.name}"
    for target, sha256 in sorted(_targets(directory / "metadata", faults).items()):
        if match := _PAGE.match(target):
            owner = match["folder"].removesuffix("models").strip("/") or directory.name
            path = directory / "targets" / match["folder"] / f"{sha256}.{match['name']}"
            content = _content(path)
            if content is not None and hashlib.sha256(content).hexdigest() == sha256:
                yield owner, content, f"{directory.name}/{target}"
            elif content is not None:
                faults.append(f"`{directory.name}/{target}`: is not what the index signs")


def _targets(metadata: Path, faults: list[str]) -> dict[str, str]:
    """Return the SHA-256 of each target in the newest metadata of each role.

    Signatures are the clients' to check: what is served here is what they would find anyway.
    """
    newest: dict[str, tuple[int, Path]] = {}
    for path in metadata.glob("*.json") if metadata.is_dir() else ():
        match = _ROLE.match(path.name)
        if match and match["role"] not in {"root", "snapshot", "timestamp"}:
            found = int(match["version"]), path
            newest[match["role"]] = max(newest.get(match["role"], found), found)
    targets: dict[str, str] = {}
    for _, path in newest.values():
        targets |= _targets_of(path, faults)
    return targets


def _targets_of(path: Path, faults: list[str]) -> dict[str, str]:
    content = _content(path) or b""
    try:
        # a page takes some twenty marks, and a role has up to 24,000 pages
        parsed: Any = read_json(content, max_marks=MAX_DOCUMENT_SIZE)
        rows = parsed["signed"]["targets"]
        return {name: Digest("sha256", row["hashes"]["sha256"]).hex for name, row in rows.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        faults.append(f"`{path.name}`: is no metadata of a signed index")
        return {}


def _of_model(namespace: str, model: Model) -> Iterator[Offered]:
    for release in model.releases:
        for variant in release.variants:
            held = Held(
                namespace=namespace,
                name=model.normalized_name,
                variant=variant.name,
                version=str(release.version),
                is_default=variant.name == model.default_variant,
                task=model.task,
                license=model.license,
                tags=model.tags,
                architecture=model.architecture,
                quantization=variant.quantization,
                files=(),
            )
            yield held, variant.files


def _of_lockfiles(root: Path, faults: list[str]) -> Iterator[Offered]:
    directory = root / "locks"
    for path in sorted(directory.glob("*.lock")) if directory.is_dir() else ():
        try:
            content = _content(path) or b""
            lockfile = read_lockfile(content, source=f"locks/{path.name}", warn=faults.append)
        except DocumentError as error:
            faults.append(error.message)
            continue
        for package in lockfile.packages:
            held = Held(
                namespace=package.index,
                name=package.name,
                variant=package.variant,
                version=str(package.version),
                is_default=False,
                task=None,
                license=package.license,
                tags=(),
                architecture=package.architecture,
                quantization=None,
                files=(),
            )
            yield held, package.files


def _repositories(held: Iterable[Held]) -> dict[str, Repository]:
    """Put each variant where it answers: the hub's own names come before ours."""
    every = list(held)
    hub = _Shelves()
    for each in every:
        for source, entry in _of_hub(each):
            hub.add(source.repo, each, source.revision, {source.path: entry})
    hub.name_main()
    ours = _Shelves()
    for each in (*(e for e in every if e.is_default), *every):
        if each.namespace is None:
            continue
        files = {entry.path: entry for _, entry in each.files}
        for name in (each.name, f"{each.name}-{each.variant}"):
            for revision in (MAIN, each.version):
                ours.set(f"{each.namespace}/{name}", each, revision, files)
    return ours.repositories() | hub.repositories()


def _of_hub(held: Held) -> Iterator[tuple[HfSource, Entry]]:
    for file, entry in held.files:
        for parts in file.sources:
            if len(parts) == 1 and isinstance(parts[0], HfSource):
                yield parts[0], entry


class _Shelves:
    """Repositories while they are being filled; what came first stays."""

    def __init__(self) -> None:
        self._about: dict[str, Held] = {}
        self._files: dict[str, dict[str, Files]] = {}

    def add(self, repo: str, held: Held, revision: str, files: Files) -> None:
        """Add files to a revision."""
        self._about.setdefault(repo, held)
        known = self._files.setdefault(repo, {}).setdefault(revision, {})
        for path, entry in files.items():
            known.setdefault(path, entry)

    def set(self, repo: str, held: Held, revision: str, files: Files) -> None:
        """Say all that a revision has, unless that was said."""
        self._about.setdefault(repo, held)
        self._files.setdefault(repo, {}).setdefault(revision, files)

    def name_main(self) -> None:
        """Let `main` be the first revision that was added, the newest, where no source names it."""
        for revisions in self._files.values():
            revisions.setdefault(MAIN, next(iter(revisions.values())))

    def repositories(self) -> dict[str, Repository]:
        """Return what was filled."""
        found = {}
        for repo, revisions in self._files.items():
            repository = Repository(repo, self._about[repo])
            for revision, files in revisions.items():
                is_commit = _COMMIT.match(revision) is not None
                if is_commit or not _is_of_commit(files, revisions):
                    commit = revision if is_commit else _commit_of(repo, files)
                    repository.commits[commit] = dict(sorted(files.items()))
                else:
                    commit = next(
                        r for r, f in revisions.items() if f is files and _COMMIT.match(r)
                    )
                if not is_commit:
                    repository.revisions[revision] = commit
            found[repo] = repository
        return found


def _is_of_commit(files: Files, revisions: dict[str, Files]) -> bool:
    """Whether these very files are those of a pinned commit."""
    return any(found is files and _COMMIT.match(name) for name, found in revisions.items())


def _commit_of(repo: str, files: Files) -> str:
    text = json.dumps([repo, [(path, entry.sha256.hex) for path, entry in sorted(files.items())]])
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


def _directories(path: Path) -> list[Path]:
    try:
        return sorted(each for each in path.iterdir() if each.is_dir())
    except OSError:
        return []


def _content(path: Path) -> bytes | None:
    """Return the bytes of a document; None where there is none, or one that is far too large."""
    try:
        if path.is_symlink() or path.stat().st_size > MAX_DOCUMENT_SIZE:
            return None
        return path.read_bytes()
    except OSError:
        return None
