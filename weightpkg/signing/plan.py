"""`signing.toml`: which keys an index is signed with, how many of them, and for how long.

    schema = 1
    namespace = "acme"              what the index owns
    title = "Models of Acme"        free

    [expiry-days]                   how long a signature counts
    root = 365
    targets = 180                   also of namespaces and their bins
    snapshot = 30
    timestamp = 7

    [keys.alice]
    public = "64 hexadecimal digits"
    private = "/media/alice.pem"    where the private key is, when it is here; may be left out

    [roles.root]                    also roles.targets, roles.snapshot, roles.timestamp
    keys = ["alice", "bob", "carol"]
    threshold = 2

    [namespaces.acme]               who signs pages; other names are publishers that are hosted
    keys = ["pages"]
    threshold = 1
    bins = 128                      may be left out: it is then chosen by the number of pages

There is no secret in it. It says what is wanted; what is signed is in the metadata.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from weightpkg.document import Table, parse_document
from weightpkg.errors import DocumentError, SigningError
from weightpkg.requirement import NormalizedName, normalize_name
from weightpkg.signing.keys import PublicKey

PLAN = "signing.toml"
SCHEMA = (1, 0)
ROOT, TARGETS, SNAPSHOT, TIMESTAMP = TOP_ROLES = ("root", "targets", "snapshot", "timestamp")
EXPIRY_DAYS: Mapping[str, int] = {ROOT: 365, TARGETS: 180, SNAPSHOT: 30, TIMESTAMP: 7}
MAX_EXPIRY_DAYS = 3650
MAX_BINS = 1 << 16

_RESERVED = re.compile(r"root|targets|snapshot|timestamp|models|aliases|licenses|metadata|staged")
_BIN = re.compile(r".*-bin-[0-9a-f]+")


@dataclass(frozen=True, slots=True)
class Role:
    """Whose signatures a role needs: any `threshold` of these keys, by the plan's names for them."""

    keys: tuple[str, ...]
    threshold: int


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace's role; `bins` is None where the number of pages decides, 0 for none."""

    role: Role
    bins: int | None = None


@dataclass(frozen=True, slots=True)
class NamedKey:
    """A key of the plan; `private` is where the private one is when it is here."""

    public: PublicKey
    private: Path | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class SigningPlan:
    """The plan, read and whole: every role has as many keys as its threshold, at least one."""

    namespace: NormalizedName
    keys: Mapping[str, NamedKey]
    roles: Mapping[str, Role]
    namespaces: Mapping[NormalizedName, Namespace]
    expiry_days: Mapping[str, int] = field(default_factory=lambda: dict(EXPIRY_DAYS))
    title: str | None = None

    def lifetime(self, role: str) -> timedelta:
        """How long a signature of a role counts."""
        return timedelta(days=self.expiry_days.get(role, self.expiry_days[TARGETS]))

    def name_of(self, key_id: str) -> str | None:
        """What the plan calls a key, None where it does not know it."""
        return next((name for name, key in self.keys.items() if key.public.id == key_id), None)

    def uses_of(self, name: str) -> Iterator[tuple[str, str]]:
        """Yield section and name of each role that a key signs for."""
        for role, keys in self.roles.items():
            if name in keys.keys:
                yield "roles", role
        for namespace, own in self.namespaces.items():
            if name in own.role.keys:
                yield "namespaces", namespace


def read_plan(content: bytes, *, source: str = PLAN) -> SigningPlan:
    """Read a plan.

    Raises:
        DocumentError: something is missing, wrong, or not known; names the key.
    """
    table = parse_document(content, source=source)
    table.version("schema", SCHEMA)
    keys = dict(_read_keys(table.table("keys")))
    rows = table.table("roles")
    roles = {name: _read_role(rows.table(name), keys) for name in TOP_ROLES}
    rows.finish()
    plan = SigningPlan(
        namespace=table.parsed("namespace", check_namespace),
        title=table.optional("title", str),
        keys=keys,
        roles=roles,
        namespaces=dict(_read_namespaces(table.table("namespaces"), keys)),
        expiry_days=_read_expiry(table),
    )
    table.finish()
    if plan.namespace not in plan.namespaces:
        raise table.error("namespaces", f"must have `{plan.namespace}`, the index's own")
    return plan


def check_namespace(text: str) -> NormalizedName:
    """Return a namespace's name; ValueError where it cannot be one.

    >>> check_namespace("Acme.AI")
    'acme-ai'
    """
    name = normalize_name(text)
    if _RESERVED.fullmatch(name) or _BIN.fullmatch(name):
        raise ValueError(f"`{name}` has a meaning of its own in an index")
    return name


def _read_keys(table: Table) -> Iterator[tuple[str, NamedKey]]:
    seen: dict[str, str] = {}
    for name in table.keys():  # noqa: SIM118  a Table is no dict
        row = table.table(name)
        public = row.parsed("public", PublicKey)
        private = row.optional("private", str)
        row.finish()
        if public.hex in seen:  # a person with two names would count twice
            raise table.error(name, f"is the same key as `{seen[public.hex]}`")
        seen[public.hex] = name
        yield name, NamedKey(public, Path(private).expanduser() if private else None)


