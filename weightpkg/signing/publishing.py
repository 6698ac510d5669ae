"""Publishing a signed index: static files in a directory, which any web server, disk or stick serves.

Everything is checked first, as a client would: signatures and thresholds, versions, dates, paths and
pages. Then pages are written, then metadata, and `timestamp.json` last: until it is there a client
sees the index as it was. No file is ever changed but that one, and none is removed, so a client that
is half-way through an update finishes it. Publishing again what is published changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuf.api.metadata import Targets

from weightpkg import files
from weightpkg.errors import SigningError
from weightpkg.signing import metadata as signing
from weightpkg.signing.keys import PRIVATE
from weightpkg.signing.metadata import INDEX_TOML
from weightpkg.signing.pages import check_digest, check_names, check_page
from weightpkg.signing.plan import PLAN, ROOT, SNAPSHOT, TARGETS, TIMESTAMP
from weightpkg.signing.workspace import SigningRun, Workspace

if TYPE_CHECKING:
    from tuf.api.metadata import Metadata, Root, TargetFile

_METADATA, _TARGETS = "metadata", "targets"
_TIMESTAMP = f"{_METADATA}/timestamp.json"
_SIGN = "`weightpkg index sign`"
_WRITERS = 16
MAX_SIZES = {TIMESTAMP: 16_384, SNAPSHOT: 2_000_000, TARGETS: 5_000_000}
"""What python-tuf's client reads of a role; of namespaces and bins as of targets."""
_ABANDONED_S = 3600.0


@dataclass(frozen=True, slots=True)
class Publication:
    """What publishing writes: relative paths in the order in which they appear, and their bytes."""

    new: tuple[str, ...]
    size: int
    version: int


def publish(
    workspace: Workspace,
    directory: Path,
    now: datetime,
    *,
    leave_waiting: bool = False,
    is_dry: bool = False,
    advance: Callable[[int], None] = lambda _: None,
) -> Publication:
    """Write what is signed into a directory.

    Args:
        workspace: what is signed.
        directory: where it goes; made where it is not there.
        now: the clock.
        leave_waiting: publish what is complete, though other things wait for signatures.
        is_dry: check everything and write nothing.
        advance: called with the bytes of each page.

    Raises:
        SigningError: something is not signed as it must be, expired, older than what is there, or
            would publish a key.
        DocumentError: a page is not valid.
        StoreError: the directory cannot be written.
    """
    return _Publishing(workspace, directory, now, advance).run(leave_waiting, is_dry=is_dry)


