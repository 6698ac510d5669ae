"""The content-addressed store: blobs by digest, converted models by key, and what is installed.

    blobs/sha256/ab/<hex>         0444; beside it <hex>.chunks: size, and BLAKE3 of the whole and parts
    models/<conversion key>/      real files only, closed by the manifest weightpkg.toml
    installed/<name>/<version>/<variant>.toml
    partial/ tmp/ trash/ quarantine/ leases/ projects/ locks/

Truth is files. A blob or a model directory is there complete or not at all, and the record that
points at it is written last, and removed first; so whatever happens in between, no record ever
points at something that is not there.

Who changes the store shares its lock (`use`), who removes blobs and models has it alone
(`use_alone`), and who makes one blob or model has that one's lock. What a killed process left in
`tmp` and `trash` is swept by the next that finds itself alone.
"""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import tomli_w
from blake3 import blake3
from packaging.version import Version

from weightpkg import files
from weightpkg.digest import Digest, Fingerprint
from weightpkg.document import Table, parse_document
from weightpkg.errors import DocumentError, StoreError
from weightpkg.requirement import NormalizedName, normalize_name

MANIFEST = "weightpkg.toml"
LAYOUT = 1

# how long who wants the store alone keeps others from coming in, and how long it lets them
_PATIENCE_S = 2.0
_PAUSE_S = 0.5

_KEY = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True)
class InstalledFile:
    """A file as it was when it was installed.

    sources: where it can be had again; the parts of each are joined.
    is_kept: False once the source was dropped because its conversion is enough.
    """

    path: str
    size: int
    sha256: Digest
    blake3: Digest
    sources: tuple[tuple[str, ...], ...] = ()
    is_kept: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Installed:
    """The record of an installed variant.

    conversion, tree: None for files that are kept as they are.
    reference: the source that was asked for, where it was not a name of an index.
    """

    name: NormalizedName
    version: Version
    variant: NormalizedName
    files: tuple[InstalledFile, ...]
    conversion: str | None = None
    tree: Digest | None = None
    reference: str | None = None

    @property
    def full_name(self) -> str:
        """The name a user types."""
        return f"{self.name}-{self.variant}"

    def __str__(self) -> str:
        return f"{self.full_name} {self.version}"


class Publishable(Protocol):
    """A file that can be given its final name."""

    def publish(self, path: Path, /) -> None:
        """Make it durable under that name."""


