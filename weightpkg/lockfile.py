"""What a project uses, exactly: `weights.lock`, which holds identities, and URLs only as hints.

    lock-version = "1.0"
    [[models]]      a role, what it asked for, and the package that it got; perhaps for some platforms
    [[packages]]    name, version, variant, license, files with their digests and canonical sources,
                    the key of its conversion and the digest of what came out
    [[indexes]]     where the packages' names come from, and the root that each index had

The same content is always the same bytes: rows in order, one value a line, so that two branches that
each add a model merge as text. Each package has a `check` over all else that it says, which tells an
edit by hand. `docs/projects.md` is the specification.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import tomli_w
from packaging.version import InvalidVersion, Version

from weightpkg.digest import Digest
from weightpkg.document import Table, parse_document
from weightpkg.errors import DocumentError, UnsupportedVersionError
from weightpkg.license_policy import identifiers
from weightpkg.manifest import check_conflicts, is_platform
from weightpkg.package import File, Parts, RelativePath, parse_source
from weightpkg.requirement import NormalizedName, normalize_name

LOCKFILE = "weights.lock"
MAJOR, MINOR = 1, 0
DEFAULT_INDEX = "default"

_HEADER = "# Written by `weightpkg lock`; change weights.toml and run that, and not this file.\n"
_AGAIN = "bring back one that was not edited; or remove it, and `weightpkg lock` writes it anew"
Finish = Callable[[Table], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class LockedPackage:
    """One variant of one release, with all that makes it what it is.

    index: the index that named it; None for what was asked for by its source.
    reference: that source.
    conversion, converter: the key of its conversion, and the version that makes this key.
    tree: the digest of the converted model, once it is known.
    """

    name: NormalizedName
    version: Version
    variant: NormalizedName
    index: NormalizedName | None
    reference: str | None = None
    license: str
    license_url: str | None = None
    format: str
    architecture: str
    conversion: str | None = None
    converter: int | None = None
    tree: Digest | None = None
    files: tuple[File, ...]

    @property
    def full_name(self) -> str:
        """The name a user types; with its namespace, where it is not of the default index."""
        prefix = "" if self.index in {None, DEFAULT_INDEX} else f"{self.index}/"
        return f"{prefix}{self.name}-{self.variant}"

    @property
    def key(self) -> str:
        """What models refer to: `tiny-q4==1.0`."""
        return f"{self.full_name}=={self.version}"

    def __str__(self) -> str:
        return f"{self.full_name} {self.version}"


@dataclass(frozen=True, kw_only=True, slots=True)
class LockedModel:
    """A role, as the manifest had it, and its package.

    platforms: where it is that package; none for everywhere else.
    """

    role: NormalizedName
    group: NormalizedName | None = None
    platforms: tuple[str, ...] = ()
    requirement: str
    package: str


@dataclass(frozen=True, slots=True)
class LockedIndex:
    """An index, and the root of its trust: bytes of another one are not the same names."""

    name: NormalizedName
    root: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Lockfile:
    """All of it, in the order in which it is written."""

    models: tuple[LockedModel, ...] = ()
    packages: tuple[LockedPackage, ...] = ()
    indexes: tuple[LockedIndex, ...] = ()

    def package(self, key: str) -> LockedPackage:
        """The package of that key; KeyError if there is none."""
        for package in self.packages:
            if package.key == key:
                return package
        raise KeyError(key)

    def only(self, groups: Iterable[str | None]) -> Lockfile:
        """What some groups have of it; None is what belongs to no group."""
        meant = set(groups)
        models = tuple(model for model in self.models if model.group in meant)
        used = {model.package for model in models}
        packages = tuple(package for package in self.packages if package.key in used)
        names = {package.index for package in packages}
        indexes = tuple(index for index in self.indexes if index.name in names)
        return Lockfile(models=models, packages=packages, indexes=indexes)

    def sorted(self) -> Lockfile:
        """The same in the order in which it is written."""
        return Lockfile(
            models=tuple(sorted(self.models, key=_model_order)),
            packages=tuple(sorted(self.packages, key=_package_order)),
            indexes=tuple(sorted(self.indexes, key=lambda index: index.name)),
        )


def _model_order(model: LockedModel) -> tuple[str, str, bool, tuple[str, ...], str, str]:
    is_default = not model.platforms
    names = model.group or "", model.role
    return *names, is_default, model.platforms, model.requirement, model.package


def _package_order(package: LockedPackage) -> tuple[str, str, str, Version]:
    return package.name, package.variant, package.index or "", package.version


def dump_lockfile(lockfile: Lockfile) -> bytes:
    """Return the one form in which a lockfile is written."""
    lockfile = lockfile.sorted()
    head = {"lock-version": f"{MAJOR}.{MINOR}", "created-by": "weightpkg"}
    parts = [_HEADER + tomli_w.dumps(head)]
    parts += [_section("indexes", {"name": i.name, "root": i.root}) for i in lockfile.indexes]
    parts += [_section("models", _dump_model(model)) for model in lockfile.models]
    for package in lockfile.packages:
        row = _dump_package(package) | {"check": _check_of(package)}
        parts.append(_section("packages", row))
        parts += [_section("packages.files", _dump_file(file)) for file in package.files]
    return "\n".join(parts).encode()


def _section(name: str, row: dict[str, object]) -> str:
    return f"[[{name}]]\n{tomli_w.dumps({k: v for k, v in row.items() if v not in (None, [])})}"


def _dump_model(model: LockedModel) -> dict[str, object]:
    return {
        "role": model.role,
        "group": model.group,
        "platforms": list(model.platforms),
        "requirement": model.requirement,
        "package": model.package,
    }


def _dump_package(package: LockedPackage) -> dict[str, object]:
    return {
        "name": package.name,
        "version": str(package.version),
        "variant": package.variant,
        "index": package.index,
        "reference": package.reference,
        "license": package.license,
        "license-url": package.license_url,
        "format": package.format,
        "architecture": package.architecture,
        "conversion": package.conversion,
        "converter": package.converter,
        "tree": package.tree.hex if package.tree else None,
    }


def _dump_file(file: File) -> dict[str, object]:
    sources = [[source.text for source in parts] for parts in file.sources]
    return {
        "path": file.path.text,
        "size": file.size,
        "sha256": file.sha256.hex if file.sha256 else None,
        "blake3": file.blake3.hex if file.blake3 else None,
        "sources": [parts[0] if len(parts) == 1 else parts for parts in sources],
    }


def _check_of(package: LockedPackage) -> str:
    """Return digits that change with anything a package says: against accidents, not attacks."""
    rows = [_dump_package(package), *map(_dump_file, package.files)]
    return hashlib.sha256(repr(rows).encode()).hexdigest()[:16]


def read_lockfile(content: bytes, *, source: str, warn: Callable[[str], None]) -> Lockfile:
    """Read a lockfile.

    Args:
        content: the file's bytes.
        source: its name, for errors.
        warn: told of a newer minor version, whose new keys are left out.

    Raises:
        UnsupportedVersionError: it is of a newer major version.
        DocumentError: it was edited by hand, or by a merge, or is not a lockfile at all.
    """
    check_conflicts(content, source, "take either side, then `weightpkg lock`")
    try:
        return _read(parse_document(content, source=source), warn)
    except UnsupportedVersionError:
        raise
    except DocumentError as error:
        raise DocumentError(
            error.reason, where=error.where, source=error.source, hint=error.hint or _AGAIN
        ) from error


def _read(table: Table, warn: Callable[[str], None]) -> Lockfile:
    finish = _finish_for(table, warn)
    table.optional("created-by", str)
    lockfile = Lockfile(
        models=tuple(_read_model(row, finish) for row in _rows(table, "models")),
        packages=tuple(_read_package(row, finish) for row in _rows(table, "packages")),
        indexes=tuple(_read_index(row, finish) for row in _rows(table, "indexes")),
    )
    finish(table)
    _check_references(lockfile, table)
    return lockfile


def _finish_for(table: Table, warn: Callable[[str], None]) -> Finish:
    """Return what is done with keys that are not known: refused, or left out of a newer minor."""
    text = table.required("lock-version", str)
    major, _, minor = text.partition(".")
    if not (major.isdecimal() and minor.isdecimal()):
        raise table.error("lock-version", "must be two whole numbers, such as 1.0")
    if int(major) != MAJOR:
        raise UnsupportedVersionError(
            f"is {text}, and this version reads {MAJOR}.{MINOR}",
            where="lock-version",
            source=table.source,
            hint="a newer weightpkg wrote it: `pip install --upgrade weightpkg`",
        )
    if int(minor) <= MINOR:
        return Table.finish
    warn(
        f"`{table.source}` has lock-version {text}, and this weightpkg knows {MAJOR}.{MINOR}: "
        "what is new in it is left out"
    )
    return lambda _: None


def _rows(table: Table, key: str) -> Iterator[Table]:
    return table.tables(key) if key in table else iter(())


def _read_index(row: Table, finish: Finish) -> LockedIndex:
    index = LockedIndex(row.parsed("name", normalize_name), row.required("root", str))
    finish(row)
    return index


def _read_model(row: Table, finish: Finish) -> LockedModel:
    model = LockedModel(
        role=row.parsed("role", normalize_name),
        group=row.optional_parsed("group", normalize_name),
        platforms=row.strings("platforms"),
        requirement=row.required("requirement", str),
        package=row.required("package", str),
    )
    for i, platform in enumerate(model.platforms):
        if not is_platform(platform):
            raise row.error(f"platforms[{i}]", f"`{platform}` is not a platform")
    finish(row)
    return model


def _read_package(row: Table, finish: Finish) -> LockedPackage:
    package = LockedPackage(
        name=row.parsed("name", normalize_name),
        version=row.parsed("version", _version),
        variant=row.parsed("variant", normalize_name),
        index=row.optional_parsed("index", normalize_name),
        reference=row.optional("reference", str),
        license=row.parsed("license", _license),
        license_url=row.optional("license-url", str),
        format=row.required("format", str),
        architecture=row.required("architecture", str),
        conversion=row.optional_parsed("conversion", _key),
        converter=row.natural("converter"),
        tree=row.optional_parsed("tree", lambda text: Digest("sha256", text)),
        files=tuple(_read_file(file, finish) for file in row.tables("files")),
    )
    check = row.required("check", str)
    finish(row)
    if finish is Table.finish and check != _check_of(package):
        raise row.error("check", f"does not fit the rest: `{package}` was edited by hand")
    return package


def _read_file(row: Table, finish: Finish) -> File:
    file = File(
        path=row.parsed("path", RelativePath),
        sha256=row.parsed("sha256", lambda text: Digest("sha256", text)),
        size=row.natural("size"),
        blake3=row.optional_parsed("blake3", lambda text: Digest("blake3", text)),
        sources=tuple(_read_sources(row)),
    )
    finish(row)
    return file


def _read_sources(row: Table) -> Iterator[Parts]:
    values: list[Any] = row.optional("sources", list) or []
    for i, value in enumerate(values):
        parts = value if isinstance(value, list) else [value]
        try:
            yield tuple(parse_source(str(part)) for part in parts)
        except ValueError as error:
            raise row.error(f"sources[{i}]", str(error)) from error


def _version(text: str) -> Version:
    try:
        return Version(text)
    except InvalidVersion as error:
        raise ValueError(f"`{text}` is not a PEP 440 version") from error


def _license(text: str) -> str:
    identifiers(text)
    return text


def _key(text: str) -> str:
    return Digest("sha256", text).hex


def _check_references(lockfile: Lockfile, table: Table) -> None:
    keys = [package.key for package in lockfile.packages]
    used = {model.package for model in lockfile.models}
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise table.error("packages", f"has `{twice[0]}` twice")
    for model in lockfile.models:
        if model.package not in keys:
            raise table.error(
                "models", f"`{model.role}` needs `{model.package}`, which is not there"
            )
    if unused := sorted(set(keys) - used):
        raise table.error("packages", f"has `{unused[0]}`, which no model needs")
    known = {index.name for index in lockfile.indexes}
    for package in lockfile.packages:
        if package.index is not None and package.index not in known:
            raise table.error("packages", f"`{package}` is of an index that is not there")


def changed_facts(old: LockedPackage, new: LockedPackage) -> list[str]:
    """Return what two locked packages of one version differ in that must never change.

    A digest or a key that one of them does not know yet is no difference.
    """
    before = {file.path.text: file for file in old.files}
    after = {file.path.text: file for file in new.files}
    changed = [f"`{path}`" for path in sorted(before.keys() ^ after.keys())]
    for path in sorted(before.keys() & after.keys()):
        one, other = before[path], after[path]
        pairs = ((one.sha256, other.sha256), (one.blake3, other.blake3), (one.size, other.size))
        if any(None not in pair and pair[0] != pair[1] for pair in pairs):
            changed.append(f"`{path}`")
    return changed


def with_facts(new: LockedPackage, old: LockedPackage) -> LockedPackage:
    """Return a package with what an older lockfile knew of the same bytes."""
    known = {file.sha256: file for file in old.files}
    files = tuple(
        replace(
            file,
            blake3=file.blake3 or was.blake3,
            size=was.size if file.size is None else file.size,
        )
        if (was := known.get(file.sha256))
        else file
        for file in new.files
    )
    tree = new.tree or (old.tree if old.conversion == new.conversion else None)
    return replace(new, files=files, tree=tree)