class _Publishing:
    """One publication: what is signed, what is there already, and what is new."""

    def __init__(
        self, workspace: Workspace, directory: Path, now: datetime, advance: Callable[[int], None]
    ) -> None:
        self._workspace = workspace
        self._directory = directory
        self._now = now
        self._advance = advance
        self._new: dict[str, bytes] = {}

    def run(self, leave_waiting: bool, *, is_dry: bool) -> Publication:  # noqa: FBT001  its only caller names it
        _check_keys(self._workspace, self._directory)
        if not leave_waiting:
            self._check_nothing_waits()
        roles = self._collect()
        timestamp = roles[TIMESTAMP].signed.version
        self._check_is_newer(timestamp)
        pages = [*self._pages(roles)]
        # a new root last of these: from there on the old timestamp may not count
        metadata = sorted(self._new.keys() - {_TIMESTAMP}, key=_is_root)
        last = [_TIMESTAMP] if _TIMESTAMP in self._new else []
        size = sum(map(len, self._new.values())) + sum(entry.length for _, entry in pages)
        if not is_dry:
            self._write(pages, [*metadata, *last])
        return Publication(
            (*(_hashed(path, entry) for path, entry in pages), *metadata, *last), size, timestamp
        )

    def _check_nothing_waits(self) -> None:
        run = SigningRun(now=self._now, is_dry=True, advance=self._advance)
        unsigned = self._workspace.sign(run)
        if unsigned:
            first = unsigned[0]
            raise SigningError(
                f"{_listed([standing.role for standing in unsigned])} must be signed first: "
                f"`{first.role}` has {first.signed} of {first.threshold} signatures",
                hint=f"{_SIGN}; `--leave-waiting` publishes what is complete",
            )

    def _collect(self) -> dict[str, Metadata[Any]]:
        """Read the newest complete metadata, check it as a client would, and note what is new."""
        roots = self._roots()
        root: Root = roots[-1].signed
        self._check_expiry(ROOT, roots[-1])
        roles = {name: self._role(name, root) for name in (TIMESTAMP, SNAPSHOT, TARGETS)}
        delegator: Targets = roles[TARGETS].signed
        for name in (
            delegator.delegations.roles
            if delegator.delegations and delegator.delegations.roles
            else ()
        ):
            roles[name] = self._role(name, delegator)
            below = roles[name].signed
            succinct = below.delegations.succinct_roles if below.delegations else None
            roles |= {
                each: self._role(each, below) for each in (succinct.get_roles() if succinct else ())
            }
        self._check_versions(roles)
        return roles

    def _roots(self) -> list[Metadata[Any]]:
        shelf = self._workspace.metadata
        last = shelf.versions().get(ROOT)
        if last is None:
            raise SigningError("the root is not signed by as many keys as it must be", hint=_SIGN)
        roots: list[Metadata[Any]] = []
        for version in range(1, last + 1):
            root = shelf.read(ROOT, version)
            old = [roots[-1].signed] if roots else []
            self._check_signed(ROOT, root, [*old, root.signed])
            if root.signed.version != version:
                raise SigningError(f"`{version}.root.json` is version {root.signed.version}")
            self._note(f"{version}.root.json", shelf.content(ROOT, version))
            roots.append(root)
        return roots

    def _role(self, role: str, delegator: Root | Targets) -> Metadata[Any]:
        shelf = self._workspace.metadata
        version = shelf.versions_once.get(role)
        if version is None:
            raise SigningError(f"`{role}` is not signed by as many keys as it must be", hint=_SIGN)
        metadata = shelf.read(role, version)
        content = shelf.content(role, version)
        if len(content) > MAX_SIZES.get(role, MAX_SIZES[TARGETS]):
            raise SigningError(
                f"`{role}` has {len(content):,} bytes, more than clients read",
                hint=f"set `bins` of its namespace in {PLAN}, or leave it out",
            )
        name = "timestamp.json" if role == TIMESTAMP else f"{version}.{role}.json"
        is_new = self._note(name, content)
        if (
            is_new
            or role in (TARGETS, SNAPSHOT, TIMESTAMP)
            or not signing.counts(role, metadata, delegator)
        ):
            self._check_signed(role, metadata, [delegator])
        self._check_expiry(role, metadata)
        self._check_paths(role, metadata, delegator)
        return metadata

    def _note(self, name: str, content: bytes) -> bool:
        """Note a file of metadata that is to be published; return whether it is new there."""
        path = self._directory / _METADATA / name
        with files.mapped(path):
            present = path.read_bytes() if path.is_file() else None
        if present == content:
            return False
        if present is not None and name != "timestamp.json":
            raise SigningError(
                f"`{path}` was published with other content",
                hint="it is another index, or this directory is an old copy: publish elsewhere",
            )
        self._new[f"{_METADATA}/{name}"] = content
        return True

    def _check_signed(
        self, role: str, metadata: Metadata[Any], delegators: list[Root | Targets]
    ) -> None:
        found = signing.standing(role, metadata, delegators)
        if not found.is_complete:
            raise SigningError(
                f"`{role}` has {found.signed} of {found.threshold} signatures", hint=_SIGN
            )

    def _check_expiry(self, role: str, metadata: Metadata[Any]) -> None:
        if metadata.signed.expires <= self._now:
            raise SigningError(
                f"`{role}` expired on {metadata.signed.expires:%Y-%m-%d}",
                hint=f"{_SIGN} --role {role} --refresh",
            )

    def _check_paths(self, role: str, metadata: Metadata[Any], delegator: Root | Targets) -> None:
        if not isinstance(delegator, Targets) or delegator.delegations is None:
            return
        succinct = delegator.delegations.succinct_roles
        named = (delegator.delegations.roles or {}).get(role)
        for path in metadata.signed.targets:
            is_own = (
                succinct.get_role_for_target(path) == role
                if succinct
                else named is not None and any(_matches(path, each) for each in named.paths or ())
            )
            if not is_own:
                raise SigningError(f"`{role}` signs `{path}`, which is not in its namespace")

    def _check_versions(self, roles: Mapping[str, Metadata[Any]]) -> None:
        snapshot, timestamp = roles[SNAPSHOT].signed, roles[TIMESTAMP].signed
        if timestamp.snapshot_meta.version != snapshot.version:
            raise SigningError("the timestamp is of another snapshot", hint=_SIGN)
        for role, metadata in roles.items():
            if role in (SNAPSHOT, TIMESTAMP):
                continue
            meta = snapshot.meta.get(f"{role}.json")
            if meta is None or meta.version != metadata.signed.version:
                raise SigningError(f"the snapshot has another version of `{role}`", hint=_SIGN)

    def _check_is_newer(self, version: int) -> None:
        path = self._directory / _TIMESTAMP
        if not path.is_file():
            return
        with files.mapped(path):
            content = path.read_bytes()
        there = signing.parse(content, signing.kind_of(TIMESTAMP), str(path)).signed.version
        if there > version or (there == version and _TIMESTAMP in self._new):
            raise SigningError(
                f"`{path}` is version {there}, and here is {version}",
                hint="is this an old copy of the maintainers' directory?",
            )

    def _pages(self, roles: Mapping[str, Metadata[Any]]) -> Iterator[tuple[str, TargetFile]]:
        """Yield each page that is not published yet, checked."""
        by_namespace: dict[str, dict[str, TargetFile]] = {}
        published = str(self._directory)  # for a hundred thousand, paths would be slow
        for role, metadata in roles.items():
            if not isinstance(metadata.signed, Targets):
                continue
            for path, entry in metadata.signed.targets.items():
                prefix = path.rpartition("/")[0].rpartition("/")[0]
                by_namespace.setdefault(prefix, {})[path.removeprefix(f"{prefix}/")] = entry
                if not os.path.isfile(f"{published}/{_hashed(path, entry)}"):  # noqa: PTH113  the same
                    content = self._content(path, entry)
                    if role != TARGETS:
                        check_page(path, content, entry)
                    self._advance(len(content))
                    yield path, entry
        for entries in by_namespace.values():
            check_names(entries)

    def _content(self, path: str, entry: TargetFile) -> bytes:
        """Read a page, which must be what its entry says."""
        if path == INDEX_TOML:
            content = self._workspace.index_toml()
        else:
            place = self._workspace.directory / path
            with files.mapped(place):
                if not place.is_file():
                    raise SigningError(f"`{place}` is signed and not there", hint=f"{_SIGN} again")
                content = place.read_bytes()
        check_digest(path, content, entry)
        return content

    def _write(self, pages: list[tuple[str, TargetFile]], metadata: list[str]) -> None:
        temporary = files.make_directory(self._directory) / ".publishing"
        files.sweep(temporary, older_than=self._now.timestamp() - _ABANDONED_S)

        def write(page: tuple[str, TargetFile]) -> Path:
            path, entry = page
            place = self._directory / _hashed(path, entry)
            content = self._content(path, entry)
            files.write_file(place, content, temporary=temporary, is_name_durable=False)
            return place.parent

        with ThreadPoolExecutor(_WRITERS) as pool:  # disks make many files durable at once
            parents = set(pool.map(write, pages))
        for parent in sorted(parents):
            with files.mapped(parent):
                files.sync_directory(parent)
        for name in metadata:
            files.write_file(self._directory / name, self._new[name], temporary=temporary)
        if temporary.is_dir() and not any(temporary.iterdir()):
            with files.mapped(temporary):
                files.disk.rmdir(temporary)


