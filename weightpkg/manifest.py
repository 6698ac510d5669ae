"""What a project wants: `weights.toml`, or `[tool.weightpkg]` of `pyproject.toml`.

Models by role, in groups; the platforms that they are for; the licenses that will do; the indexes
beside the default one. `docs/projects.md` is the specification. Edits go through tomlkit, from text
to text, so that comments and order survive, and each is read again before it is believed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from weightpkg.document import Table, nearest, parse_document
from weightpkg.errors import DocumentError, ProjectError, RequirementError
from weightpkg.license_policy import LicensePolicy
from weightpkg.reference import is_reference
from weightpkg.requirement import NormalizedName, Requirement, is_name, normalize_name

if TYPE_CHECKING:
    from tomlkit.container import Container
    from tomlkit.toml_document import TOMLDocument

MANIFEST = "weights.toml"
PYPROJECT = "pyproject.toml"
SYSTEMS = ("linux", "macos", "windows")
MACHINES = ("x86_64", "arm64")

_ENTRY_KEYS = ("name", "version", "variant", "variants")
_CONFLICT = re.compile(rb"^(<<<<<<< |>>>>>>> |=======\r?$)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Choice:
    """What a role needs on some platforms, as a requirement or a reference; on all if none is named."""

    requirement: str
    platforms: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Wanted:
    """A role: what it is called, the group that it belongs to, and what it needs where.

    Choices for platforms come first, by name; the one for all others, if there is one, comes last.
    """

    role: NormalizedName
    group: NormalizedName | None
    choices: tuple[Choice, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """A project's wishes, roles in order of their groups and names.

    platforms: those that the project is for; all, if none is named.
    indexes: where the indexes of namespaces are, relative to the project.
    """

    wanted: tuple[Wanted, ...] = ()
    platforms: tuple[str, ...] = ()
    policy: LicensePolicy = field(default_factory=LicensePolicy)
    indexes: tuple[tuple[NormalizedName, str], ...] = ()

    @property
    def groups(self) -> tuple[NormalizedName, ...]:
        """The names of all groups."""
        return tuple(dict.fromkeys(one.group for one in self.wanted if one.group))


def check_conflicts(content: bytes, source: str, hint: str) -> None:
    """Refuse a document that a merge left unfinished.

    Raises:
        DocumentError: there are conflict markers in it.
    """
    if match := _CONFLICT.search(content):
        line = content.count(b"\n", 0, match.start()) + 1
        if content.count(b"\n<<<<<<< ", 0, match.end()) or content.startswith(b"<<<<<<< "):
            reason = f"line {line} is a merge conflict's marker"
            raise DocumentError(reason, source=source, hint=hint)


def is_platform(text: str) -> bool:
    """Whether text names a platform: a system, or a system and its machine.

    >>> is_platform("linux-x86_64"), is_platform("macos"), is_platform("amiga")
    (True, True, False)
    """
    system, _, machine = text.partition("-")
    return system in SYSTEMS and (text == system or machine in MACHINES)


def read_manifest(content: bytes, *, source: str) -> Manifest:
    """Read a project's wishes from weights.toml, or from pyproject.toml.

    Args:
        content: the file's bytes.
        source: its name; if that ends in pyproject.toml, `[tool.weightpkg]` counts.

    Raises:
        DocumentError: a key is not known, or a value is not what it must be; names the key, and the
            nearest one that is known.
    """
    check_conflicts(content, source, "settle the merge in an editor")
    table = parse_document(content, source=source)
    if source.endswith(PYPROJECT):
        table = table.table("tool").table("weightpkg")
    has_models, has_indexes = (table.optional(key, dict) for key in ("models", "indexes"))
    platforms, policy = _platforms(table), _policy(table)
    table.finish()
    manifest = Manifest(
        wanted=_sorted(_read_models(table.table("models"))) if has_models else (),
        platforms=platforms,
        policy=policy,
        indexes=tuple(_read_indexes(table.table("indexes"))) if has_indexes else (),
    )
    _check_roles(manifest, table)
    return manifest


def has_table(content: bytes, *, source: str) -> bool:
    """Whether a pyproject.toml is a project's manifest.

    Raises:
        DocumentError: it cannot be read.
    """
    if not re.search(rb"tool\s*\.\s*weightpkg", content):  # of others it is no matter what is wrong
        return False
    document = parse_document(content, source=source)
    return "tool" in document and "weightpkg" in document.table("tool")


def _platforms(table: Table) -> tuple[str, ...]:
    names = table.strings("platforms")
    for i, name in enumerate(names):
        _check_platform(table, f"platforms[{i}]", name)
    return tuple(sorted(set(names)))


def _check_platform(table: Table, key: str, name: str) -> None:
    if not is_platform(name):
        known = [*SYSTEMS, *(f"{system}-{machine}" for system in SYSTEMS for machine in MACHINES)]
        near = nearest(name, known)
        meant = f"; did you mean `{near[0]}`?" if near else f"; there is {', '.join(known)}"
        raise table.error(key, f"`{name}` is not a platform{meant}")


def _policy(table: Table) -> LicensePolicy:
    allowed = table.strings("allow-licenses")
    for key in ("allow-licenses", "deny"):
        for i, text in enumerate(table.strings(key)):
            if not re.match(r"[A-Za-z0-9][A-Za-z0-9.+-]*( WITH [A-Za-z0-9.-]+)?\Z", text):
                raise table.error(f"{key}[{i}]", f"`{text}` is not the SPDX name of a license")
    return LicensePolicy(allowed if "allow-licenses" in table else None, table.strings("deny"))


def _read_indexes(table: Table) -> Iterator[tuple[NormalizedName, str]]:
    seen: dict[NormalizedName, str] = {}
    for key in table.keys():  # noqa: SIM118  a Table is no dict
        name = _name_of(table, key)
        if name in seen:
            raise table.error(key, f"is the same namespace as `{seen[name]}`")
        seen[name] = key
        yield name, table.required(key, str)


def _read_models(table: Table) -> Iterator[Wanted]:
    for key in table.keys():  # noqa: SIM118
        if table.is_table(key) and not set(table.table(key).keys()) & set(_ENTRY_KEYS):
            group = table.table(key)
            for role in group.keys():  # noqa: SIM118
                yield _read_role(group, role, _name_of(table, key))
        else:
            yield _read_role(table, key, None)


def _read_role(table: Table, key: str, group: NormalizedName | None) -> Wanted:
    if key in _ENTRY_KEYS:
        raise table.error(key, "describes a model, and cannot be what a role is called")
    role = _name_of(table, key)
    if table.is_table(key):
        return Wanted(role, group, tuple(_read_entry(table.table(key))))
    return Wanted(role, group, (Choice(_requirement(table, key, table.required(key, str))),))


def _read_entry(entry: Table) -> Iterator[Choice]:
    """Yield the choices of `{ name = "minilm-l6", version = ">=1", variants = { macos = "q8" } }`."""
    name = entry.required("name", str)
    version, variant = entry.optional("version", str), entry.optional("variant", str)
    variants = entry.table("variants") if "variants" in entry else None
    entry.finish()
    if is_reference(name):
        for key in ("version", "variant", "variants"):
            if key in entry:
                raise entry.error(key, "is not for a model that is named by its source")
    specifier = _specifier(entry, version)
    for platform in sorted(variants.keys() if variants else ()):
        own = cast("Table", variants)
        _check_platform(own, platform, platform)
        text = f"{name}-{own.required(platform, str)}{specifier}"
        yield Choice(_requirement(entry, "variants", text), (platform,))
    if variant or not variants:
        full = f"{name}-{variant}" if variant else name
        yield Choice(_requirement(entry, "name", f"{full}{specifier}"))


def _specifier(entry: Table, version: str | None) -> str:
    if version is None or version.strip() == "*":
        return ""
    text = version.strip()
    text = f"=={text}" if text[:1].isdigit() else text
    from packaging.specifiers import InvalidSpecifier, SpecifierSet  # noqa: PLC0415  slow

    try:
        SpecifierSet(text)
    except InvalidSpecifier as error:
        raise entry.error("version", f"`{version}` is not a version, or a specifier") from error
    return text


def _requirement(table: Table, key: str, text: str) -> str:
    if not is_reference(text):
        try:
            Requirement.parse(text)
        except RequirementError as error:
            raise table.error(key, error.message) from error
    return text


def _name_of(table: Table, key: str) -> NormalizedName:
    if not is_name(key):
        raise table.error(key, "is not a name: letters, digits, `-`, `_` and `.`")
    return normalize_name(key)


def _sorted(wanted: Iterator[Wanted]) -> tuple[Wanted, ...]:
    return tuple(sorted(wanted, key=lambda one: (one.group or "", one.role)))


def _check_roles(manifest: Manifest, table: Table) -> None:
    seen: set[str] = set()
    for one in manifest.wanted:
        if one.role in seen:
            raise table.error("models", f"has the role `{one.role}` twice")
        seen.add(one.role)
    if both := sorted(seen & set(manifest.groups)):
        raise table.error("models", f"has a role and a group that are called `{both[0]}`")


NEW_MANIFEST = """\
# What this project needs of models: https://github.com/weightpkg/weightpkg/blob/main/docs/projects.md
# allow-licenses = ["Apache-2.0", "MIT"]

