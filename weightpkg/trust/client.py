"""The client of a TUF repository: python-tuf's Updater, with what it leaves to those who use it.

Specification: https://theupdateframework.github.io/specification/v1.0.33/#detailed-client-workflow

Beside the Updater there are
- a lock between processes, which python-tuf does not have, round every use of it;
- a memory that is durable and outlives all caches: `memory`;
- two sets of metadata: `update/`, in which an update is under way as the specification has it, and
  `held/`, which is of the last update that was complete. Questions are answered of what is held, so
  that an update that fails half way changes no answer;
- one error for each way in which it can fail.

Signatures, versions and digests are always checked. Dates are, against the greatest time that was
seen, and `staleness` is the one thing that can be granted.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING
from urllib.parse import quote

from tuf.api import exceptions
from tuf.api.metadata import Root, Snapshot, Targets, Timestamp
from tuf.api.serialization import DeserializationError
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from weightpkg import files
from weightpkg.errors import FetchError, TrustError
from weightpkg.trust.memory import Memory, load_memory, save_memory
from weightpkg.trust.origin import AbsentError, Origin, OversizeError

if TYPE_CHECKING:
    from tuf.api.metadata import TargetFile
    from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet

MAX_ROLE = 32_000_000
"""Bytes of one role's metadata: a namespace of 24,000 pages without bins, many times over."""
MAX_SNAPSHOT = 16_000_000
_METADATA = "metadata/"
_TOP = (Timestamp.type, Snapshot.type, Targets.type)
_BATCH = 64
_CONNECTIONS = 8
_REMEMBER_AFTER = timedelta(days=1)
_REPLAYED = (
    "it is an older index than was seen here before, or parts of two: use another mirror of it"
)
_FORGED = (
    "somebody has changed it, or its keys were revoked: use another mirror, or ask its maintainers"
)
_GONE = "this mirror is not complete: `weightpkg index update`, or use another one"
_STALE = (
    "its maintainers must sign it anew, and `weightpkg index update` takes it; is this machine's "
    "clock right? `max-staleness` in config.toml grants some days"
)


# the most specific first
_REASONS: tuple[tuple[type[Exception], str, str], ...] = (
    (exceptions.BadVersionNumberError, "is not the version that it must be: {}", _REPLAYED),
    (exceptions.UnsignedMetadataError, "is not signed by those who must sign it: {}", _FORGED),
    (exceptions.LengthOrHashMismatchError, "is not the file that was signed: {}", _FORGED),
    (DeserializationError, "cannot be read: {}", _FORGED),
    (exceptions.DownloadLengthMismatchError, "is larger than it can be", _FORGED),
    (exceptions.DownloadError, "is not to be had: {}", _GONE),
    (exceptions.RepositoryError, "is not right: {}", _FORGED),
)


class GoneError(TrustError):
    """A file that the metadata names is not there, perhaps because the index has moved on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """How an index is held to account.

    staleness: how long after its expiry metadata still counts.
    now: the clock.
    on_wait: called if another process has the lock.
    """

    staleness: timedelta = timedelta(0)
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    on_wait: Callable[[], None] = lambda: None


class _Fetcher(FetcherInterface):
    """Reads for an Updater, and knows what was read last."""

    def __init__(self, read: Callable[[str, int], bytes]) -> None:
        self.read = read
        self.ready: dict[str, bytes] = {}
        self.last = ""

    def _fetch(self, url: str) -> Iterator[bytes]:
        yield self.download_bytes(url, MAX_ROLE)

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """Return a file; in the Updater's errors, but for what went wrong on the way."""
        self.last = url.removeprefix(_METADATA)
        if url in self.ready:
            return self.ready.pop(url)
        try:
            return self.read(url, max_length)
        except AbsentError as error:
            raise exceptions.DownloadHTTPError(error.message, 404) from error
        except OversizeError as error:
            raise exceptions.DownloadLengthMismatchError(error.message) from error


