"""The content-addressed store: blobs by digest, converted models by key, and what is installed.

    blobs/sha256/ab/<hex>         0444; beside it <hex>.chunks: size, and BLAKE3 of the whole and parts
    models/<conversion key>/      real files only, closed by the manifest weightpkg.toml
    installed/<name>/<version>/<variant>.toml
    tmp/ trash/ locks/

Truth is files. A blob or a model directory is there complete or not at all, and the record that
points at it is written last, and removed first; so whatever happens in between, no record ever
points at something that is not there.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tomli_w
from packaging.version import Version

from weightpkg import files
from weightpkg.digest import Digest, Fingerprint, Hasher
from weightpkg.document import Table, parse_document
from weightpkg.errors import DigestMismatchError, DocumentError, SizeMismatchError, StoreError
from weightpkg.requirement import NormalizedName, normalize_name

MANIFEST = "weightpkg.toml"
LAYOUT = 1

_KEY = re.compile(r"[0-9a-f]{64}\Z")
# Longer than any conversion or pause of a download takes: what is older belongs to nobody.
_STALE_S = 24 * 60 * 60


@dataclass(frozen=True, slots=True)
class InstalledFile:
    """A file as it was when it was installed."""

    path: str
    size: int
    sha256: Digest
    blake3: Digest


@dataclass(frozen=True, kw_only=True, slots=True)
class Installed:
    """The record of an installed variant. `conversion` and `tree` are None for files kept as is."""

    name: NormalizedName
    version: Version
    variant: NormalizedName
    files: tuple[InstalledFile, ...]
    conversion: str | None = None
    tree: Digest | None = None

    @property
    def full_name(self) -> str:
        """The name a user types."""
        return f"{self.name}-{self.variant}"

    def __str__(self) -> str:
        return f"{self.full_name} {self.version}"


class BlobWriter:
    """A blob being written; nothing is kept of it without `commit`."""

    def __init__(self, store: Store, new: files.NewFile) -> None:
        self._store = store
        self._new = new
        self._hasher = Hasher()

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._hasher.size

    def write(self, piece: bytes) -> None:
        """Add the next bytes."""
        self._new.write(piece)
        self._hasher.update(piece)

    def commit(
        self, expected: Digest, *, size: int | None, blake3: Digest | None, where: str
    ) -> Fingerprint:
        """Check the bytes and make them a blob.

        Args:
            expected: their SHA-256.
            size: how many they shall be, if that is known.
            blake3: their BLAKE3, if that is known.
            where: what they came from, for errors.

        Raises:
            SizeMismatchError: there are fewer or more.
            DigestMismatchError: they are others.
            StoreError: the disk is full, or may not be written.
        """
        found = self._hasher.finish()
        if size is not None and found.size != size:
            raise SizeMismatchError(where, expected=size, found=found.size)
        for wanted, actual in ((expected, found.sha256), (blake3, found.blake3)):
            if wanted is not None and wanted != actual:
                raise DigestMismatchError(where, expected=str(wanted), found=str(actual))
        path = self._store.blob_path(expected)
        self._store.write(path.with_name(f"{path.name}.chunks"), _dump_fingerprint(found))
        self._new.publish(path)
        return found


class Store:
    """A store in a directory, which is made when something is first written."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._is_checked = False

    @property
    def temporary(self) -> Path:
        """Where things are until they are complete; what was left there long ago is swept.

        Raises:
            StoreError: the store is of another layout, or cannot be written.
        """
        directory = self.root / "tmp"
        if not self._is_checked:
            self._check_layout()
            files.make_directory(directory)
            for name in ("tmp", "trash"):
                files.sweep(self.root / name, older_than=time.time() - _STALE_S)
        return directory

    def _check_layout(self) -> None:
        marker = self.root / "layout"
        self._is_checked = True
        with files.mapped(marker):
            if not marker.exists():
                files.make_directory(self.root)
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

    def remove(self, path: Path) -> int:
        """Remove a file or directory of the store; return the bytes freed."""
        return files.remove(path, trash=self.root / "trash")

    def blob_path(self, digest: Digest) -> Path:
        """Where the blob of a SHA-256 is, or would be."""
        if digest.algorithm != "sha256":
            raise ValueError(f"blobs are named by SHA-256, not {digest}")
        return self.root / "blobs" / "sha256" / digest.hex[:2] / digest.hex

    def blob(self, digest: Digest) -> Path | None:
        """Where the blob is, None where there is none."""
        path = self.blob_path(digest)
        return path if path.is_file() else None

    def fingerprint(self, digest: Digest) -> Fingerprint | None:
        """What is known of a blob, None where there is none or its list of chunks is lost.

        Raises:
            StoreError: it cannot be read.
        """
        chunks = self._chunks_path(digest)
        if self.blob(digest) is None or not chunks.is_file():
            return None
        with files.mapped(chunks):
            content = chunks.read_bytes()
        try:
            return _load_fingerprint(parse_document(content, source=chunks.name))
        except DocumentError:
            return None  # damaged: the blob is made again

    def _chunks_path(self, digest: Digest) -> Path:
        path = self.blob_path(digest)
        return path.with_name(f"{path.name}.chunks")

    def remove_blob(self, digest: Digest) -> int:
        """Remove a blob, if it is there; return the bytes freed."""
        return self.remove(self.blob_path(digest)) + self.remove(self._chunks_path(digest))

    @contextmanager
    def lock(self, digest: Digest) -> Iterator[None]:
        """Let one process at a time make the blob, or the conversion, of this digest."""
        with files.lock(self.root / "locks" / f"{digest.hex}.lock"):
            yield

    @contextmanager
    def new_blob(self) -> Iterator[BlobWriter]:
        """Write a blob; without `commit`, nothing stays."""
        with files.NewFile(self.temporary) as new:
            yield BlobWriter(self, new)

    def model_path(self, key: str) -> Path:
        """Where the model directory of a conversion is, or would be."""
        if not _KEY.match(key):
            raise ValueError(f"not a conversion's key: {key!r}")
        return self.root / "models" / key

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
        self.write(self._record_path(installed), tomli_w.dumps(_dump_installed(installed)).encode())

    def forget(self, installed: Installed) -> None:
        """Remove the record of something installed."""
        self.remove(self._record_path(installed))

    def _record_path(self, installed: Installed) -> Path:
        directory = self.root / "installed" / installed.name / str(installed.version)
        return directory / f"{installed.variant}.toml"

    def installed(self) -> list[Installed]:
        """What is installed, by name, variant and version.

        Raises:
            StoreError: a record cannot be read.
        """
        records = [self._load(path) for path in (self.root / "installed").glob("*/*/*.toml")]
        return sorted(records, key=lambda r: (r.name, r.variant, r.version))

    def find(self, name: str, variant: str, version: Version | None = None) -> Installed | None:
        """The newest installed release of a variant, or that version; None where there is none."""
        found = [
            self._load(path)
            for path in (self.root / "installed" / name).glob(f"*/{variant}.toml")
            if version is None or Version(path.parent.name) == version
        ]
        return max(found, key=lambda record: record.version, default=None)

    def _load(self, path: Path) -> Installed:
        try:
            with files.mapped(path):
                table = parse_document(path.read_bytes(), source=str(path))
            return _load_installed(table)
        except DocumentError as error:
            raise StoreError(
                f"the record {error.message}",
                hint="remove the file, and install the model again",
            ) from error


