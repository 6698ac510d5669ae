"""What may be removed from the store, and why; and removing it.

Roots are what is installed, what the lockfiles of registered projects name, and what a running
process holds a lease on. Everything else may go once it is older than the hour that an install may
need between a blob and its record. A plan is made first and can be shown; it is made anew when the
store is locked, and then carried out: records first, so that none ever points at nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tomli
import tomli_w
from blake3 import blake3

from weightpkg import files
from weightpkg.digest import Digest
from weightpkg.document import parse_document
from weightpkg.errors import DocumentError, StoreError
from weightpkg.store import Installed, Store, disk_usage, placed_sources

GRACE_S = 60 * 60
STALE_PARTIAL_S = 7 * 24 * 60 * 60

_HEX = re.compile(r"[0-9a-f]{64}\Z")
Kind = Literal["model", "source", "blob", "conversion", "partial", "quarantine"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """What may go besides what nothing needs.

    now: the present, in seconds since the epoch.
    unused_for_s: installed models that were not used for so long.
    max_size: the least recently used, until the store has at most so many bytes.
    drop_sources: the files that models were converted from.
    """

    now: float
    unused_for_s: float | None = None
    max_size: int | None = None
    drop_sources: bool = False
    grace_s: float = GRACE_S


@dataclass(frozen=True, slots=True)
class Doomed:
    """Something that is to be removed: what, why, and how much it frees.

    record: of a model, to be forgotten; of sources, to be written without them.
    """

    kind: Kind
    name: str
    reason: str
    size: int
    path: Path
    record: Installed | None = None


@dataclass(frozen=True, slots=True)
class _Roots:
    """Names of blobs and conversions, 64 hex digits each, that must stay."""

    leased: frozenset[str]
    projects: frozenset[str]

    def hold(self, record: Installed) -> bool:
        """Whether something else than its record needs an installed model."""
        names = {file.sha256.hex for file in record.files} | {record.conversion or ""}
        return bool(names & (self.leased | self.projects))


def plan_collection(store: Store, policy: Policy) -> list[Doomed]:
    """Decide what goes, in the order in which it goes; nothing is touched.

    Raises:
        StoreError: a record or a project's lockfile cannot be read.
    """
    roots = _Roots(frozenset(live_leases(store)), frozenset(_locked(store)))
    kept = store.installed()
    doomed: list[Doomed] = []
    if policy.unused_for_s is not None:
        limit = policy.now - policy.unused_for_s
        unused = [r for r in kept if store.used(r) < limit and not roots.hold(r)]
        doomed += _models(store, unused, f"not used for {_days(policy.unused_for_s)}")
        kept = [record for record in kept if record not in unused]
    if policy.drop_sources:
        doomed += _sources(store, kept, "its conversion is kept")
    doomed += _unneeded(store, roots, kept, policy)
    doomed += _stale(store, policy)
    if policy.max_size is not None:
        doomed += _over_budget(store, roots, kept, doomed, policy.max_size)
    return doomed


def collect(store: Store, policy: Policy) -> tuple[list[Doomed], int]:
    """Remove what a plan says; return what was removed and the bytes freed.

    The store must be had alone (`Store.use_alone`).

    Raises:
        StoreError: something cannot be read or removed; the rest is left to the next time.
    """
    doomed = plan_collection(store, policy)
    freed = sum(_remove(store, one) for one in doomed)
    _sweep_locks(store)
    return doomed, freed


def uninstall(store: Store, records: Iterable[Installed]) -> int | None:
    """Forget installed variants, and remove what nothing else needs.

    Returns:
        The bytes freed; None where others use the store just now, and `gc` has to do it later.

    Raises:
        StoreError: something cannot be removed.
    """
    records = list(records)
    with store.use():
        for record in records:
            store.forget(record)
    with store.try_alone() as is_alone:
        if not is_alone:
            return None
        roots = _Roots(frozenset(live_leases(store)), frozenset(_locked(store)))
        rest = store.installed()
        doomed = [one for record in records for one in _parts_of(store, record, rest, roots)]
        return sum(_remove(store, one) for one in dict.fromkeys(doomed))


def _remove(store: Store, doomed: Doomed) -> int:
    if doomed.kind == "model":
        if doomed.record:
            store.forget(doomed.record)
        return 0
    if doomed.kind == "source" and doomed.record:
        store.record(doomed.record)
        return 0
    from weightpkg.partial import journal_path  # noqa: PLC0415  slow to import

    freed = store.remove(doomed.path)
    beside = {
        "blob": store.chunks_path(Digest("sha256", doomed.name)) if doomed.kind == "blob" else None,
        "partial": journal_path(doomed.path),
    }.get(doomed.kind)
    return freed + (store.remove(beside) if beside else 0)


def _parts_of(
    store: Store, record: Installed, kept: Iterable[Installed], roots: _Roots
) -> Iterator[Doomed]:
    """Yield the blobs and the conversion of a record that no kept one needs."""
    needed = _needed(kept) | roots.leased | roots.projects
    reason = f"{record} is not installed any more"
    for file in record.files:
        path = store.blob_path(file.sha256)
        if file.sha256.hex not in needed and path.exists():
            yield Doomed("blob", file.sha256.hex, reason, files.tree_size(path), path)
    if record.conversion and record.conversion not in needed:
        path = store.model_path(record.conversion)
        if path.exists():
            yield Doomed("conversion", record.conversion, reason, files.own_size(path), path)


def _needed(kept: Iterable[Installed]) -> frozenset[str]:
    names = {file.sha256.hex for record in kept for file in record.files if file.is_kept}
    return frozenset(names | {record.conversion for record in kept if record.conversion})


def _models(store: Store, unused: Iterable[Installed], reason: str) -> Iterator[Doomed]:
    """Yield records that go; their blobs and conversions follow as unneeded ones."""
    for record in unused:
        size = disk_usage(store, record)
        yield Doomed("model", str(record), reason, size, store.record_path(record), record)


def _sources(store: Store, kept: list[Installed], reason: str) -> Iterator[Doomed]:
    """Mark sources of converted models as dropped in `kept`, and yield their records."""
    as_files = {f.sha256.hex for r in kept if not r.conversion for f in r.files}
    for i, record in enumerate(kept):
        conversion = record.conversion and store.model(record.conversion)
        if not conversion:
            continue
        placed = placed_sources(conversion)  # to drop them would free nothing
        done_with = [file for file in record.files if file.sha256.hex not in placed]
        droppable = [f for f in done_with if f.is_kept and f.sha256.hex not in as_files]
        if not droppable or len(droppable) < len(done_with):
            continue
        size = sum(file.size for file in droppable)
        after = (replace(f, is_kept=False) if f in droppable else f for f in record.files)
        kept[i] = replace(record, files=tuple(after))
        yield Doomed("source", str(record), reason, size, store.record_path(record), kept[i])


def _unneeded(
    store: Store, roots: _Roots, kept: list[Installed], policy: Policy
) -> Iterator[Doomed]:
    needed = _needed(kept) | roots.leased | roots.projects
    reason = "nothing needs it"
    limit = policy.now - policy.grace_s
    gone = _needed(store.installed()) - needed  # whose record has just gone needs no grace
    for path in sorted((store.root / "blobs" / "sha256").glob("*/*")):
        name = path.name.removesuffix(".chunks")
        if name in needed or not _HEX.match(name):
            continue
        if path.name != name and path.with_name(name).exists():
            continue  # a list of chunks goes with its blob
        if name in gone or _is_older(path, limit):
            yield Doomed("blob", name, reason, files.tree_size(path), path.with_name(name))
    for path in sorted((store.root / "models").glob("*")):
        if path.name in needed or not _HEX.match(path.name):
            continue
        if path.name in gone or _is_older(path, limit):
            yield Doomed("conversion", path.name, reason, files.own_size(path), path)


def _is_older(path: Path, limit: float) -> bool:
    """Whether it was made before a time; what has gone meanwhile was not."""
    with suppress(FileNotFoundError):
        return path.lstat().st_ctime < limit
    return False


def _stale(store: Store, policy: Policy) -> Iterator[Doomed]:
    limit = policy.now - STALE_PARTIAL_S
    days = _days(STALE_PARTIAL_S)
    for partial in partials(store):
        if partial.changed < limit:
            reason = f"not gone on with for {days}"
            yield Doomed("partial", partial.name, reason, partial.size, partial.path)
    for path in sorted((store.root / "quarantine").glob("*")):
        if _is_older(path, limit):
            reason = f"damaged, and replaced over {days} ago"
            yield Doomed("quarantine", path.name, reason, files.tree_size(path), path)


def _over_budget(
    store: Store,
    roots: _Roots,
    kept: list[Installed],
    doomed: list[Doomed],
    max_size: int,
) -> list[Doomed]:
    """Choose sources, then models, least recently used first, until the rest fits."""
    total = files.tree_size(store.root) - sum(one.size for one in doomed if _frees(one))
    chosen: list[Doomed] = []
    oldest = sorted(kept, key=store.used)
    over = f"the store has more than {max_size:,} bytes"
    for record in oldest:
        if total <= max_size:
            return chosen
        for one in _sources(store, [record], over):
            needed = _needed(r for r in kept if r is not record)
            chosen.append(one)
            for file in one.record.files if one.record else ():
                if (
                    not file.is_kept
                    and file.sha256.hex not in needed | roots.leased | roots.projects
                ):
                    path = store.blob_path(file.sha256)
                    chosen.append(Doomed("blob", file.sha256.hex, over, file.size, path))
                    total -= file.size
    for record in oldest:
        if total <= max_size:
            return chosen
        if roots.hold(record):
            continue
        kept = [other for other in kept if other is not record]
        chosen += _models(store, [record], over)
        already = {one.path for one in chosen}
        for one in _parts_of(store, record, kept, roots):
            if one.path not in already:
                chosen.append(replace(one, reason=over))
                total -= one.size
    return chosen


def _frees(doomed: Doomed) -> bool:
    return doomed.kind not in ("model", "source")


def total_freed(doomed: Iterable[Doomed]) -> int:
    """Bytes that a plan frees."""
    return sum(one.size for one in doomed if _frees(one))


@dataclass(frozen=True, slots=True)
class PartialFile:
    """A download that is not finished: `size` of `total` bytes, None where that is not known."""

    name: str
    path: Path
    size: int
    changed: float


def partials(store: Store) -> list[PartialFile]:
    """The downloads that a later one can go on with, by name."""
    found = []
    for path in sorted((store.root / "partial").glob("*")):
        name = path.name.removesuffix(".journal")
        is_lone_journal = name != path.name and not path.with_name(name).exists()
        if name == path.name or is_lone_journal:
            with suppress(FileNotFoundError):
                entry = path.lstat()
                size = min(entry.st_size, getattr(entry, "st_blocks", 1 << 60) * 512)
                found.append(PartialFile(name, path.with_name(name), size, entry.st_mtime))
    return found


def live_leases(store: Store) -> Iterator[str]:
    """Yield the names of blobs and conversions that running processes use."""
    for path in sorted((store.root / "leases").glob("*.lease")):
        with files.try_lock(path) as is_dead, files.mapped(path):
            if not is_dead:
                with suppress(FileNotFoundError):  # it has just been let go
                    yield from path.read_text(encoding="ascii", errors="replace").split()


def register_project(store: Store, lockfile: Path, models: Iterable[str] = ()) -> None:
    """Keep whatever a project's lockfile names, as long as that file is there.

    Args:
        store: the store.
        lockfile: the project's.
        models: the records of what the project installed, relative to the store.

    Raises:
        StoreError: the store cannot be written.
    """
    path = _project_path(store, lockfile)
    document = {"schema": 1, "lockfile": str(lockfile.absolute()), "models": sorted(models)}
    content = tomli_w.dumps(document).encode()
    with files.mapped(path):
        if path.exists() and path.read_bytes() == content:
            return
    with store.use():
        store.write(path, content)


def project_models(store: Store, lockfile: Path) -> set[str]:
    """Return the records that a registered project installed, those that are gone included."""
    path = _project_path(store, lockfile)
    if not path.exists():
        return set()
    with files.mapped(path):
        content = path.read_bytes()
    try:
        return set(parse_document(content, source=str(path)).strings("models"))
    except DocumentError as error:
        raise StoreError(error.message, hint=f"remove `{path}`") from error


def _project_path(store: Store, lockfile: Path) -> Path:
    name = blake3(str(lockfile.absolute()).encode()).hexdigest()
    return store.root / "projects" / f"{name}.toml"


def projects(store: Store) -> dict[Path, frozenset[str]]:
    """The lockfiles of registered projects, with the names of blobs and conversions in each.

    Raises:
        StoreError: one of them cannot be read; nothing may be removed then.
    """
    found: dict[Path, frozenset[str]] = {}
    for path in sorted((store.root / "projects").glob("*.toml")):
        try:
            with files.mapped(path):
                lockfile = Path(
                    parse_document(path.read_bytes(), source=str(path)).required("lockfile", str)
                )
            if lockfile.is_file():
                with files.mapped(lockfile):
                    found[lockfile] = frozenset(_names_in(tomli.loads(lockfile.read_text("utf-8"))))
        except (DocumentError, ValueError, RecursionError) as error:
            raise StoreError(
                f"a registered project cannot be read: {error}",
                hint=f"repair its lockfile, or remove `{path}`",
            ) from error
    return found


def _locked(store: Store) -> Iterator[str]:
    for names in projects(store).values():
        yield from names


def _names_in(value: Any) -> Iterator[str]:
    """Yield every digest and key in a TOML document, wherever it stands."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from _names_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _names_in(inner)
    elif isinstance(value, str) and _HEX.match(value.removeprefix("sha256:")):
        yield value.removeprefix("sha256:")


def _sweep_locks(store: Store) -> None:
    """Remove dead leases, and the locks of single digests.

    Only while the store is had alone: nobody holds such a lock then, and no lease is on its way
    between its file and its lock.
    """
    for path in sorted((store.root / "leases").glob("*.lease")):
        with files.try_lock(path) as is_dead:
            if is_dead:
                files.discard(path)
    for path in sorted((store.root / "locks").glob("*.lock")):
        if path.name not in ("store.lock", "gate.lock"):
            files.discard(path)


def _days(seconds: float) -> str:
    return f"{seconds / 86400:g} days"
