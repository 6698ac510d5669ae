"""The directory in which maintainers work on a signed index: pages, plan, and metadata.

    signing.toml                      the plan: keys and thresholds; no secrets
    models/ aliases/ licenses/        pages of the index's own namespace
    NAMESPACE/models/ ...             pages of publishers that are hosted
    metadata/N.ROLE.json              what is signed by as many keys as it must be, ready to be published
    staged/N.ROLE.json                what waits for signatures

A role moves from `staged` to `metadata` when enough have signed it, and what waits holds nothing else
up: while a new root waits for its second key, the timestamp is renewed under the old one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w
from tuf.api.metadata import Metadata, Root

from weightpkg import files
from weightpkg.errors import SigningError
from weightpkg.signing import metadata as signing
from weightpkg.signing.metadata import Delegator, SignerFor, Standing
from weightpkg.signing.pages import namespace_directories, scan
from weightpkg.signing.plan import (
    PLAN,
    ROOT,
    SNAPSHOT,
    TARGETS,
    TIMESTAMP,
    TOP_ROLES,
    SigningPlan,
    read_plan,
)

if TYPE_CHECKING:
    from securesystemslib.signer import Signer
    from tuf.api.metadata import Signed, TargetFile, Targets

_FILE = re.compile(r"([1-9][0-9]{0,8})\.([a-z0-9][a-z0-9-]*)\.json")


class Shelf:
    """A directory of metadata, `VERSION.ROLE.json`."""

    def __init__(self, directory: Path, temporary: Path) -> None:
        """Open it; it is made when something is put there."""
        self.directory = directory
        self._temporary = temporary
        self._read: dict[tuple[str, int], Metadata[Any]] = {}

    def versions(self) -> dict[str, int]:
        """The newest version of each role."""
        found: dict[str, int] = {}
        with files.mapped(self.directory):
            names = (
                [path.name for path in self.directory.iterdir()] if self.directory.is_dir() else []
            )
        for name in names:
            if match := _FILE.fullmatch(name):
                found[match[2]] = max(found.get(match[2], 0), int(match[1]))
        return found

    def path(self, role: str, version: int) -> Path:
        """Where a version of a role is."""
        return self.directory / f"{version}.{role}.json"

    def content(self, role: str, version: int) -> bytes:
        """The bytes of a version of a role.

        Raises:
            SigningError: there is none.
        """
        path = self.path(role, version)
        with files.mapped(path):
            if not path.is_file():
                raise SigningError(
                    f"`{path}` is missing", hint="bring it back from a copy of the directory"
                )
            return path.read_bytes()

    def read(self, role: str, version: int) -> Metadata[Any]:
        """A version of a role.

        Raises:
            SigningError: there is none, or it is not valid.
        """
        if (role, version) not in self._read:
            source = self.path(role, version).name
            kind = signing.kind_of(role)
            self._read[role, version] = signing.parse(self.content(role, version), kind, source)
        return self._read[role, version]

    def newest(self, role: str) -> Metadata[Any] | None:
        """The newest version of a role, None where there is none."""
        version = self.versions_once.get(role)
        return None if version is None else self.read(role, version)

    @cached_property
    def versions_once(self) -> dict[str, int]:
        """The newest version of each role, as it was when first asked, and what was put since."""
        return self.versions()

    def put(self, role: str, metadata: Metadata[Any]) -> None:
        """Write a version of a role."""
        version = metadata.signed.version
        files.write_file(self.path(role, version), metadata.to_bytes(), temporary=self._temporary)
        self._read[role, version] = metadata
        self.versions_once[role] = version

    def remove(self, role: str, version: int) -> None:
        """Remove a version of a role."""
        files.discard(self.path(role, version))
        self._read.pop((role, version), None)
        if self.versions_once.get(role) == version:
            del self.versions_once[role]


@dataclass(frozen=True, kw_only=True, slots=True)
class SigningRun:
    """How to sign, once.

    now: the clock.
    signer_for: finds private keys, as many as are needed.
    named: keys that sign whatever they may, also where enough have.
    refresh: roles to sign again though nothing changed, when half their time is over; a timestamp
        always.
    only: roles to look at; None for all. A namespace stands for its bins, too.
    advance: called with the bytes of each page.
    is_dry: change nothing.
    """

    now: datetime
    signer_for: SignerFor = lambda _: None
    named: Sequence[Signer] = ()
    refresh: Collection[str] = ()
    only: Collection[str] | None = None
    advance: Callable[[int], None] = lambda _: None
    is_dry: bool = False

    def concerns(self, role: str) -> bool:
        """Whether a role is to be looked at."""
        return self.only is None or role in self.only or role.rpartition("-bin-")[0] in self.only

    def is_due(self, role: str, expires: datetime, lifetime: timedelta) -> bool:
        """Whether a role is to be signed again though nothing changed."""
        is_named = role in self.refresh or role.rpartition("-bin-")[0] in self.refresh
        is_half_over = role == TIMESTAMP or expires - self.now < lifetime / 2
        return expires <= self.now or (is_named and is_half_over)


class Workspace:
    """A maintainers' directory."""

    def __init__(self, directory: Path) -> None:
        """Open it; nothing is read before it is needed."""
        self.directory = directory
        temporary = directory / "staged" / "tmp"
        self.metadata = Shelf(directory / "metadata", temporary)
        self.staged = Shelf(directory / "staged", temporary)

    def locked(self) -> AbstractContextManager[None]:
        """Keep other processes from signing here at the same time."""
        return files.lock(self.directory / "staged" / ".lock")

    @property
    def plan_path(self) -> Path:
        """Where the plan is."""
        return self.directory / PLAN

    def plan_text(self) -> str:
        """The plan as it is written.

        Raises:
            SigningError: this is no maintainers' directory.
        """
        if not self.plan_path.is_file():
            raise SigningError(
                f"`{self.directory}` has no {PLAN}", hint="`weightpkg index init` makes one"
            )
        with files.mapped(self.plan_path):
            return self.plan_path.read_bytes().decode(errors="replace")

    def write_plan(self, text: str) -> None:
        """Write the plan."""
        files.write_file(self.plan_path, text.encode(), temporary=self.directory)
        self.__dict__.pop("plan", None)

    @cached_property
    def plan(self) -> SigningPlan:
        """The plan.

        Raises:
            SigningError: there is none.
            DocumentError: it is not valid.
        """
        return read_plan(self.plan_text().encode())

    def key_paths(self) -> Iterator[tuple[str, Path]]:
        """Yield id and place of each private key that the plan knows the place of."""
        for key in self.plan.keys.values():
            if key.private is not None:
                yield key.public.id, self.directory / key.private

    def index_toml(self) -> bytes:
        """The page that says what the index is."""
        title = {"title": self.plan.title} if self.plan.title else {}
        return tomli_w.dumps({"schema": 1, "namespace": self.plan.namespace, **title}).encode()

    def pages_directory(self, namespace: str) -> Path:
        """Where a namespace's pages are."""
        return self.directory if namespace == self.plan.namespace else self.directory / namespace

    def signed_entries(self, namespace: str) -> dict[str, TargetFile]:
        """What is signed of a namespace's pages, by path."""
        found: dict[str, TargetFile] = {}
        for role in self.roles_of(namespace):
            metadata = self.metadata.newest(role)
            if metadata is not None:
                found |= metadata.signed.targets
        return found

    def roles_of(self, namespace: str) -> list[str]:
        """A namespace's role, and its bins."""
        metadata = self.metadata.newest(namespace)
        if metadata is None:
            return []
        delegations = metadata.signed.delegations
        succinct = delegations.succinct_roles if delegations else None
        return [namespace, *(succinct.get_roles() if succinct else ())]

    def roles(self) -> list[str]:
        """Every role that the signed index has."""
        top = self.metadata.newest(TARGETS)
        delegated = top.signed.delegations.roles if top and top.signed.delegations else {}
        return [*TOP_ROLES, *(role for name in delegated for role in self.roles_of(name))]

    def sign(self, run: SigningRun) -> list[Standing]:
        """Stage what changed, sign it with the keys at hand, and return how far that went, by role.

        Raises:
            DocumentError: a page is not valid.
            SigningError: a key fails, or the plan and the metadata do not fit.
            StoreError: the directory cannot be written.
        """
        return [standing for standing in self._sign(run) if standing is not None]

    def _sign(self, run: SigningRun) -> Iterator[Standing | None]:
        plan = self.plan
        self._check_directories()

        def expires(role: str) -> datetime:
            return run.now.replace(microsecond=0) + plan.lifetime(role)

        yield self._settle(ROOT, signing.root_of(plan, expires(ROOT)), run)
        top = signing.targets_of(plan, self.index_toml(), expires(TARGETS))
        yield self._settle(TARGETS, top, run)
        for namespace in plan.namespaces:
            if run.only is None or any(map(run.concerns, [namespace, *self.roles_of(namespace)])):
                for role, payload in self._namespace(namespace, run, expires(namespace)).items():
                    yield self._settle(role, payload, run)
        versions = {
            role: metadata.signed.version
            for role in self.roles()
            if role not in {ROOT, SNAPSHOT, TIMESTAMP} and (metadata := self.metadata.newest(role))
        }
        old = self.metadata.newest(SNAPSHOT)
        snapshot = signing.snapshot_of(versions, old.signed if old else None, expires(SNAPSHOT))
        yield self._settle(SNAPSHOT, snapshot, run)
        old = self.metadata.newest(SNAPSHOT) or self.staged.newest(SNAPSHOT)
        version = old.signed.version if old else 1
        yield self._settle(TIMESTAMP, signing.timestamp_of(version, expires(TIMESTAMP)), run)

    def _check_directories(self) -> None:
        for name in namespace_directories(self.directory):
            if name not in self.plan.namespaces:
                raise SigningError(
                    f"`{name}/` has pages of a namespace that this index does not have",
                    hint="`weightpkg index delegate NAMESPACE --key FILE` takes one in",
                )
        own = self.directory / self.plan.namespace
        if own.is_dir() and self.plan.namespace in namespace_directories(self.directory):
            raise SigningError(
                f"`{own}` has pages, and those of `{self.plan.namespace}` belong beside {PLAN}"
            )

    def _namespace(
        self, namespace: str, run: SigningRun, expires: datetime
    ) -> Mapping[str, Targets]:
        prefix = "" if namespace == self.plan.namespace else f"{namespace}/"
        signed = self.signed_entries(namespace)
        entries = scan(self.pages_directory(namespace), prefix, signed, run.advance)
        wanted = next(own.bins for name, own in self.plan.namespaces.items() if name == namespace)
        present = self.metadata.newest(namespace)
        if wanted is None:
            bins = signing.number_of_bins(
                len(entries), signing.bins_of(present.signed if present else None)
            )
        else:
            bins = wanted
        return signing.namespace_of(self.plan, namespace, entries, bins, expires)

    def delegators(self, role: str, payload: Signed | None = None) -> list[Delegator]:
        """Who says whose signatures count for a role; of a root, the old one and itself."""
        name = signing.delegator_name(role, self.plan.namespaces)
        candidates = [self.metadata.newest(name), self.staged.newest(name)]
        found: list[Delegator] = [each.signed for each in candidates if each is not None]
        if role == ROOT:
            own = [payload] if isinstance(payload, Root) else []
            return [*found[: 1 if self.metadata.newest(ROOT) else 0], *own]
        for each in found:
            try:
                each.get_delegated_role(role)
            except ValueError:
                continue
            return [each]
        raise SigningError(f"nobody says who signs `{role}`", hint=f"sign `{name}` first")

    def _settle(self, role: str, payload: Signed, run: SigningRun) -> Standing | None:
        """Bring a role to what it must say, as far as keys are at hand; None if it says so already."""
        if not run.concerns(role):
            return None
        old, pending = self.metadata.newest(role), self.staged.newest(role)
        delegators = self.delegators(role, payload)
        if old is not None and self._is_good(role, old, payload, delegators, run):
            if pending is not None and not run.is_dry:
                self.staged.remove(role, pending.signed.version)
            return None
        payload.version = old.signed.version + 1 if old else 1
        metadata = pending if pending and _still_waits(pending, payload, run.now) else None
        metadata = metadata or Metadata(payload)
        if role == ROOT:
            delegators = self.delegators(role, metadata.signed)
        if not run.is_dry:
            signing.add_named(role, metadata, run.named, delegators)
            signing.add_signatures(role, metadata, run.signer_for, delegators)
            self._shelve(role, metadata, delegators, pending)
        return signing.standing(role, metadata, delegators)

    def _is_good(
        self,
        role: str,
        old: Metadata[Any],
        payload: Signed,
        delegators: Sequence[Delegator],
        run: SigningRun,
    ) -> bool:
        return (
            not run.is_due(role, old.signed.expires, self.plan.lifetime(role))
            and signing.says_the_same(old.signed, payload)
            and (role == ROOT or all(signing.counts(role, old, each) for each in delegators))
        )

    def _shelve(
        self,
        role: str,
        metadata: Metadata[Any],
        delegators: Sequence[Delegator],
        pending: Metadata[Any] | None,
    ) -> None:
        standing = signing.standing(role, metadata, delegators)
        old = self.metadata.newest(role)
        if pending is not None and pending.signed.version != metadata.signed.version:
            self.staged.remove(role, pending.signed.version)
        if not standing.is_complete or not self._may_count(role):
            self.staged.put(role, metadata)
            return
        self.metadata.put(role, metadata)
        self.staged.remove(role, metadata.signed.version)
        if old is not None and role != ROOT:
            self.metadata.remove(role, old.signed.version)

    def _may_count(self, role: str) -> bool:
        """Whether those who say who signs a role are signed themselves."""
        if role == ROOT:
            return True
        name = signing.delegator_name(role, self.plan.namespaces)
        is_waiting = (
            role not in TOP_ROLES and name != TARGETS and self.staged.newest(name) is not None
        )
        has_snapshot = role != TIMESTAMP or self.metadata.newest(SNAPSHOT) is not None
        return self.metadata.newest(name) is not None and not is_waiting and has_snapshot

    def waiting(self) -> list[Standing]:
        """What waits for signatures."""
        found = []
        for role in sorted(self.staged.versions()):
            metadata = self.staged.newest(role)
            if metadata is not None:
                delegators = self.delegators(role, metadata.signed)
                found.append(signing.standing(role, metadata, delegators))
        return found

    def take(self, paths: Sequence[Path]) -> dict[str, int]:
        """Take signatures of files that were signed elsewhere; return how many, by role.

        Raises:
            SigningError: a file is not what waits here.
        """
        taken = {}
        for path in paths:
            role, mine = self._waiting_for(path)
            with files.mapped(path):
                content = path.read_bytes()
            other = signing.parse(content, signing.kind_of(role), path.name)
            delegators = self.delegators(role, mine.signed)
            taken[role] = signing.merge_signatures(role, mine, other, delegators)
            self.staged.put(role, mine)
        return taken

    def _waiting_for(self, path: Path) -> tuple[str, Metadata[Any]]:
        match = _FILE.fullmatch(path.name)
        mine = self.staged.newest(match[2]) if match else None
        if match is None or mine is None or mine.signed.version != int(match[1]):
            raise SigningError(
                f"`{path.name}` is not waiting for signatures here",
                hint="files keep the names that `--export` gave them",
            )
        return match[2], mine


def _still_waits(pending: Metadata[Any], payload: Signed, now: datetime) -> bool:
    return (
        pending.signed.version == payload.version
        and pending.signed.expires > now
        and signing.says_the_same(pending.signed, payload)
    )
