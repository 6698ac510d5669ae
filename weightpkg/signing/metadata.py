"""The metadata that signs an index, made and checked; bytes and values only, no files.

What each role says follows from the plan and the pages alone. A role is signed again only where
that changes, where its keys do, or where its time is over: one changed page re-signs the role or the
hash bin that has it, the snapshot, the timestamp, and nothing else.

- `targets` signs `index.toml`, and delegates each namespace to a role of its name, terminating.
- A namespace of more than `MAX_PAGES` pages delegates to hash bins (TAP 15).
- snapshot and timestamp name versions, no digests: so roles can be signed in any order, on any machine.

https://theupdateframework.github.io/specification/v1.0.33/
https://github.com/theupdateframework/taps/blob/b4ebdc5/tap15.md
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    SuccinctRoles,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization import DeserializationError

from weightpkg.errors import SigningError
from weightpkg.signing.plan import ROOT, SNAPSHOT, TARGETS, TIMESTAMP, TOP_ROLES, Role, SigningPlan

if TYPE_CHECKING:
    from securesystemslib.signer import Key, Signer
    from tuf.api.metadata import (
        Signed,
    )

MAX_PAGES = 2_000
"""Of a role without bins."""
MAX_METADATA = 32 * 1024 * 1024
INDEX_TOML = "index.toml"
KINDS = ("models", "aliases", "licenses")

Delegator = Root | Targets


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """How far a role is signed; `missing` are the ids of keys that have not signed yet.

    `signed` of `threshold` is what its delegator asks for; of a root the old root asks, too.
    """

    role: str
    version: int
    expires: datetime
    signed: int
    threshold: int
    missing: tuple[str, ...]

    @property
    def is_complete(self) -> bool:
        """Whether enough keys have signed."""
        return 0 < self.threshold <= self.signed


def parse(content: bytes, kind: type[Signed], source: str) -> Metadata[Any]:
    """Read metadata of one kind.

    Raises:
        SigningError: it is not valid, or of another kind.
    """
    try:
        if len(content) > MAX_METADATA:
            raise SigningError(f"`{source}` is larger than {MAX_METADATA:,} bytes")
        metadata = Metadata[Any].from_bytes(content)
    except (DeserializationError, RecursionError) as error:
        raise SigningError(f"`{source}` is not valid metadata") from error
    if not isinstance(metadata.signed, kind):
        raise SigningError(f"`{source}` is {metadata.signed.type}, not {kind.__name__.lower()}")
    return metadata


def kind_of(role: str) -> type[Signed]:
    """The kind of metadata that a role has."""
    kinds: dict[str, type[Signed]] = {ROOT: Root, SNAPSHOT: Snapshot, TIMESTAMP: Timestamp}
    return kinds.get(role, Targets)


def root_of(plan: SigningPlan, expires: datetime) -> Root:
    """What a root says: the keys and thresholds of the four top roles."""
    root = Root(expires=expires, consistent_snapshot=True)
    for name in TOP_ROLES:
        for key in plan.roles[name].keys:
            root.add_key(plan.keys[key].public.tuf, name)
        root.roles[name].threshold = plan.roles[name].threshold
    return root


def targets_of(plan: SigningPlan, index_toml: bytes, expires: datetime) -> Targets:
    """What the top role of targets says: `index.toml`, and who owns which paths."""
    roles = {
        str(name): DelegatedRole(
            name,
            _ids(plan, own.role),
            own.role.threshold,
            terminating=True,
            paths=list(paths_of(plan, name)),
        )
        for name, own in plan.namespaces.items()
    }
    keys = {key: None for own in plan.namespaces.values() for key in own.role.keys}
    delegations = Delegations(_keys(plan, keys), roles)
    entry = entry_of(INDEX_TOML, index_toml, {})
    return Targets(expires=expires, targets={INDEX_TOML: entry}, delegations=delegations)


def paths_of(plan: SigningPlan, namespace: str) -> Iterator[str]:
    """The patterns of the paths that a namespace owns."""
    prefix = "" if namespace == plan.namespace else f"{namespace}/"
    yield from (f"{prefix}{kind}/*" for kind in KINDS)


def entry_of(path: str, content: bytes, custom: Mapping[str, Any]) -> TargetFile:
    """A page as metadata has it."""
    hashes = {"sha256": hashlib.sha256(content).hexdigest()}
    return TargetFile(len(content), hashes, path, {"custom": dict(custom)} if custom else None)


def number_of_bins(pages: int, present: int = 0) -> int:
    """How many bins so many pages have; 0 for none. What there is stays until it is far off.

    A client that updates takes the snapshot, which grows with the bins, and one bin, which shrinks
    with them: a bin's line takes 38 bytes and a page's entry about 400, so together they are least
    where bins = sqrt(10 pages).

    >>> number_of_bins(2_000), number_of_bins(100_000), number_of_bins(1_000_000)
    (0, 1024, 4096)
    >>> number_of_bins(120_000, present=512)
    512
    """
    if pages <= MAX_PAGES and not present:
        return 0
    best: int = 1 << max(1, round(math.log2(math.sqrt(10 * max(pages, 1)))))
    return present if present and best <= 2 * present else best


def namespace_of(
    plan: SigningPlan,
    namespace: str,
    entries: Mapping[str, TargetFile],
    bins: int,
    expires: datetime,
) -> dict[str, Targets]:
    """What a namespace's role says, and each of its bins, by role.

    Args:
        plan: has its keys.
        namespace: its name.
        entries: its pages.
        bins: how many; 0 for none.
        expires: of each role that is signed again.
    """
    if not bins:
        return {namespace: Targets(expires=expires, targets=dict(sorted(entries.items())))}
    role = next(own.role for name, own in plan.namespaces.items() if name == namespace)
    succinct = SuccinctRoles(
        _ids(plan, role), role.threshold, bins.bit_length() - 1, f"{namespace}-bin"
    )
    keys = _keys(plan, role.keys)
    made = {name: Targets(expires=expires) for name in succinct.get_roles()}
    for path, entry in sorted(entries.items()):
        made[succinct.get_role_for_target(path)].targets[path] = entry
    top = Targets(expires=expires, delegations=Delegations(keys, succinct_roles=succinct))
    return {namespace: top, **made}


def _ids(plan: SigningPlan, role: Role) -> list[str]:
    return [plan.keys[key].public.id for key in role.keys]


def _keys(plan: SigningPlan, names: Iterable[str]) -> dict[str, Key]:
    publics = [plan.keys[name].public.tuf for name in names]
    return {public.keyid: public for public in publics}


def bins_of(namespace: Targets | None) -> int:
    """How many bins a namespace's role has."""
    if namespace is None or namespace.delegations is None:
        return 0
    succinct = namespace.delegations.succinct_roles
    return succinct.number_of_bins if succinct else 0