def tree_digest(directory: Path) -> Digest:
    """Return the digest of a model directory: its manifest's, which has all the others.

    Raises:
        StoreError: it cannot be read.
    """
    path = directory / MANIFEST
    with files.mapped(path):
        return Digest("sha256", hashlib.sha256(path.read_bytes()).hexdigest())


def uninstall(store: Store, installed: Installed) -> int:
    """Remove an installed variant and what nothing else installed needs; return bytes freed.

    Raises:
        StoreError: something cannot be removed.
    """
    store.forget(installed)
    rest = store.installed()
    kept_blobs = {file.sha256 for other in rest for file in other.files}
    freed = 0
    if installed.conversion and installed.conversion not in {other.conversion for other in rest}:
        freed += store.remove(store.model_path(installed.conversion))
    for file in installed.files:
        if file.sha256 not in kept_blobs:
            freed += store.remove_blob(file.sha256)
    return freed


def disk_usage(store: Store, installed: Installed) -> int:
    """Bytes that an installed variant takes, with what it shares with others."""
    paths = [store.blob_path(file.sha256) for file in installed.files]
    if installed.conversion:
        paths.append(store.model_path(installed.conversion))
    return sum(files.tree_size(path) for path in paths)


def _dump_fingerprint(fingerprint: Fingerprint) -> bytes:
    document = {
        "size": fingerprint.size,
        "sha256": fingerprint.sha256.hex,
        "blake3": fingerprint.blake3.hex,
        "chunks": list(fingerprint.chunks),
    }
    return tomli_w.dumps(document).encode()


def _load_fingerprint(table: Table) -> Fingerprint:
    return Fingerprint(
        table.required("size", int),
        table.parsed("sha256", _sha256),
        table.parsed("blake3", _blake3),
        table.strings("chunks"),
    )


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
    document["files"] = [
        {"path": f.path, "size": f.size, "sha256": f.sha256.hex, "blake3": f.blake3.hex}
        for f in installed.files
    ]
    return document


def _load_installed(table: Table) -> Installed:
    return Installed(
        name=table.parsed("name", normalize_name),
        version=table.parsed("version", Version),
        variant=table.parsed("variant", normalize_name),
        files=tuple(_load_file(row) for row in table.tables("files")),
        conversion=table.optional_parsed("conversion", _key),
        tree=table.optional_parsed("tree", _sha256),
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
    )
