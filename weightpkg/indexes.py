"""The indexes that a user has configured: each opened as what it is, and each owner of one namespace."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from weightpkg.config import IndexConfig
from weightpkg.document import MAX_DOCUMENT_SIZE
from weightpkg.errors import DocumentError
from weightpkg.index import UNSIGNED, Index
from weightpkg.progress import Progress
from weightpkg.trust.index import SignedIndex
from weightpkg.trust.origin import AbsentError, DirectoryOrigin, Origin, WebOrigin
from weightpkg.trust.pages import Surroundings

if TYPE_CHECKING:
    from weightpkg.sources.transport import Transport

Connect = Callable[[], "Transport"]
"""Makes what reaches servers without telling them who asks."""


def state_of(home: Path, name: str) -> Path:
    """Where all that is held of an index lies."""
    return home / "indexes" / name


def origin_of(config: IndexConfig, connect: Connect) -> Origin:
    """Return the place that an index comes from."""
    directory = config.directory
    return WebOrigin(config.url, connect) if directory is None else DirectoryOrigin(directory)


def open_index(config: IndexConfig, home: Path, connect: Connect, progress: Progress) -> Index:
    """Open a configured index; nothing is read before it is asked for.

    Args:
        config: which one.
        home: where what is held of it lies.
        connect: makes what reaches servers.
        progress: told what takes long.
    """
    if config.root_sha256 is not None:
        given = Surroundings(
            state=state_of(home, config.name), cache=home / "cache", progress=progress
        )
        return SignedIndex(config, origin_of(config, connect), given)
    if config.directory is not None:
        return Index(config.directory, cache=home / "cache", note=progress.note)
    pages = UnsignedPages(config, origin_of(config, connect), state_of(home, config.name))
    return Index(pages, note=progress.note)


class UnsignedPages:
    """The pages of an index at a URL without signatures: read when asked for, never kept."""

    root = UNSIGNED

    def __init__(self, config: IndexConfig, origin: Origin, state: Path) -> None:
        """Prepare; nothing is read before it is asked for."""
        self.directory = state / "pages"
        self._config = config
        self._origin = origin
        self._read: dict[tuple[str, str], bytes] = {}

    def names(self, kind: str) -> NoReturn:
        """Refuse: a web server lists nothing."""
        raise DocumentError(
            f"`{kind}` of an index without signatures cannot be listed",
            source=self._config.url,
            hint="names have to be known; of a signed index they are",
        )

    def known(self, kind: str) -> list[str]:
        """The pages that were read."""
        return sorted(name for k, name in self._read if k == kind)

    def has(self, kind: str, name: str) -> bool:
        """Whether there is such a page."""
        with suppress(AbsentError):
            self.read(kind, name)
            return True
        return False

    def read(self, kind: str, name: str) -> bytes:
        """Return a page; `FetchError` where it cannot be had."""
        key = (kind, name)
        if key not in self._read:
            self._read[key] = self._origin.read(f"{kind}/{name}.toml", MAX_DOCUMENT_SIZE)
        return self._read[key]

    def listing(self, name: str) -> None:  # noqa: ARG002  as `index.Pages` has it
        """Nothing: only pages say something."""
        return

    def catalog_source(self) -> NoReturn:
        """Refuse; as `names`."""
        self.names("models")
