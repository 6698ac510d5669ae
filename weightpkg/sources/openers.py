"""One door to all kinds of sources of this machine."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

from weightpkg.package import FileSource, HfSource, HttpsSource, PypiSource, Source
from weightpkg.sources import Content
from weightpkg.sources.hf import HubOpener, Listing
from weightpkg.sources.https import HttpsOpener
from weightpkg.sources.local import LocalOpener
from weightpkg.sources.pip_config import PipConfig
from weightpkg.sources.transport import Transport

if TYPE_CHECKING:
    from weightpkg.sources.pypi import PypiOpener


class Openers:
    """Opens sources of any kind; close it, or use it in a `with` statement.

    Args:
        config: pip's configuration, which also says how servers are reached.
        environ: the environment variables, for the hub's.
        index_dir: what `file:` sources are relative to.
        temp_dir: where a file may lie while it is read.
    """

    def __init__(
        self, config: PipConfig, environ: Mapping[str, str], *, index_dir: Path, temp_dir: Path
    ) -> None:
        self._stack = ExitStack()
        self._environ = environ
        self._config = config
        self._temp_dir = temp_dir
        self._transport = self._stack.enter_context(Transport(config.transport))
        self._https = HttpsOpener(self._transport)
        self._local = LocalOpener(index_dir)

    @cached_property
    def hub(self) -> HubOpener:
        """What opens and lists Hugging Face repositories."""
        hub = HubOpener.from_environment(self._config.transport, self._environ)
        self._stack.callback(hub.close)
        return hub

    @cached_property
    def _pypi(self) -> PypiOpener:
        from weightpkg.sources.pypi import PypiOpener  # noqa: PLC0415  slow to import

        return PypiOpener(self._config, self._transport, temp_dir=self._temp_dir)

    def __call__(
        self, source: Source, start: int = 0, end: int | None = None
    ) -> AbstractContextManager[Content]:
        """Open a source of which `start` up to `end` will be read first.

        Raises:
            FetchError: it cannot be had.
        """
        match source:
            case PypiSource():
                return self._pypi.open(source, start, end)
            case HttpsSource():
                return self._https.open(source, start, end)
            case FileSource():
                return self._local.open(source, start, end)
            case HfSource():
                return self.hub.open(source, start, end)

    def list_repository(self, repo: str, revision: str) -> Listing:
        """Return what a Hugging Face repository has at a revision; `FetchError` if it cannot."""
        return self.hub.list(repo, revision)

    def close(self) -> None:
        """Close all connections."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