def _is_root(path: str) -> tuple[bool, int, str]:
    name = path.removeprefix(f"{_METADATA}/")
    is_root = name.endswith(".root.json")
    return is_root, int(name.partition(".")[0]) if is_root else 0, name


def _hashed(path: str, entry: TargetFile) -> str:
    """Where a page is published: its digest is part of its name."""
    directory, _, name = path.rpartition("/")
    hashed = f"{entry.hashes['sha256']}.{name}"
    return f"{_TARGETS}/{directory}/{hashed}" if directory else f"{_TARGETS}/{hashed}"


def _matches(path: str, pattern: str) -> bool:
    """Whether a path is one of a delegation's, as the specification has it: `*` matches no `/`."""
    parts, patterns = path.split("/"), pattern.split("/")
    return len(parts) == len(patterns) and all(map(fnmatch, parts, patterns))


def _check_keys(workspace: Workspace, directory: Path) -> None:
    """Refuse to publish a directory that has a private key, or the maintainers' own files."""
    place = directory.resolve()
    for _, path in workspace.key_paths():
        if place in path.resolve().parents:
            raise SigningError(
                f"the private key `{path}` is inside the directory that is published",
                hint="move it where no web server looks",
            )
    for each in (place, place / _METADATA, place / _TARGETS):
        for path in each.glob(f"*{PRIVATE}"):
            raise SigningError(
                f"`{path}` looks like a private key in the directory that is published",
                hint="if it is one, revoke it: `weightpkg index key revoke`; and remove it",
            )
    if place == workspace.directory.resolve() or place in workspace.directory.resolve().parents:
        raise SigningError(
            f"`{directory}` is the maintainers' own directory, or has it inside",
            hint="publish into a directory of its own",
        )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"`{name}`" for name in names[:3]) + more