[models]
"""


def add_table(text: str) -> str:
    """Return a pyproject.toml's text with a `[tool.weightpkg.models]`."""
    document, _ = _models_of(text, PYPROJECT)
    return document.as_string()


def role_of(requirement: str) -> str:
    """What a role is called that nobody gave a name: as the model.

    >>> role_of("acme/support-q8>=2"), role_of("hf:acme/Tiny-GGUF@main/tiny-q4.gguf")
    ('support-q8', 'tiny-q4')
    """
    if not is_reference(requirement):
        return Requirement.parse(requirement).name
    last = re.split(r"[?#]", requirement)[0].rstrip("/").rpartition("/")[2]
    stem = re.sub(r"@.*|\.(gguf|safetensors|onnx)\Z", "", last)
    return normalize_name(re.sub(r"[^A-Za-z0-9]+", "-", stem).strip("-")[:60].strip("-") or "model")


def add_role(
    text: str, role: str, requirement: str, *, group: str | None = None, source: str
) -> str:
    """Return a manifest's text with a role that needs something; what is else in it stays.

    Args:
        text: the manifest's.
        role: a name; if the group has it, its requirement is changed.
        requirement: what it needs on all platforms.
        group: where it belongs, None for those that every user needs.
        source: the manifest's file name.

    Raises:
        DocumentError: the manifest is not valid, or would not be.
        ProjectError: the role is there in another group, or with choices by platform.
    """
    before = read_manifest(text.encode(), source=source)
    wanted = Wanted(
        normalize_name(role), normalize_name(group) if group else None, (Choice(requirement),)
    )
    for one in before.wanted:
        if one.role == wanted.role and (one.group != wanted.group or len(one.choices) > 1):
            raise ProjectError(
                f"`{source}` has the role `{role}` already",
                hint="edit it there, or choose another role with `--role NAME`",
            )
    document, models = _models_of(text, source)
    place = models
    if group:
        own = _key_like(models, group)
        if own not in models:
            models.add(own, _new_group(models))
        place = cast("Container", models[own])
    place[_key_like(place, role)] = requirement
    others = [one for one in before.wanted if one.role != wanted.role]
    return _checked(document, before, [*others, wanted], source)