def snapshot_of(versions: Mapping[str, int], old: Snapshot | None, expires: datetime) -> Snapshot:
    """What a snapshot says: each role's version. What it said once it says for ever, or clients refuse it."""
    meta = {name: MetaFile(file.version) for name, file in (old.meta if old else {}).items()}
    meta |= {f"{role}.json": MetaFile(version) for role, version in versions.items()}
    return Snapshot(expires=expires, meta=dict(sorted(meta.items())))


def timestamp_of(snapshot: int, expires: datetime) -> Timestamp:
    """What a timestamp says: the snapshot's version."""
    return Timestamp(expires=expires, snapshot_meta=MetaFile(snapshot))


def says_the_same(one: Signed, other: Signed) -> bool:
    """Whether two differ in nothing but version and expiry."""
    return _said(one) == _said(other)


def _said(signed: Signed) -> dict[str, Any]:
    said = signed.to_dict()
    return {key: value for key, value in said.items() if key not in ("version", "expires")}


def standing(role: str, metadata: Metadata[Any], delegators: Sequence[Delegator]) -> Standing:
    """Count the signatures of a role for those who must accept it.

    Args:
        role: its name.
        metadata: what is signed.
        delegators: who says whose signatures count; the one that misses most decides.
    """
    payload = metadata.signed_bytes
    results = [
        each.get_verification_result(role, payload, metadata.signatures) for each in delegators
    ]
    short = max(results, key=lambda result: result.threshold - len(result.signed))
    missing = {
        key: None
        for result in results
        if len(result.signed) < result.threshold
        for key in result.unsigned
    }
    return Standing(
        role=role,
        version=metadata.signed.version,
        expires=metadata.signed.expires,
        signed=len(short.signed),
        threshold=short.threshold,
        missing=tuple(missing),
    )


