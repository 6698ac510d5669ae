"""What is held of a signed index, for people: roles, versions, dates, keys, and what is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from tuf.api.exceptions import RepositoryError, StorageError
from tuf.api.metadata import Metadata, Root, Targets

from weightpkg.trust.memory import load_memory


@dataclass(frozen=True, kw_only=True, slots=True)
class RoleStatus:
    """A role as it is held; `keys` are those that may sign it."""

    name: str
    version: int
    expires: datetime
    threshold: int
    keys: tuple[str, ...]
    is_expired: bool

    def as_json(self) -> dict[str, object]:
        """The same for programs."""
        return {
            "name": self.name,
            "version": self.version,
            "expires": self.expires.isoformat(),
            "is-expired": self.is_expired,
            "threshold": self.threshold,
            "keys": list(self.keys),
        }


def read_status(state: Path, now: datetime, staleness: timedelta) -> list[RoleStatus]:
    """Return the roles that are held; of bins only those that are.

    Args:
        state: the index's.
        now: the clock; the greatest time that was seen counts where that is later.
        staleness: how long after its expiry metadata still counts.

    Raises:
        StoreError: the memory cannot be read.
    """
    memory = load_memory(state)
    if not memory.held:
        return []
    now = max(now, memory.seen) - staleness
    found = {
        "root": _load(state / "held" / f"{memory.root}.root.json"),
        **{role: _load(state / "held" / f"{v}.{role}.json") for role, v in memory.held.items()},
        **{role: _load(state / "roles" / f"{role}.json") for role in memory.roles},
    }
    return list(_rows({name: one for name, one in found.items() if one is not None}, now))


def _load(path: Path) -> Metadata[Any] | None:
    """Read what was verified before it was written; None where it is gone since."""
    try:
        return Metadata.from_file(str(path))
    except (RepositoryError, StorageError):
        return None


def _rows(found: Mapping[str, Metadata[Any]], now: datetime) -> Iterator[RoleStatus]:
    for name, metadata in found.items():
        signer = _signer(name, found)
        yield RoleStatus(
            name=name,
            version=metadata.signed.version,
            expires=metadata.signed.expires,
            threshold=signer.threshold if signer else 0,
            keys=tuple(signer.keyids) if signer else (),
            is_expired=metadata.signed.is_expired(now),
        )


def _signer(name: str, found: Mapping[str, Metadata[Any]]) -> Any:
    """Return what says who may sign a role."""
    root = found.get("root")
    if root is not None and isinstance(root.signed, Root) and name in root.signed.roles:
        return root.signed.roles[name]
    for metadata in found.values():
        delegations = metadata.signed.delegations if isinstance(metadata.signed, Targets) else None
        if delegations is None:
            continue
        if delegations.roles and name in delegations.roles:
            return delegations.roles[name]
        if delegations.succinct_roles and delegations.succinct_roles.is_delegated_role(name):
            return delegations.succinct_roles
    return None
