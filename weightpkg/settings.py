"""What the environment says: where the store and the index are, and how servers are reached.

The only module that reads environment variables and home directories; everything else is given
what it needs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from weightpkg.fetch import OpenSource
from weightpkg.index import Index
from weightpkg.store import Store

VARIABLES = {
    "WEIGHTPKG_HOME": "where models are kept, in place of the system's directory for user data",
    "WEIGHTPKG_INDEX": "a directory to use as the index, in place of the one that is built in",
    "NO_COLOR": "no colours, if set",
    "PIP_*, pip.conf": "pip's own configuration: where `pypi:` sources are fetched from",
    "HTTPS_PROXY, NO_PROXY, REQUESTS_CA_BUNDLE": "how servers are reached, as requests has it",
}


@dataclass(frozen=True, slots=True)
class Settings:
    """Where things are, for one run."""

    home: Path
    index_dir: Path
    environ: Mapping[str, str]

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read the environment of this process, or another one."""
        environ = os.environ if environ is None else environ
        home = environ.get("WEIGHTPKG_HOME")
        index = environ.get("WEIGHTPKG_INDEX")
        return cls(
            Path(home) if home else platformdirs.user_data_path("weightpkg", appauthor=False),
            Path(index) if index else _default_index(),
            environ,
        )

    def store(self) -> Store:
        """The store."""
        return Store(self.home)

    def index(self) -> Index:
        """The index."""
        return Index(self.index_dir)

    @contextmanager
    def sources(self, store: Store) -> Iterator[OpenSource]:
        """Enter what opens sources; connections are closed at the end."""
        from weightpkg.sources.openers import make_open_source  # noqa: PLC0415  slow to import,
        from weightpkg.sources.pip_config import read_pip_config  # noqa: PLC0415  and only
        from weightpkg.sources.transport import Transport  # noqa: PLC0415  downloads need it

        config = read_pip_config(
            self.environ, home=Path.home(), prefix=Path(sys.prefix), platform=sys.platform
        )
        with Transport(config.transport) as transport:
            yield make_open_source(
                config, transport, index_dir=self.index_dir, temp_dir=store.temporary
            )


def _default_index() -> Path:
    """The index in the wheel, or, in a checkout, the one that goes into it."""
    package = Path(__file__).parent
    shipped = package / "default_index"
    return shipped if shipped.is_dir() else package.parent / "index"
