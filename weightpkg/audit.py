"""What is known of models that are used: where they come from, who vouches for them, what is wrong.

Everything is read: the lockfile or the store's records, the index as it is today, what was accepted.
A finding has a level. An *error* is something that should not be used as it is: bytes that are not
what was locked, a release that was yanked, a license that is not allowed. A *warning* is something
that someone should decide. A *note* is something to know. `docs/audit.md` lists all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol

from weightpkg import seals
from weightpkg.errors import (
    DocumentError,
    FetchError,
    IntegrityError,
    LicenseError,
    ModelNotFoundError,
    SignatureError,
    StoreError,
    TrustError,
)
from weightpkg.licenses import Acceptance, acceptances, to_accept
from weightpkg.lockfile import LockedPackage, Lockfile, changed_facts
from weightpkg.locking import check_policy
from weightpkg.package import UNKNOWN, HfSource, Model, Release
from weightpkg.provenance import (
    ConversionRecord,
    PartsOf,
    conversion_record,
    make_parts_of,
    package_of_record,
)
from weightpkg.publisher import has_signature
from weightpkg.store import Installed, Store
from weightpkg.syncing import check_tree, is_same_converter

if TYPE_CHECKING:
    from datetime import datetime

    from weightpkg.install import Check
    from weightpkg.license_policy import LicensePolicy
    from weightpkg.progress import Progress
    from weightpkg.project import Indexes
    from weightpkg.requirement import NormalizedName

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")

_UNREADABLE = (DocumentError, ModelNotFoundError, TrustError, FetchError)
_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?\Z")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it could be; `rule` is its short name, for programs."""

    level: Level
    rule: str
    message: str


@dataclass(frozen=True, slots=True)
class Role:
    """A role of a signed index that vouches for a page, and the keys that signed it."""

    name: str
    version: int
    expires: datetime
    keys: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Signed:
    """Who vouches for a model's page: from the root of an index down to the role that names it."""

    root: str
    roles: tuple[Role, ...] = ()


class Signatures(Protocol):
    """Knows who signed the pages of an index."""

    def signed(self, index: NormalizedName, name: NormalizedName, /) -> Signed | None:
        """Return who vouches for a model's page; None for an index that is not signed."""


