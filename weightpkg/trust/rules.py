"""Who may sign what in an index: one role for each namespace, and nothing beside it.

    targets                 index.toml, and delegations: one role a namespace, terminating
      NAMESPACE             models/*, aliases/*, licenses/*       the index's own
      PUBLISHER             PUBLISHER/models/*, ...               one that it hosts
        ...-bin-0 ...       hash bins of a namespace with many pages (TAP 15)

TUF checks that a role was delegated what is asked for. Here it is checked that nobody was delegated,
or signs, what belongs to another namespace, also where nobody asks for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from weightpkg.document import parse_document
from weightpkg.errors import DocumentError, TrustError
from weightpkg.requirement import NormalizedName, is_name, normalize_name

if TYPE_CHECKING:
    from tuf.api.metadata import DelegatedRole, Root, TargetFile, Targets

KINDS = ("models", "aliases", "licenses")
INDEX_PAGE = "index.toml"
MAX_BINS = 2**16
_RESERVED = {"root", "targets", "snapshot", "timestamp"}
_PAGE = re.compile(r"(models|aliases)/([a-z0-9-]+)\.toml|licenses/([A-Za-z0-9.+-]+)\.txt")
_WRONG = "this index is not one to trust as it is: tell its maintainers"


def read_index_page(content: bytes, name: str) -> NormalizedName:
    """Return the namespace that an index says it has.

    Raises:
        TrustError: its page is not valid.
    """
    try:
        table = parse_document(content, source=INDEX_PAGE)
        table.version("schema", (1, 0))
        namespace = table.parsed("namespace", normalize_name)
        for key in ("title", "homepage", "description"):
            table.optional(key, str)
    except DocumentError as error:
        raise TrustError(name, INDEX_PAGE, f"is not valid: {error.message}", hint=_WRONG) from error
    return namespace


def check_top(name: str, root: Root, targets: Targets, namespace: NormalizedName) -> None:
    """Refuse an index whose roles are not laid out as above.

    Args:
        name: what it is called here.
        root: its root.
        targets: its top role.
        namespace: the index's own.

    Raises:
        TrustError: a role has what belongs to another one.
    """
    if not root.consistent_snapshot:
        raise TrustError(name, "root.json", "has no consistent snapshots", hint=_WRONG)
    for path in targets.targets:
        if path.partition("/")[2]:
            raise TrustError(name, "targets.json", f"signs `{path}` itself", hint=_WRONG)
    delegations = targets.delegations
    if delegations is None:
        return
    if delegations.succinct_roles is not None:
        raise TrustError(name, "targets.json", "delegates all names at once", hint=_WRONG)
    for role in (delegations.roles or {}).values():
        _check_delegation(name, role, namespace)


def _check_delegation(name: str, role: DelegatedRole, namespace: NormalizedName) -> None:
    what = f"{role.name[:100]}.json"
    is_plain = is_name(role.name) and normalize_name(role.name) == role.name
    if not is_plain or role.name in _RESERVED:
        raise TrustError(name, what, "is called by no name of a namespace", hint=_WRONG)
    if not role.terminating:
        raise TrustError(name, what, "leaves its names to other roles, too", hint=_WRONG)
    own = {f"{prefix_of(role.name, namespace)}{kind}/*" for kind in KINDS}
    for path in role.paths or ["everything"]:
        if path not in own:
            reason = f"was given `{path[:200]}`, which is of another namespace"
            raise TrustError(name, what, reason, hint=_WRONG)


def prefix_of(role: str, namespace: NormalizedName) -> str:
    """What paths of a namespace begin with: nothing for the index's own."""
    return "" if role == namespace else f"{role}/"


def bins_of(name: str, role_name: str, role: Targets) -> list[str]:
    """Return the names of a namespace's bins; none where it has its pages itself.

    Raises:
        TrustError: it delegates in another way.
    """
    if role.delegations is None:
        return []
    succinct = role.delegations.succinct_roles
    what = f"{role_name}.json"
    if succinct is None:
        if role.delegations.roles:
            raise TrustError(name, what, "delegates to others", hint=_WRONG)
        return []
    if succinct.name_prefix != f"{role_name}-bin" or succinct.number_of_bins > MAX_BINS:
        raise TrustError(name, what, f"has bins `{succinct.name_prefix[:100]}`", hint=_WRONG)
    return list(succinct.get_roles())


def pages_of(
    name: str, role_name: str, role: Targets, prefix: str, parent: Targets | None = None
) -> Iterator[tuple[str, str, TargetFile]]:
    """Yield kind, name and what is signed of each page of a role.

    Args:
        name: what the index is called here.
        role_name: the role's.
        role: a namespace's role, or one of its bins.
        prefix: what the namespace's paths begin with.
        parent: of a bin, the namespace's role.

    Raises:
        TrustError: it signs what is not its own.
    """
    succinct = parent.delegations.succinct_roles if parent and parent.delegations else None
    if succinct is not None and role.delegations is not None:
        raise TrustError(name, f"{role_name}.json", "is a bin, and delegates", hint=_WRONG)
    for path, info in role.targets.items():
        rest = path.removeprefix(prefix)
        match = _PAGE.fullmatch(rest) if path.startswith(prefix) else None
        if match is None or (succinct and succinct.get_role_for_target(path) != role_name):
            reason = f"signs `{path[:200]}`, which is not its own"
            raise TrustError(name, f"{role_name}.json", reason, hint=_WRONG)
        yield match[1] or "licenses", match[2] or match[3], info


def has_role(targets: Targets, namespace: NormalizedName) -> bool:
    """Whether there is a role for a namespace."""
    roles = (targets.delegations.roles if targets.delegations else None) or {}
    return namespace in roles


def is_hosted(targets: Targets, namespace: NormalizedName) -> bool:
    """Whether an index has a role for a namespace that is not its own."""
    roles = (targets.delegations.roles if targets.delegations else None) or {}
    paths = roles[namespace].paths if namespace in roles else None
    return bool(paths) and all(path.startswith(f"{namespace}/") for path in paths or ())