class Client:
    """One index, its state on this machine, and the place that it comes from."""

    def __init__(
        self,
        name: str,
        directory: Path,
        origin: Origin,
        first_root: bytes,
        terms: Terms | None = None,
        *,
        update_dir: Path | None = None,
    ) -> None:
        """Prepare; nothing is read before it is asked for.

        Args:
            name: what messages call the index.
            directory: its state.
            origin: where it comes from.
            first_root: the root that is trusted from the start.
            terms: how it is held to account.
            update_dir: where an update is under way, if not in `update` of the state.
        """
        self.name = name
        self.directory = directory
        self.origin = origin
        self._first_root = first_root
        self._terms = terms or Terms()
        self._update_dir = update_dir or directory / "update"
        self._held = directory / "held"
        self._mutex = RLock()
        self._depth = 0

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep all other processes and threads away from the state; may be entered again inside."""
        with self._mutex, ExitStack() as stack:
            if self._depth == 0:
                lock = files.lock(self.directory / "lock", on_wait=self._terms.on_wait)
                stack.enter_context(lock)
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1

    def memory(self) -> Memory:
        """What is remembered of the index."""
        return load_memory(self.directory)

    def has_held(self) -> bool:
        """Whether there is metadata that is held."""
        held = self.memory().held.items()
        return bool(held) and all((self._held / f"{v}.{role}.json").is_file() for role, v in held)

    def refresh(self, check: Callable[[Session], object] = lambda _: None) -> Session:
        """Take what is new at the origin, all of it or nothing.

        Args:
            check: looks at the new metadata before it counts; raises to refuse it.

        Raises:
            TrustError: it is not signed, older than what was seen, expired, or not whole.
            FetchError: it cannot be had.
            StoreError: the state cannot be read or written.
        """
        with self.locked():
            session = self._session(self._update_dir, self._read_new)
            with self._mapped(session.fetcher):
                try:
                    session.updater.refresh()
                finally:
                    self._keep_roots(session)
            self._check_versions(session, self.memory())
            check(session)
            self._keep(session)
            return session

    def open(self) -> Session:
        """Open what is held; nothing is fetched that is.

        Raises:
            TrustError: it has expired.
            FetchError: nothing is held.
            StoreError: the state cannot be read or written.
        """
        with self.locked():
            memory = self.memory()
            if not self.has_held():
                hint = f"weightpkg index update {self.name}"
                raise FetchError(f"of the index `{self.name}` nothing is here yet", hint=hint)
            session = self._session(self.directory / "roles", self._read_held(memory))
            session.is_held = True
            with self._mapped(session.fetcher):
                session.updater.refresh()
            self._check_versions(session, memory)
            return session

    def _session(self, directory: Path, read: Callable[[str, int], bytes]) -> Session:
        fetcher = _Fetcher(read)
        memory = self.memory()
        now = max(self._terms.now(), memory.seen)
        if now - memory.seen > _REMEMBER_AFTER:
            save_memory(self.directory, replace(memory, seen=now))
        files.make_directory(directory)
        config = UpdaterConfig(targets_max_length=MAX_ROLE, snapshot_max_length=MAX_SNAPSHOT)
        with self._mapped(fetcher, "root.json"):
            updater = Updater(
                str(directory),
                _METADATA,
                fetcher=fetcher,
                config=config,
                bootstrap=self._first_root,
            )
        # python-tuf has no public way to say what time it is; a test holds it to this one
        updater._trusted_set.reference_time = now - self._terms.staleness  # noqa: SLF001
        return Session(self, updater, fetcher, now)

    def _read_new(self, path: str, max_bytes: int) -> bytes:
        """Read a root or a delegated role that is held, or anything from the origin."""
        version, role = _parts(path)
        if role == Root.type:
            with suppress(OSError):
                return (self._held / f"{version}.root.json").read_bytes()
        held = _role_in(self.directory / "roles", path)
        return self.origin.read(path, max_bytes) if held is None else held

    def _read_held(self, memory: Memory) -> Callable[[str, int], bytes]:
        def read(path: str, max_bytes: int) -> bytes:
            name = path.removeprefix(_METADATA)
            if name == "timestamp.json":
                name = f"{memory.held[Timestamp.type]}.{name}"
            if name.endswith(".root.json") or (self._held / name).is_file():
                try:
                    return (self._held / name).read_bytes()
                except FileNotFoundError as error:
                    raise AbsentError(f"`{name}` is not held") from error
            fresh = _role_in(self._update_dir, path)
            return self.origin.read(path, max_bytes) if fresh is None else fresh

        return read

    def _keep_roots(self, session: Session) -> None:
        """Make durable each root that was verified, also where all else failed: it revokes keys."""
        memory, version = self.memory(), session.root.version
        history = self._update_dir / "root_history"
        for n in range(1, version + 1):
            path, held = history / f"{n}.root.json", self._held / f"{n}.root.json"
            if path.is_file() and (n > memory.root or not held.is_file()):
                self._write_held(held.name, path.read_bytes())
        if version > memory.root:
            save_memory(self.directory, replace(memory, root=version))

    def _keep(self, session: Session) -> None:
        """Make what is new the metadata that is held, by one rename of the memory."""
        before, versions = self.memory(), session.versions()
        held = {role: versions[role] for role in _TOP}
        if not session.root.consistent_snapshot:
            held = {}  # what has no versions in its names cannot be held beside another version
        for role, version in held.items():
            with files.mapped(self._update_dir):
                content = (self._update_dir / f"{role}.json").read_bytes()
            self._write_held(f"{version}.{role}.json", content)
        after = replace(
            before,
            seen=session.now,
            root=session.root.version,
            keys=session.keys(),
            versions=versions,
            held=held,
        )
        if after != before:
            save_memory(self.directory, after)
        for path in sorted(self._held.glob("*.json")):
            text, _, role = path.name.removesuffix(".json").partition(".")
            if role in held and text != str(held[role]):
                files.discard(path)

    def _write_held(self, name: str, content: bytes) -> None:
        files.write_file(self._held / name, content, temporary=self.directory / "tmp")

    def remember_roles(self, roles: Mapping[str, int]) -> None:
        """Note which versions of delegated roles are held."""
        memory = self.memory()
        merged = {**memory.roles, **roles}
        if merged != memory.roles:
            save_memory(self.directory, replace(memory, roles=merged))

    def _check_versions(self, session: Session, memory: Memory) -> None:
        """Refuse what is older than what was seen, whatever became of the files that were."""
        found = {Root.type: session.root.version} | session.versions()
        wanted = {Root.type: memory.root}
        if session.keys() == memory.keys:
            wanted |= memory.versions
        for role, version in wanted.items():
            if role not in found:
                reason = "is gone, and was part of this index before"
                raise TrustError(self.name, role, reason, hint=_REPLAYED)
            if found[role] < version:
                reason = f"is version {found[role]}, and {version} was seen here before"
                raise TrustError(self.name, role, reason, hint=_REPLAYED)

    @contextmanager
    def _mapped(self, fetcher: _Fetcher, what: str = "") -> Iterator[None]:
        """Turn every error of python-tuf into one of ours."""
        with files.mapped(self.directory):
            try:
                yield
            except exceptions.ExpiredMetadataError as error:
                self._remember_time()
                role = _role_of(str(error))
                raise TrustError(self.name, role, "has expired", hint=_STALE) from error
            except (exceptions.RepositoryError, exceptions.DownloadError) as error:
                raise self._explained(error, what or fetcher.last or "root.json") from error

    def _explained(self, error: Exception, what: str) -> TrustError:
        told = error.__cause__ if isinstance(error, DeserializationError) else error
        reason, hint = next(row[1:] for row in _REASONS if isinstance(error, row[0]))
        is_gone = isinstance(error, exceptions.DownloadHTTPError)
        kind = GoneError if is_gone else TrustError
        return kind(self.name, what, reason.format(told or error), hint=hint)

    def _remember_time(self) -> None:
        """What was seen to have expired stays so, also if the clock is set back."""
        memory = self.memory()
        if (now := self._terms.now()) > memory.seen:
            save_memory(self.directory, replace(memory, seen=now))


@dataclass
class Session:
    """Metadata that was verified and fits together; more of it is verified when it is asked for."""

    client: Client
    updater: Updater
    fetcher: _Fetcher
    now: datetime
    is_held: bool = False
    _n_remembered: int = 0

    @property
    def _trusted(self) -> TrustedMetadataSet:
        return self.updater._trusted_set  # noqa: SLF001  there is no public way

    @property
    def root(self) -> Root:
        """The newest root."""
        return self._trusted.root

    @property
    def timestamp(self) -> Timestamp:
        """What says which snapshot counts."""
        return self._trusted.timestamp

    @property
    def snapshot(self) -> Snapshot:
        """What says which versions count."""
        return self._trusted.snapshot

    @property
    def targets(self) -> Targets:
        """The role that delegates to all others."""
        return self._trusted.targets

    def loaded(self) -> dict[str, int]:
        """The delegated roles that were asked for so far, and their versions."""
        return {
            role: targets.version
            for role, targets in self._trusted._trusted_set.items()  # noqa: SLF001
            if isinstance(targets, Targets) and role != Targets.type
        }

    def versions(self) -> dict[str, int]:
        """The version of each role but root."""
        # some repositories name the root there, too, with a version that means nothing
        meta = {name.removesuffix(".json"): m.version for name, m in self.snapshot.meta.items()}
        meta.pop(Root.type, None)
        return {
            **meta,
            Timestamp.type: self.timestamp.version,
            Snapshot.type: self.snapshot.version,
        }

    def keys(self) -> str:
        """A digest of who may sign timestamp and snapshot."""
        roles = [self.root.roles[name] for name in (Timestamp.type, Snapshot.type)]
        said = json.dumps([[sorted(role.keyids), role.threshold] for role in roles])
        return hashlib.sha256(said.encode()).hexdigest()

    def target(self, path: str) -> TargetFile | None:
        """Return what is signed of a file; None where nobody signs one of that name.

        Raises:
            TrustError: a role on the way to it is not right.
            FetchError: such a role is not held, and cannot be had.
        """
        with self.client.locked(), self.client._mapped(self.fetcher):  # noqa: SLF001  the same module
            found = self.updater.get_targetinfo(path)
            self._remember()
            return found

    def _remember(self) -> None:
        if self.is_held and len(self._trusted) != self._n_remembered:
            # what an update looks at does not count yet
            self._n_remembered = len(self._trusted)
            self.client.remember_roles(self.loaded())

    def role(self, name: str, parent: str) -> Targets:
        """Return a delegated role; raises as `target`."""
        return self.roles([name], parent)[0]

    def roles(
        self, names: Sequence[str], parent: str, advance: Callable[[int], None] = lambda _: None
    ) -> list[Targets]:
        """Return delegated roles of one parent; what is missing comes over several connections.

        Raises:
            TrustError: one is not right.
            FetchError: one is not held, and cannot be had.
        """
        client = self.client
        if all(self._trusted.contains(name, parent) for name in names):
            return [self._load(name, parent) for name in names]
        with client.locked():
            held, found = client.memory().roles, []
            versions = self.versions()
            for i in range(0, len(names), _BATCH):
                batch = names[i : i + _BATCH]
                self._fetch([n for n in batch if n in versions and held.get(n) != versions[n]])
                for name in batch:
                    with client._mapped(self.fetcher, f"{name}.json"):  # noqa: SLF001
                        found.append(self._load(name, parent))
                    advance(1)
            self._remember()
            return found

    def _load(self, name: str, parent: str) -> Targets:
        return self.updater._load_targets(name, parent)  # noqa: SLF001  there is no public way

    def _fetch(self, names: Sequence[str]) -> None:
        """Fetch roles, to be verified right after."""
        if len(names) < 2:
            return
        paths = {}
        for name in names:
            info = self.snapshot.meta[f"{name}.json"]
            path = f"{_METADATA}{info.version}.{quote(name, '')}.json"
            paths[path] = info.length or MAX_ROLE
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            # one that cannot be had is asked for again, alone, and that is the error
            found = pool.map(self._try, paths.keys(), paths.values())
            pairs = zip(paths, found, strict=True)
            self.fetcher.ready = {path: content for path, content in pairs if content is not None}

    def _try(self, path: str, max_bytes: int) -> bytes | None:
        with suppress(FetchError):
            return self.fetcher.read(path, max_bytes)
        return None

    def read(self, info: TargetFile) -> bytes:
        """Fetch a file that is signed, and verify it.

        Raises:
            TrustError: it is not the one that was signed, or is missing.
            FetchError: it cannot be had.
        """
        directory, _, name = info.path.rpartition("/")
        digest = info.hashes.get("sha256") or next(iter(info.hashes.values()))
        if self.root.consistent_snapshot:
            name = f"{digest}.{name}"
        path = "/".join(filter(None, ("targets", directory, name)))
        with self.client._mapped(self.fetcher, info.path):  # noqa: SLF001
            content = self.fetcher.download_bytes(path, info.length)
            info.verify_length_and_hashes(content)
        return content

    def is_right(self, info: TargetFile, content: bytes) -> bool:
        """Whether bytes are the file that is signed."""
        try:
            info.verify_length_and_hashes(content)
        except exceptions.LengthOrHashMismatchError:
            return False
        return True


def _parts(path: str) -> tuple[int, str]:
    """Return version and role of a metadata file; no role for anything else.

    >>> _parts("metadata/5.acme.json"), _parts("targets/index.toml")
    ((5, 'acme'), (0, ''))
    """
    match = re.fullmatch(r"metadata/(\d{1,15})\.([^/]+)\.json", path)
    return (int(match[1]), match[2]) if match else (0, "")


def _role_in(directory: Path, path: str) -> bytes | None:
    """Return a delegated role that python-tuf has in a directory, if it is of the version asked for."""
    version, role = _parts(path)
    with suppress(OSError, ValueError, KeyError, TypeError):
        content = (directory / f"{role}.json").read_bytes() if role not in ("", *_TOP) else b""
        if json.loads(content)["signed"]["version"] == version:
            return content
    return None


def _role_of(message: str) -> str:
    match = re.search(r"(\S+?)(\.json)? is expired", message)
    return f"{match[1]}.json" if match else "metadata"
