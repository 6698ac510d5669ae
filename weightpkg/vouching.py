"""Who vouches for a model's page in a signed index: the roles from the root down, and their keys.

It is read from the metadata that is held, which was verified before it was written; each signature is
verified once more, as metadata may have signatures that nobody asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightpkg.audit import Role, Signed
from weightpkg.errors import FetchError, TrustError
from weightpkg.trust.index import SignedIndex

if TYPE_CHECKING:
    from tuf.api.metadata import Metadata

    from weightpkg.project import Indexes
    from weightpkg.requirement import NormalizedName

_TOP = ("root", "timestamp", "snapshot", "targets")


class IndexSignatures:
    """The signatures of the indexes that a project, or a user, has; as `audit.Signatures`."""

    def __init__(self, indexes: Indexes) -> None:
        self._indexes = indexes

    def signed(self, index: NormalizedName, name: NormalizedName) -> Signed | None:
        """Return who vouches for a model's page; None for an index that is not signed.

        Of an index that is refused, or not to be had, no role vouches for anything.
        """
        found = self._indexes.index(index)
        if not isinstance(found, SignedIndex):
            return None
        roles: tuple[Role, ...] = ()
        with suppress(FetchError, TrustError):
            roles = tuple(_roles(found, name))
        return Signed(root=found.root, roles=roles)


def _roles(index: SignedIndex, name: NormalizedName) -> Iterator[Role]:
    """Yield the roles that vouch for a page, from the root down."""
    pages, state = index.pages, index.pages.client.directory
    pages.read("models", name)  # so that all of them are held
    memory = pages.client.memory()
    versions = {"root": memory.root, **memory.held}
    held = {role: state / "held" / f"{versions.get(role)}.{role}.json" for role in _TOP}
    delegated: dict[str, str] = {}
    delegated[pages.role_of("models", name)] = pages.namespace
    delegated[pages.namespace] = "targets"
    # first the namespace's own role, then the bin that it delegates to
    ordered = sorted(delegated, key=lambda role: role != pages.namespace)
    paths = {**held, **{role: state / "roles" / f"{role}.json" for role in ordered}}
    parents: dict[str, str] = {**dict.fromkeys(_TOP, "root"), **delegated}
    loaded = {role: _load(path) for role, path in paths.items() if path.is_file()}
    for role, metadata in loaded.items():
        if (parent := loaded.get(parents[role])) is not None:
            yield _role(role, metadata, parent)


def _load(path: Path) -> Metadata[Any]:
    from tuf.api.metadata import Metadata  # noqa: PLC0415  slow, and only signed indexes need it

    return Metadata.from_file(str(path))


def _role(name: str, metadata: Metadata[Any], parent: Metadata[Any]) -> Role:
    signed = metadata.signed
    result = parent.signed.get_verification_result(name, metadata.signed_bytes, metadata.signatures)
    return Role(name, signed.version, signed.expires, tuple(sorted(result.signed)))
