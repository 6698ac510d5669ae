"""The client protocol of tuf-conformance, spoken by the client that indexes are read with.

https://github.com/theupdateframework/tuf-conformance/blob/eec841c/CLIENT-CLI.md: `init`, `refresh`
and `download`, with metadata under names without a version in a directory that the suite looks into.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from weightpkg import files
from weightpkg.errors import TrustError
from weightpkg.sources.transport import Transport
from weightpkg.trust.client import Client, Session
from weightpkg.trust.origin import WebOrigin

_NAME = "conformance"


@dataclass(frozen=True, slots=True)
class _Places:
    """An origin whose metadata and targets have URLs of their own."""

    place: str
    metadata: WebOrigin
    targets: WebOrigin

    def read(self, path: str, max_bytes: int) -> bytes:
        """Return a file; as `Origin.read`."""
        part, _, name = path.partition("/")
        origin = self.metadata if part == "metadata" else self.targets
        return origin.read(name, max_bytes)


def initialize(metadata_dir: Path, root: Path) -> None:
    """Trust a root from the start.

    Raises:
        StoreError: it cannot be read or written.
    """
    with files.mapped(root):
        content = root.read_bytes()
    files.write_file(_first_root(metadata_dir), content, temporary=metadata_dir / "state")
    files.write_file(metadata_dir / "root.json", content, temporary=metadata_dir / "state")


def _first_root(metadata_dir: Path) -> Path:
    return metadata_dir / "state" / "first.root.json"


def refresh(
    metadata_dir: Path, metadata_url: str, targets_url: str, transport: Transport
) -> Session:
    """Take what is new.

    Raises:
        TrustError: it is refused.
        FetchError: it cannot be had.
        StoreError: the directory cannot be read or written.
    """
    root = _first_root(metadata_dir)
    with files.mapped(root):
        content = root.read_bytes()

    def connect() -> Transport:
        return transport

    origin = _Places(
        metadata_url, WebOrigin(metadata_url, connect), WebOrigin(targets_url, connect)
    )
    client = Client(_NAME, metadata_dir / "state", origin, content, update_dir=metadata_dir)
    return client.refresh()


def download(session: Session, names: Iterable[str], target_dir: Path) -> None:
    """Put verified files into a directory, each unless it is there; stop at the first that fails.

    Raises:
        TrustError: one is not the file that was signed, or nobody signed one of that name.
        FetchError: one cannot be had.
        StoreError: the directory cannot be written.
    """
    for name in names:
        info = session.target(name)
        if info is None:
            raise TrustError(_NAME, name, "is signed by nobody")
        path = target_dir / quote(name, "")
        if not (path.is_file() and session.is_right(info, path.read_bytes())):
            files.write_file(path, session.read(info), temporary=target_dir.parent / "partial")
