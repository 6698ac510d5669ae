"""A mirror in place of the sources that lockfiles name: where it is, and what it is asked for.

A mirror is asked for blobs by digest, before the canonical sources or instead of them, and for converted
models by the key of their conversion. It is no more trusted than they are: a blob counts when its
digest is right, a converted model when its tree is the one that the lockfile has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from weightpkg.contents import blob_name
from weightpkg.digest import Digest
from weightpkg.document import Table
from weightpkg.package import File, FileSource, HttpsSource, Parts, RelativePath, Source

_WEB = re.compile(r"https?://[^/\s@?#\\]+(/[^\s?#\\]*)?\Z")


@dataclass(frozen=True, slots=True)
class Replacement:
    """A mirror, by its URL or its directory.

    is_only: whether nothing else is asked.
    """

    location: str
    is_only: bool = False

    def __post_init__(self) -> None:
        if self.directory is None and not _WEB.match(self.location):
            raise ValueError(
                f"`{self.location}` is neither a directory nor http(s)://HOST/PATH without user, "
                "password and query"
            )

    @property
    def directory(self) -> Path | None:
        """Where it is on this machine, None if it is elsewhere."""
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", self.location):
            return None
        return Path(self.location).expanduser().absolute()

    def source(self, name: str) -> Source:
        """Where one of its files is, by its path below it.

        >>> Replacement("https://mirror.example/").source("mirror.toml").text
        'https://mirror.example/mirror.toml'
        """
        name = RelativePath(name).text
        directory = self.directory
        if directory is None:
            return HttpsSource(f"{self.location.rstrip('/')}/{name}")
        path = str(directory / name)
        return FileSource(f"file:{path}", path)

    def blob(self, digest: Digest) -> Parts:
        """Where a blob is."""
        return (self.source(blob_name(digest)),)

    def index(self, namespace: str) -> str:
        """Where an index is that it has, as a URL or a directory."""
        directory = self.directory
        if directory is None:
            return f"{self.location.rstrip('/')}/index/{namespace}"
        return str(directory / "index" / namespace)


def read_replacement(table: Table) -> Replacement:
    """Read the section of a configuration.

    Raises:
        DocumentError: a key is not known, or a value is not what it must be.
    """
    is_only = bool(table.optional("only", bool))
    found = table.parsed("url", lambda text: Replacement(text, is_only))
    table.finish()
    return found


def replaced(file: File, replacements: Iterable[Replacement]) -> File:
    """Return a file with mirrors before its own sources, or instead of them."""
    digest, replacements = file.sha256, tuple(replacements)
    if digest is None:
        return file
    own = () if any(each.is_only for each in replacements) else file.sources
    return replace(file, sources=(*(each.blob(digest) for each in replacements), *own))