def _read_role(table: Table, keys: Mapping[str, NamedKey]) -> Role:
    names = table.strings("keys")
    for i, name in enumerate(names):
        if name not in keys:
            raise table.error(f"keys[{i}]", f"no key is called `{name}`")
        if name in names[:i]:
            raise table.error(f"keys[{i}]", f"`{name}` is there twice")
    threshold = table.required("threshold", int)
    if threshold < 1:
        raise table.error("threshold", "must be at least 1: with 0, anybody could sign")
    if threshold > len(names):
        raise table.error("threshold", f"is {threshold}, and there are {len(names)} keys")
    table.finish()
    return Role(names, threshold)


def _read_namespaces(
    table: Table, keys: Mapping[str, NamedKey]
) -> Iterator[tuple[NormalizedName, Namespace]]:
    for name in table.keys():  # noqa: SIM118  a Table is no dict
        try:
            if check_namespace(name) != name:
                raise table.error(name, f"must be written `{normalize_name(name)}`")
        except ValueError as error:
            raise table.error(name, str(error)) from error
        row = table.table(name)
        bins = row.natural("bins")
        if bins is not None and bins != 0 and (bins & (bins - 1) or not 2 <= bins <= MAX_BINS):
            raise row.error("bins", f"must be 0 or a power of two, at most {MAX_BINS}")
        yield NormalizedName(name), Namespace(_read_role(row, keys), bins)


def _read_expiry(table: Table) -> dict[str, int]:
    days = dict(EXPIRY_DAYS)
    if "expiry-days" in table:
        rows = table.table("expiry-days")
        for role in TOP_ROLES:
            value = rows.natural(role)
            if value is not None and not 1 <= value <= MAX_EXPIRY_DAYS:
                raise rows.error(role, f"must be between 1 and {MAX_EXPIRY_DAYS} days")
            days[role] = value or days[role]
        rows.finish()
    return days


def new_plan(
    namespace: NormalizedName,
    keys: Mapping[str, NamedKey],
    roles: Mapping[str, Role],
    *,
    title: str | None = None,
) -> str:
    """Write the plan of a new index. roles: those of `TOP_ROLES`, and `pages` of the namespace.

    Raises:
        DocumentError: the roles and keys do not fit.
    """
    import tomlkit  # noqa: PLC0415  only edits need it

    document = tomlkit.document()
    document.add(tomlkit.comment("Who signs this index; docs/maintaining-an-index.md. No secrets."))
    document.update({"schema": 1, "namespace": namespace} | ({"title": title} if title else {}))
    document["expiry-days"] = dict(EXPIRY_DAYS)
    document["keys"] = {name: _key_table(key) for name, key in keys.items()}
    document["roles"] = {name: _role_table(roles[name]) for name in TOP_ROLES}
    document["namespaces"] = {namespace: _role_table(roles["pages"])}
    return _checked(document)


def _key_table(key: NamedKey) -> dict[str, str]:
    table = {"public": key.public.hex}
    return table if key.private is None else table | {"private": str(key.private)}


def _role_table(role: Role) -> dict[str, object]:
    return {"keys": list(role.keys), "threshold": role.threshold}


def add_key(text: str, name: str, key: NamedKey) -> str:
    """Return a plan's text with one more key.

    Raises:
        SigningError: another key has that name.
        DocumentError: it is a key that is there under another name.
    """
    document = _document(text)
    if name in document["keys"]:
        raise SigningError(f"a key is called `{name}` already", hint="each key has its own name")
    document["keys"][name] = _key_table(key)
    return _checked(document)


def set_role(text: str, section: str, name: str, role: Role) -> str:
    """Return a plan's text with other keys of a role.

    Args:
        text: the plan.
        section: `roles` or `namespaces`.
        name: the role's.
        role: its keys.

    Raises:
        DocumentError: the threshold and the keys do not fit.
    """
    document = _document(text)
    rows = document[section]
    if name in rows:
        rows[name].update(_role_table(role))
    else:
        rows[name] = _role_table(role)
    return _checked(document)


def remove_key(text: str, name: str) -> str:
    """Return a plan's text without a key, which no role may need any more.

    Raises:
        DocumentError: a role needs it.
    """
    document = _document(text)
    del document["keys"][name]
    return _checked(document)


def without(role: Role, name: str) -> Role:
    """A role without a key; SigningError where too few are left."""
    rest = tuple(key for key in role.keys if key != name)
    if len(rest) < role.threshold:
        raise SigningError(
            f"without `{name}` there are {len(rest)} keys, and {role.threshold} must sign",
            hint="`weightpkg index key rotate ROLE --old NAME --new FILE` puts another in its place",
        )
    return Role(rest, role.threshold)


def replaced(keys: Sequence[str], old: str, new: str) -> tuple[str, ...]:
    """Keys with another one in the place of one of them."""
    return tuple(new if key == old else key for key in keys)


def _document(text: str) -> Any:
    """Parse for an edit; tomlkit's own types do not know which items are tables."""
    import tomlkit  # noqa: PLC0415  only edits need it

    return tomlkit.parse(text)


def _checked(document: Any) -> str:
    text = str(document.as_string())
    try:
        read_plan(text.encode())
    except DocumentError as error:
        raise SigningError(error.message, hint=error.hint) from error
    return text