class Unsigned:
    """Indexes that nobody signed: directories of this machine."""

    def signed(self, index: NormalizedName, name: NormalizedName, /) -> None:
        """Nobody vouches for anything."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """What is audited: a package, who needs it, and what is installed under its name.

    model: its page today; None where no index has it, or it cannot be read.
    """

    package: LockedPackage
    roles: tuple[str, ...] = ()
    model: Model | None = None
    record: Installed | None = None

    @property
    def release(self) -> Release | None:
        """What the index says of its release today."""
        releases = self.model.releases if self.model else ()
        return next((r for r in releases if r.version == self.package.version), None)

    @property
    def is_installed(self) -> bool:
        """Whether what is installed under its name is it."""
        return self.record is not None and _has_its_files(self.package, self.record)


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """All that is known of one package."""

    subject: Subject
    signed: Signed | None
    verified: datetime | None
    acceptances: tuple[Acceptance, ...]
    conversion: ConversionRecord | None
    findings: tuple[Finding, ...]

    @property
    def package(self) -> LockedPackage:
        """The package."""
        return self.subject.package


def locked(lockfile: Lockfile, indexes: Indexes, store: Store) -> list[Subject]:
    """Return what a lockfile has, to be audited.

    Raises:
        StoreError: a record cannot be read.
    """
    return [
        Subject(
            package=package,
            roles=tuple(dict.fromkeys(m.role for m in lockfile.models if m.package == package.key)),
            model=_page(package, indexes),
            record=store.find(package.name, package.variant, package.version),
        )
        for package in lockfile.packages
    ]


def installed(records: Iterable[Installed], indexes: Indexes) -> list[Subject]:
    """Return what is installed, to be audited; the default index may know the licenses."""
    found = [(package_of_record(record, indexes), record) for record in records]
    return [
        Subject(package=package, model=_page(package, indexes), record=record)
        for package, record in found
    ]


def _page(package: LockedPackage, indexes: Indexes) -> Model | None:
    try:
        return indexes.model_of(package)
    except _UNREADABLE:
        return None


def audit(
    subjects: Iterable[Subject],
    indexes: Indexes,
    store: Store,
    progress: Progress,
    *,
    policy: LicensePolicy | None = None,
    signatures: Signatures | None = None,
    check: Check | None = None,
    parts_of: PartsOf | None = None,
) -> list[Report]:
    """Find out what is known of packages.

    Args:
        subjects: the packages.
        indexes: what they are held against.
        store: what is installed; a model that was touched since it was last hashed is hashed.
        progress: told of the bytes read.
        policy: which licenses may be used.
        signatures: who vouches for the pages of indexes.
        check: refuses files that their publisher did not sign; without, that is not looked at.
        parts_of: says what became of each type of tensor; if not given, that is worked out of the
            source files' headers, in a process for each model.

    Raises:
        StoreError: the store cannot be read.
    """
    vouched = signatures or Unsigned()
    parts_of = parts_of or make_parts_of(store, progress)
    return [
        Report(
            subject=one,
            signed=_signed(one.package, vouched),
            # what was touched is hashed here, and sealed if it is sound
            findings=_findings(one, indexes, store, progress, policy, check),
            verified=seals.verified(store, one.record) if one.record else None,
            acceptances=_acceptances(one.package.license, store),
            conversion=conversion_record(one.package, one.record, store, parts_of),
        )
        for one in subjects
    ]


def _signed(package: LockedPackage, signatures: Signatures) -> Signed | None:
    return signatures.signed(package.index, package.name) if package.index else None


def _findings(
    subject: Subject,
    indexes: Indexes,
    store: Store,
    progress: Progress,
    policy: LicensePolicy | None,
    check: Check | None,
) -> tuple[Finding, ...]:
    """Return what is wrong, the worst first."""
    found = [
        *_installation(subject, store, progress),
        *_against_index(subject, indexes),
        *_license(subject.package, policy, store),
        *_facts(subject.package),
        *_publisher(subject, check),
    ]
    return tuple(sorted(found, key=lambda one: LEVELS.index(one.level)))


def _publisher(subject: Subject, check: Check | None) -> Iterator[Finding]:
    record = subject.record
    if check is None:
        if record is not None and has_signature(record):
            message = "its publisher signed it; `--publisher-key FILE` checks that"
            yield Finding("note", "publisher-not-checked", message)
    elif record is not None:
        try:
            check(record.full_name, record.files)
        except (SignatureError, StoreError) as error:
            yield Finding("error", "publisher", error.message)


def _has_its_files(package: LockedPackage, record: Installed) -> bool:
    installed = {file.path: file.sha256 for file in record.files}
    return record.reference == package.reference and installed == {
        file.path.text: file.sha256 for file in package.files
    }


def _installation(subject: Subject, store: Store, progress: Progress) -> Iterator[Finding]:
    package, record = subject.package, subject.record
    if record is None:
        yield Finding("note", "not-installed", "it is not installed here")
        return
    if not subject.is_installed:
        message = f"what is installed as {record} has other files: `weightpkg sync` puts that right"
        yield Finding("error", "installed-differs", message)
    for problem in seals.check(store, record, progress):
        yield Finding("error", "damaged", f"{problem}; `weightpkg verify --repair`")
    try:
        check_tree(package, record)
    except IntegrityError as error:
        yield Finding("error", "tree-differs", error.message)
    if not is_same_converter(package):
        message = f"it was converted by version {package.converter} of the converter, not this one"
        yield Finding("note", "other-converter", message)


def _against_index(subject: Subject, indexes: Indexes) -> Iterator[Finding]:
    package, model, release = subject.package, subject.model, subject.release
    if package.index is None:
        if package.reference is None:
            yield Finding("warning", "gone", "no index has these files under its name")
        return
    try:
        indexes.model_of(package)
    except _UNREADABLE as error:
        yield Finding("warning", "index-unreadable", f"its page cannot be read: {error.message}")
        return
    if model is None or release is None:
        yield Finding("warning", "gone", f"the index `{package.index}` has it no more")
        return
    if release.yanked:
        yield Finding("error", "yanked", f"{package.version} was yanked: {release.yanked}")
    yield from _bytes_today(package, release)
    if model.license != package.license:
        message = f"it is locked as {package.license}, and the index says {model.license} now"
        yield Finding("warning", "license-changed", message)
    if "deprecated" in {tag.casefold() for tag in model.tags}:
        yield Finding("warning", "deprecated", "its index calls it deprecated")
    newer = [r for r in model.releases if r.version > package.version and r.yanked is None]
    if newer:
        changes = "; ".join(f"{r.version}: {r.changes}" for r in newer)
        yield Finding("note", "newer-release", f"there is a newer release: {changes}")


def _bytes_today(package: LockedPackage, release: Release) -> Iterator[Finding]:
    variant = next((v for v in release.variants if v.name == package.variant), None)
    if variant is None:
        yield Finding("warning", "gone", f"the release has no variant `{package.variant}` any more")
        return
    if changed := changed_facts(package, replace(package, files=variant.files)):
        message = (
            f"the index has other bytes today, which a release must never: {', '.join(changed)}"
        )
        yield Finding("error", "index-differs", message)


def _acceptances(license_id: str, store: Store) -> tuple[Acceptance, ...]:
    return tuple(one for leaf in to_accept(license_id) for one in acceptances(leaf, store))


def _license(
    package: LockedPackage, policy: LicensePolicy | None, store: Store
) -> Iterator[Finding]:
    try:
        if policy:
            check_policy(package, policy)
    except LicenseError as error:
        yield Finding("error", "license-refused", error.message.partition(": ")[2])
    if package.license == UNKNOWN:
        yield Finding("warning", "license-unknown", "nobody says what its license is")
    accepted = [one.license for one in _acceptances(package.license, store)]
    if missing := to_accept(package.license, accepted):
        message = f"{' and '.join(missing)} was not accepted on this machine"
        yield Finding("warning", "license-not-accepted", message)


def _facts(package: LockedPackage) -> Iterator[Finding]:
    """Yield what the package's own description lacks."""
    sizeless = [file.path.text for file in package.files if file.size is None]
    if sizeless:
        yield Finding("warning", "no-size", f"no size is known of {_some(sizeless)}")
    if bare := [file.path.text for file in package.files if file.blake3 is None]:
        yield Finding("note", "no-blake3", f"no BLAKE3 is known of {_some(bare)}")
    loose = {
        f"{source.repo}@{source.revision}"
        for file in package.files
        for parts in file.sources
        for source in parts
        if isinstance(source, HfSource) and not _COMMIT.match(source.revision)
    }
    if loose:
        message = f"a source is not pinned to a commit, and may be gone one day: {_some(loose)}"
        yield Finding("warning", "not-pinned", message)
    if any(not file.sources for file in package.files):
        yield Finding("warning", "no-source", "a file has no source: only this machine may have it")


def _some(names: Iterable[str]) -> str:
    """Name the first three."""
    ordered = sorted(names)
    more = f" and {len(ordered) - 3} more" if len(ordered) > 3 else ""
    return ", ".join(f"`{name}`" for name in ordered[:3]) + more