class Store:
    """A store in a directory, which is made when something is first written."""

    def __init__(self, root: Path, *, objects: Path | None = None) -> None:
        """Nothing is read or written yet.

        Args:
            root: the directory.
            objects: where blobs and models are, if not there: a directory of the same disk.
        """
        self.root = root
        self._objects = objects or root
        self._is_checked = False
        self._n_uses = 0

    @contextmanager
    def use(self) -> Iterator[None]:
        """Share the store with others for the length of the `with`: nothing in it is collected.

        Raises:
            StoreError: the store is of another layout, or cannot be written.
        """
        if self._n_uses:
            with self._count():
                yield
            return
        files.make_directory(self.root)
        self._sweep_if_alone()
        with ExitStack() as stack:
            with files.lock(self._gate_path, shared=True):
                stack.enter_context(files.lock(self._lock_path, shared=True))
            stack.enter_context(self._count())
            self._check_layout()
            yield

    @contextmanager
    def use_alone(self, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Have the store alone for the length of the `with`.

        Raises:
            StoreError: the store is of another layout, or cannot be written.
        """
        files.make_directory(self.root)
        with ExitStack() as stack:
            while not self._enter_alone(stack):
                on_wait()
                time.sleep(_PAUSE_S)
            stack.enter_context(self._count())
            self._check_layout()
            self._sweep()
            yield

    def _enter_alone(self, stack: ExitStack) -> bool:
        """Wait at a closed gate, so that nobody new comes in; and not for long, as they wait too."""
        with files.lock(self._gate_path), ExitStack() as attempt:
            is_alone = attempt.enter_context(files.try_lock(self._lock_path, timeout_s=_PATIENCE_S))
            if is_alone:
                stack.enter_context(attempt.pop_all())
            return is_alone

    @contextmanager
    def try_alone(self) -> Iterator[bool]:
        """Enter with True and the store alone, or with False where anyone else uses it."""
        files.make_directory(self.root)
        with files.try_lock(self._lock_path) as is_alone, self._count():
            yield is_alone

    @contextmanager
    def _count(self) -> Iterator[None]:
        self._n_uses += 1
        try:
            yield
        finally:
            self._n_uses -= 1

    @property
    def _lock_path(self) -> Path:
        return self.root / "locks" / "store.lock"

    @property
    def _gate_path(self) -> Path:
        return self.root / "locks" / "gate.lock"

    def _sweep_if_alone(self) -> None:
        if self._leavings():
            with files.try_lock(self._lock_path) as is_alone:
                if is_alone:
                    self._sweep()

    def _leavings(self) -> list[Path]:
        places = (self.root / "tmp", self.root / "trash")
        return [entry for place in places if place.is_dir() for entry in place.iterdir()]

    def _sweep(self) -> None:
        for name in ("tmp", "trash"):
            files.sweep(self.root / name, older_than=math.inf)

    @property
    def temporary(self) -> Path:
        """Where things are until they are complete.

        Raises:
            StoreError: the store is of another layout, or cannot be written.
        """
        files.make_directory(self.root)
        self._check_layout()
        return files.make_directory(self.root / "tmp", is_durable=False)

    def _check_layout(self) -> None:
        if self._is_checked:
            return
        self._is_checked = True
        marker = self.root / "layout"
        with files.mapped(marker):
            if not marker.exists():
                # one sync of the root, for the marker, makes all of them durable
                names = ("blobs", "models", "installed") if self._objects == self.root else ()
                for name in names:
                    files.make_directory(self.root / name, is_durable=False)
                self.write(marker, f"{LAYOUT}\n".encode())
            found = marker.read_bytes().strip()
        if found != str(LAYOUT).encode():
            raise StoreError(
                f"`{self.root}` has layout {found.decode(errors='replace')!r}, not {LAYOUT}",
                hint="it was made by another version of weightpkg; use that, or another "
                "WEIGHTPKG_HOME",
            )

    def write(self, path: Path, content: bytes) -> None:
        """Write a small file of the store durably."""
        files.write_file(path, content, temporary=self.temporary)

    def remove(self, path: Path, *, is_durable: bool = False) -> int:
        """Remove a file or directory of the store; return the bytes freed."""
        return files.remove(path, trash=self.root / "trash", is_durable=is_durable)

    def blob_path(self, digest: Digest) -> Path:
        """Where the blob of a SHA-256 is, or would be."""
        if digest.algorithm != "sha256":
            raise ValueError(f"blobs are named by SHA-256, not {digest}")
        return self._objects / "blobs" / "sha256" / digest.hex[:2] / digest.hex

    def blob(self, digest: Digest) -> Path | None:
        """Where the blob is, None where there is none."""
        path = self.blob_path(digest)
        return path if path.is_file() else None

    def fingerprint(self, digest: Digest) -> Fingerprint | None:
        """What is known of a blob; None where there is none, or its list of chunks is damaged."""
        return self.known(digest) if self.blob(digest) else None

    def known(self, digest: Digest) -> Fingerprint | None:
        """What is known of the bytes of a digest, whether or not they are here now."""
        with suppress(DocumentError, OSError):
            return self.read_chunks(self.chunks_path(digest))
        return None

    @staticmethod
    def read_chunks(path: Path) -> Fingerprint:
        """Read a list of chunks.

        Raises:
            DocumentError: it is damaged.
        """
        return _load_fingerprint(parse_document(path.read_bytes(), source=path.name))

    def chunks_path(self, digest: Digest) -> Path:
        """Where the list of a blob's chunks is, or would be."""
        path = self.blob_path(digest)
        return path.with_name(f"{path.name}.chunks")

    def remove_blob(self, digest: Digest) -> int:
        """Remove a blob, if it is there; return the bytes freed."""
        return self.remove(self.blob_path(digest)) + self.remove(self.chunks_path(digest))

    @contextmanager
    def lock(self, digest: Digest, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Let one process at a time make the blob, or the conversion, of this digest.

        Args:
            digest: a blob's, or a conversion's key.
            on_wait: called once if another process has it.
        """
        with files.lock(self.root / "locks" / f"{digest.hex}.lock", on_wait=on_wait):
            yield

    @contextmanager
    def lease(self, *names: str) -> Iterator[None]:
        """Keep blobs and conversions from being collected for the length of the `with`.

        Args:
            names: 64 hex digits each.

        Raises:
            StoreError: the store cannot be written.
        """
        path = self.root / "leases" / f"{files.unique_name()}.lease"
        with ExitStack() as stack:
            with self.use():
                with files.keep_file(path) as file:
                    file.write_at(0, "\n".join(names).encode())
                stack.enter_context(files.lock(path))
            try:
                yield
            finally:
                files.discard(path)

    def partial_path(self, digest: Digest) -> Path:
        """Where the bytes of a blob are until all have come."""
        return self.root / "partial" / digest.hex

    def new_file(self) -> files.NewFile:
        """Begin a file that is to become a blob."""
        return files.NewFile(self.temporary)

    def publish(self, new: Publishable, fingerprint: Fingerprint) -> Path:
        """Make a file whose bytes were checked a blob; return its path.

        Raises:
            StoreError: the disk is full, or may not be written.
        """
        path = self.blob_path(fingerprint.sha256)
        self.write_chunks(fingerprint, is_name_durable=False)
        new.publish(path)
        return path

    def write_chunks(self, fingerprint: Fingerprint, *, is_name_durable: bool = True) -> None:
        """Write the list of a blob's chunks.

        Args:
            fingerprint: what it says.
            is_name_durable: False if the blob is published right after it.

        Raises:
            StoreError: the disk is full, or may not be written.
        """
        files.write_file(
            self.chunks_path(fingerprint.sha256),
            _dump_fingerprint(fingerprint),
            temporary=self.temporary,
            is_name_durable=is_name_durable,
        )

    def set_aside(self, path: Path, *, keep_name: bool = False) -> None:
        """Put something damaged into quarantine; it may keep its name until that is taken."""
        files.set_aside(path, self.root / "quarantine", keep_name=keep_name)

    def model_path(self, key: str) -> Path:
        """Where the model directory of a conversion is, or would be."""
        if not _KEY.match(key):
            raise ValueError(f"not a conversion's key: {key!r}")
        return self._objects / "models" / key

    def model(self, key: str) -> Path | None:
        """Where the model directory is, None where there is none."""
        path = self.model_path(key)
        return path if (path / MANIFEST).is_file() else None

    @contextmanager
    def new_model(self, key: str) -> Iterator[Path]:
        """Enter an empty directory, which becomes the model when nothing was raised."""
        with files.new_directory(self.model_path(key), temporary=self.temporary) as new:
            yield new

    def record(self, installed: Installed) -> None:
        """Write that something is installed; all that it points at must be there."""
        self.write(self.record_path(installed), tomli_w.dumps(_dump_installed(installed)).encode())

    def used(self, installed: Installed) -> float:
        """When it was last used or installed, in seconds since the epoch; 0 if it is gone."""
        with suppress(OSError):
            return self.record_path(installed).stat().st_mtime
        return 0.0

    def note_use(self, installed: Installed, time_s: float) -> None:
        """Remember that it was used, if the store can be written."""
        files.touch(self.record_path(installed), time_s)

    def forget(self, installed: Installed) -> None:
        """Remove the record of something installed."""
        self.remove(self.record_path(installed), is_durable=True)

    def record_path(self, installed: Installed) -> Path:
        """Where the record of something installed is, or would be."""
        directory = self.root / "installed" / installed.name / str(installed.version)
        return directory / f"{installed.variant}.toml"

    def installed(self) -> list[Installed]:
        """What is installed, by name, variant and version.

        Raises:
            StoreError: a record cannot be read.
        """
        records = self._load_all((self.root / "installed").glob("*/*/*.toml"))
        return sorted(records, key=lambda r: (r.name, r.variant, r.version))

    def find(self, name: str, variant: str, version: Version | None = None) -> Installed | None:
        """The newest installed release of a variant, or that version; None where there is none."""
        paths = (self.root / "installed" / name).glob(f"*/{variant}.toml")
        found = (r for r in self._load_all(paths) if version is None or r.version == version)
        return max(found, key=lambda record: record.version, default=None)

    @staticmethod
    def _load_all(paths: Iterable[Path]) -> Iterator[Installed]:
        for path in paths:
            with files.mapped(path):
                try:
                    content = path.read_bytes()
                except FileNotFoundError:  # it was uninstalled meanwhile
                    continue
            yield _load_record(content, path)


def tree_digest(directory: Path) -> Digest:
    """Return the digest of a model directory: its manifest's, which has all the others.

    Raises:
        StoreError: it cannot be read.
    """
    path = directory / MANIFEST
    with files.mapped(path):
        return Digest("sha256", hashlib.sha256(path.read_bytes()).hexdigest())


def placed_sources(directory: Path) -> frozenset[str]:
    """Return the SHA-256 of sources that a model directory has as they are, in 64 hex digits each.

    Raises:
        StoreError: its manifest cannot be read.
    """
    path = directory / MANIFEST
    with files.mapped(path):
        content = path.read_bytes()
    try:
        rows = parse_document(content, source=str(path)).tables("sources")
        placed = (row for row in rows if row.optional("in-place", bool))
        return frozenset(row.parsed("sha256", _sha256).hex for row in placed)
    except DocumentError as error:
        raise StoreError(error.message, hint="weightpkg verify --repair") from error


def disk_usage(store: Store, installed: Installed) -> int:
    """Bytes that an installed variant takes, with what it shares with others."""
    paths = [store.blob_path(file.sha256) for file in installed.files if file.is_kept]
    if installed.conversion:
        paths.append(store.model_path(installed.conversion))
    return files.tree_size(*paths)


def _dump_fingerprint(fingerprint: Fingerprint) -> bytes:
    document = {
        "size": fingerprint.size,
        "sha256": fingerprint.sha256.hex,
        "blake3": fingerprint.blake3.hex,
        "check": _check_of(fingerprint).hex,
        "chunks": list(fingerprint.chunks),
    }
    return tomli_w.dumps(document).encode()


def _load_fingerprint(table: Table) -> Fingerprint:
    found = Fingerprint(
        table.required("size", int),
        table.parsed("sha256", _sha256),
        table.parsed("blake3", _blake3),
        table.strings("chunks"),
    )
    if table.parsed("check", _blake3) != _check_of(found):
        raise table.error("check", "does not fit the rest")
    return found


def _check_of(fingerprint: Fingerprint) -> Digest:
    """Return the BLAKE3 of all else that the list of chunks says, so that damage to it is seen."""
    lines = [str(fingerprint.size), str(fingerprint.sha256), str(fingerprint.blake3)]
    text = "\n".join([*lines, *fingerprint.chunks])
    return Digest("blake3", blake3(text.encode()).hexdigest())


def _sha256(text: str) -> Digest:
    return Digest("sha256", text)


def _blake3(text: str) -> Digest:
    return Digest("blake3", text)


def _dump_installed(installed: Installed) -> dict[str, object]:
    document: dict[str, object] = {
        "schema": 1,
        "name": installed.name,
        "version": str(installed.version),
        "variant": installed.variant,
    }
    if installed.conversion and installed.tree:
        document |= {"conversion": installed.conversion, "tree": installed.tree.hex}
    if installed.reference:
        document["reference"] = installed.reference
    document["files"] = [_dump_file(file) for file in installed.files]
    return document


def _dump_file(file: InstalledFile) -> dict[str, object]:
    row: dict[str, object] = {
        "path": file.path,
        "size": file.size,
        "sha256": file.sha256.hex,
        "blake3": file.blake3.hex,
        "sources": [list(parts) for parts in file.sources],
    }
    return row if file.is_kept else row | {"dropped": True}


def _load_record(content: bytes, path: Path) -> Installed:
    try:
        return _load_installed(parse_document(content, source=str(path)))
    except DocumentError as error:
        raise StoreError(
            f"the record {error.message}",
            hint="remove the file, and install the model again",
        ) from error


def _load_installed(table: Table) -> Installed:
    return Installed(
        name=table.parsed("name", normalize_name),
        version=table.parsed("version", Version),
        variant=table.parsed("variant", normalize_name),
        files=tuple(_load_file(row) for row in table.tables("files")),
        conversion=table.optional_parsed("conversion", _key),
        tree=table.optional_parsed("tree", _sha256),
        reference=table.optional("reference", str),
    )


def _key(text: str) -> str:
    if not _KEY.match(text):
        raise ValueError("not 64 hexadecimal digits")
    return text


def _load_file(row: Table) -> InstalledFile:
    return InstalledFile(
        row.required("path", str),
        row.required("size", int),
        row.parsed("sha256", _sha256),
        row.parsed("blake3", _blake3),
        tuple(tuple(map(str, parts)) for parts in row.optional("sources", list) or ()),
        is_kept=not row.optional("dropped", bool),
    )