SignerFor = Callable[[str], "Signer | None"]
"""Finds the private key of a key id, where it is at hand."""


def add_signatures(
    role: str, metadata: Metadata[Any], signer_for: SignerFor, delegators: Sequence[Delegator]
) -> int:
    """Sign with as many keys as a role still needs, as far as they are at hand; return how many did.

    Raises:
        SigningError: a key fails to sign.
    """
    count = 0
    for each in delegators:
        result = each.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
        short = result.threshold - len(result.signed)
        for key in result.unsigned:
            if short > 0 and (signer := signer_for(key)) is not None:
                sign(role, metadata, signer)
                short -= 1
                count += 1
    return count


def add_named(
    role: str, metadata: Metadata[Any], signers: Iterable[Signer], delegators: Sequence[Delegator]
) -> None:
    """Sign with each of these keys that may sign a role and has not.

    Raises:
        SigningError: a key fails to sign.
    """
    payload = metadata.signed_bytes
    results = [
        each.get_verification_result(role, payload, metadata.signatures) for each in delegators
    ]
    unsigned = {key for result in results for key in result.unsigned}
    for signer in signers:
        if signer.public_key.keyid in unsigned:
            sign(role, metadata, signer)


def summary(role: str, metadata: Metadata[Any]) -> Iterator[str]:
    """Say what metadata says, for a person who is to sign it."""
    signed = metadata.signed
    yield f"{role} {signed.version}, until {signed.expires:%Y-%m-%d}"
    if isinstance(signed, Root):
        for name, each in signed.roles.items():
            yield f"  {name}: {each.threshold} of {', '.join(each.keyids)}"
    if isinstance(signed, Targets):
        yield f"  {len(signed.targets)} pages"
        delegated = signed.delegations.roles if signed.delegations else None
        for name, own in (delegated or {}).items():
            yield f"  {name}: {own.threshold} of {', '.join(own.keyids)}, {' '.join(own.paths or ())}"


def sign(role: str, metadata: Metadata[Any], signer: Signer) -> None:
    """Add a key's signature.

    Raises:
        SigningError: the key fails to sign.
    """
    try:
        metadata.sign(signer, append=True)
    except UnsignedMetadataError as error:
        raise SigningError(f"`{role}` cannot be signed: {error}") from error


def counts(role: str, metadata: Metadata[Any], delegator: Delegator) -> bool:
    """Whether enough of those who may sign a role have; signatures themselves are not checked."""
    asked = delegator.get_delegated_role(role)
    return len(set(asked.keyids) & set(metadata.signatures)) >= max(asked.threshold, 1)


def merge_signatures(
    role: str, mine: Metadata[Any], other: Metadata[Any], delegators: Sequence[Delegator]
) -> int:
    """Take signatures of the same content from elsewhere; return how many are good and new.

    Raises:
        SigningError: it is not the same content.
    """
    payload = mine.signed_bytes
    if payload != other.signed_bytes:
        raise SigningError(
            f"`{role}` is not what waits for signatures here",
            hint="export again: something was changed since",
        )
    results = [each.get_verification_result(role, payload, mine.signatures) for each in delegators]
    theirs = [each.get_verification_result(role, payload, other.signatures) for each in delegators]
    good = {key for result in theirs for key in result.signed}
    new = good & {key for result in results for key in result.unsigned}
    mine.signatures.update({key: other.signatures[key] for key in sorted(new)})
    return len(new)


def delegator_name(role: str, namespaces: Iterable[str]) -> str:
    """Who says whose signatures count for a role.

    >>> [delegator_name(role, ["acme"]) for role in ("timestamp", "acme", "acme-bin-0f")]
    ['root', 'targets', 'acme']
    """
    if role in TOP_ROLES:
        return ROOT
    return TARGETS if role in namespaces else role.rpartition("-bin-")[0]