def remove_role(text: str, role: str, *, source: str) -> str:
    """Return a manifest's text without a role; a group that is empty then goes, too.

    Raises:
        DocumentError: the manifest is not valid.
        ProjectError: there is no such role.
    """
    before = read_manifest(text.encode(), source=source)
    found = next((one for one in before.wanted if one.role == normalize_name(role)), None)
    if found is None:
        near = nearest(role, [one.role for one in before.wanted])
        raise ProjectError(
            f"`{source}` has no role `{role}`",
            hint=f"did you mean `{near[0]}`?" if near else "`weightpkg tree` lists them",
        )
    document, models = _models_of(text, source)
    place = models
    if found.group:
        group = _key_like(models, found.group)
        place = cast("Container", models[group])
    del place[_key_like(place, found.role)]
    if found.group and not place:
        del models[group]
    others = [one for one in before.wanted if one is not found]
    return _checked(document, before, others, source)


def _models_of(text: str, source: str) -> tuple[TOMLDocument, Container]:
    """Return the document for edits, and its table of models, made where there is none."""
    import tomlkit  # noqa: PLC0415  only edits need it

    document = tomlkit.parse(text)
    table = cast("Any", document)
    for key in ("tool", "weightpkg") if source.endswith(PYPROJECT) else ():
        if key not in table:
            table.add(key, tomlkit.table(is_super_table=True))
        table = table[key]
    if "models" not in table:
        table.add("models", tomlkit.table())
    return document, cast("Container", table["models"])


def _new_group(models: Container) -> Any:
    import tomlkit  # noqa: PLC0415  only edits need it

    is_inline = isinstance(models, tomlkit.items.InlineTable)
    return tomlkit.inline_table() if is_inline else tomlkit.table()


def _key_like(table: Container, name: str) -> str:
    """The key of a table that is the same name, in the way it is written there."""
    return next(
        (key for key in table if is_name(key) and normalize_name(key) == normalize_name(name)), name
    )


def _checked(document: TOMLDocument, before: Manifest, wanted: list[Wanted], source: str) -> str:
    """Return the edited text, if it says what it shall and nothing else."""
    text = document.as_string()
    after = read_manifest(text.encode(), source=source)
    expected = Manifest(
        wanted=_sorted(iter(wanted)),
        platforms=before.platforms,
        policy=before.policy,
        indexes=before.indexes,
    )
    if after != expected:
        raise ProjectError(
            f"`{source}` is written in a way that cannot be edited by program",
            hint="edit it by hand, then `weightpkg lock`",
        )
    return text
