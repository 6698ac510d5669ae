"""What can be said of a lockfile: what is outdated, what changed, and why something is there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from weightpkg.errors import DocumentError, FetchError, ModelNotFoundError, TrustError
from weightpkg.lockfile import LockedModel, LockedPackage, Lockfile
from weightpkg.package import File, Model
from weightpkg.project import Indexes
from weightpkg.reference import is_reference
from weightpkg.requirement import NormalizedName, Requirement

if TYPE_CHECKING:
    from packaging.version import Version


@dataclass(frozen=True, slots=True)
class Standing:
    """How a locked package stands to its index: `wanted` is what its requirements would take now."""

    name: str
    locked: str
    wanted: str | None
    latest: str | None
    remark: str


def standings(lockfile: Lockfile, indexes: Indexes) -> Iterator[Standing]:
    """Yield the packages that are not the newest, were yanked, or are gone.

    Raises:
        DocumentError: an index cannot be read.
    """
    for package in lockfile.packages:
        if package.index is None:
            continue
        model = indexes.model_of(package)
        versions = _with_variant(model, package) if model else []
        wanted = max(filter(_fitting(package, lockfile), versions), default=None)
        latest = max(versions, default=None)
        remark = _remark(package, model, latest)
        if remark or wanted not in {None, package.version}:
            locked, newest = str(package.version), str(latest) if latest else None
            fits = str(wanted) if wanted else None
            yield Standing(package.full_name, locked, fits, newest, remark)


def _with_variant(model: Model, package: LockedPackage) -> list[Version]:
    return [
        release.version
        for release in model.releases
        if release.yanked is None and any(v.name == package.variant for v in release.variants)
    ]


def _fitting(package: LockedPackage, lockfile: Lockfile) -> Callable[[Version], bool]:
    rows = [m.requirement for m in lockfile.models if m.package == package.key]
    specifiers = [Requirement.parse(row).specifier for row in rows if not is_reference(row)]
    return lambda version: all(version in specifier for specifier in specifiers)


def _remark(package: LockedPackage, model: Model | None, latest: Version | None) -> str:
    releases = model.releases if model else ()
    own = next((release for release in releases if release.version == package.version), None)
    if own is None:
        return "gone from the index"
    if own.yanked:
        return f"yanked: {own.yanked}"
    return "newer release" if latest and latest > package.version else ""


@dataclass(frozen=True, slots=True)
class Change:
    """What became of a package from one lockfile to another.

    kind: added, removed, changed (another release), or updated (the same one, something else in it).
    details: what is different, a line each.
    notes: what its releases say that changed.
    license: of what was added.
    """

    kind: str
    name: str
    old: str | None
    new: str | None
    details: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    license: str | None = None


def compare(old: Lockfile, new: Lockfile, indexes: Indexes | None = None) -> list[Change]:
    """Return what changed between two lockfiles, by package.

    Args:
        old: the one.
        new: the other.
        indexes: asked what the releases between two versions say that changed.
    """
    before, after = _by_name(old, new), _by_name(new, old)
    found: list[Change] = []
    for key in sorted(before.keys() | after.keys()):
        was, now = before.get(key), after.get(key)
        if was is None and now is not None:
            details = (f"license {now.license}", *_roles(now, new))
            added = Change("added", now.full_name, None, str(now.version), details)
            found.append(replace(added, license=now.license))
        elif now is None and was is not None:
            found.append(Change("removed", was.full_name, str(was.version), None))
        elif was and now and (details := tuple(_details(was, now, old, new))):
            kind = "changed" if was.version != now.version else "updated"
            notes = tuple(_notes(was, now, indexes)) if indexes else ()
            versions = str(was.version), str(now.version)
            found.append(Change(kind, now.full_name, *versions, details, notes))
    return found


def _by_name(lockfile: Lockfile, other: Lockfile) -> dict[tuple[str, ...], LockedPackage]:
    """Packages by what stays the same when one is upgraded.

    Where a lockfile has several versions of something, each counts by itself.
    """
    own = [(p.name, p.variant, p.index or "", p.reference or "") for p in lockfile.packages]
    others = [(p.name, p.variant, p.index or "", p.reference or "") for p in other.packages]
    return {
        (*key, str(package.version)) if max(own.count(key), others.count(key)) > 1 else key: package
        for key, package in zip(own, lockfile.packages, strict=True)
    }


def summary(changes: Iterable[Change]) -> Iterator[str]:
    """Yield a line for each package that comes, goes, or becomes another one."""
    for change in changes:
        if change.kind == "changed":
            yield f"changed {change.name} {change.old} to {change.new}"
        else:
            terms = f" ({change.license})" if change.license else ""
            yield f"{change.kind} {change.name} {change.new or change.old}{terms}"


def _roles(package: LockedPackage, lockfile: Lockfile) -> list[str]:
    return [f"for {m.role}" for m in lockfile.models if m.package == package.key]


def _details(was: LockedPackage, now: LockedPackage, old: Lockfile, new: Lockfile) -> Iterator[str]:
    if was.version != now.version:
        yield f"version {was.version} -> {now.version}"
    if was.license != now.license:
        yield f"license {was.license} -> {now.license}"
    before = {file.path.text: file for file in was.files}
    after = {file.path.text: file for file in now.files}
    for path in sorted(before.keys() | after.keys()):
        yield from _file_details(path, before.get(path), after.get(path))
    if was.tree and now.tree and was.tree != now.tree:
        yield f"model {was.tree.hex[:12]} -> {now.tree.hex[:12]}"
    if was.converter != now.converter:
        yield f"converter {was.converter} -> {now.converter}"
    roles, others = set(_roles(was, old)), set(_roles(now, new))
    yield from sorted(f"no more {role}" for role in roles - others)
    yield from sorted(others - roles)


def _file_details(path: str, was: File | None, now: File | None) -> Iterator[str]:
    if was is None or now is None:
        yield f"{'added' if was is None else 'removed'} {path}"
    elif was.sha256 and now.sha256 and was.sha256 != now.sha256:
        yield f"{path} {was.sha256.hex[:12]} -> {now.sha256.hex[:12]}"


def _notes(was: LockedPackage, now: LockedPackage, indexes: Indexes) -> Iterator[str]:
    """Yield what the releases after the older version, up to the newer, say that changed."""
    try:
        model = indexes.model_of(now)
    except (DocumentError, ModelNotFoundError, TrustError, FetchError):
        return
    low, high = sorted((was.version, now.version))
    for release in model.releases if model else ():
        if low < release.version <= high:
            yank = f" (yanked: {release.yanked})" if release.yanked else ""
            yield f"{release.version}: {release.changes}{yank}"


def reasons(name: str, lockfile: Lockfile) -> list[tuple[LockedPackage, tuple[LockedModel, ...]]]:
    """Return the packages that a name means, each with the roles that need it.

    Args:
        name: of a role, a model, a variant or a file; or the beginning of a digest or key.
        lockfile: what is locked.
    """
    own = [model for model in lockfile.models if model.role == name.lower()]
    return [
        (package, rows)
        for package in lockfile.packages
        for rows in [tuple(m for m in own or lockfile.models if m.package == package.key)]
        if rows and _is_meant(name, package, rows)
    ]


def _is_meant(name: str, package: LockedPackage, rows: Iterable[LockedModel]) -> bool:
    folded = name.lower()
    names: set[str | NormalizedName | None] = {
        package.name,
        package.full_name,
        f"{package.name}-{package.variant}",
        package.key,
        package.reference,
        *(row.role for row in rows),
        *(file.path.text for file in package.files),
    }
    digests = [package.conversion, package.tree.hex if package.tree else None]
    for file in package.files:
        digests += [d.hex for d in (file.sha256, file.blake3) if d]
    is_digest = len(folded) >= 8 and any(d and d.startswith(folded) for d in digests)
    return name in names or folded in names or is_digest


def is_meant(package: LockedPackage, name: str) -> bool:
    """Whether a name, with or without variant and versions, or a reference means a package."""
    if is_reference(name):
        return package.reference == name
    requirement = Requirement.parse(name)
    prefix = f"{requirement.namespace}/" if requirement.namespace else ""
    own = {package.full_name, package.full_name.removesuffix(f"-{package.variant}")}
    return f"{prefix}{requirement.name}" in own and requirement.accepts(package.version)
