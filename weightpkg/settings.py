"""What the environment says: where the store and the index are, and how servers are reached.

The only module that reads environment variables and home directories; everything else is given
what it needs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from weightpkg.config import Config, IndexConfig, load_config
from weightpkg.confusable import check_distinct
from weightpkg.errors import DocumentError, NamespaceNotFoundError
from weightpkg.index import Index
from weightpkg.progress import Noting, Progress, Silence
from weightpkg.replacement import Replacement, read_replacement
from weightpkg.requirement import NormalizedName
from weightpkg.store import Store

if TYPE_CHECKING:
    from weightpkg.adopt import Places
    from weightpkg.fetch import Fetcher
    from weightpkg.package import Source
    from weightpkg.resolve import Rules
    from weightpkg.sources import Content
    from weightpkg.sources.hf import Listing
    from weightpkg.sources.openers import Openers
    from weightpkg.sources.pip_config import PipConfig
    from weightpkg.sources.transport import Transport

_DEFAULT = NormalizedName("default")

VARIABLES = {
    "WEIGHTPKG_HOME": "where models are kept, in place of the system's directory for user data",
    "WEIGHTPKG_INDEX": "a directory to use as the index, in place of the one that is built in",
    "WEIGHTPKG_MIRROR": "a mirror, its URL or directory, in place of the sources that lockfiles name",
    "WEIGHTPKG_MIRROR_ONLY": "ask nothing but the mirror, if set",
    "WEIGHTPKG_FIND_LINKS": "directories to look in for files before they are downloaded",
    "WEIGHTPKG_NO_ADOPT": "take no files from other tools' stores, if set",
    "HF_ENDPOINT, HF_TOKEN, HF_HOME": "where the hub and its cache are, as huggingface_hub has it",
    "OLLAMA_MODELS": "where Ollama keeps its models",
    "WEIGHTPKG_MIRROR_KEY": "what clients of `mirror serve` must know, in place of --key-file",
    "RAY_ADDRESS": "a running Ray cluster for `serve --ray`, in place of --ray-address",
    "SOURCE_DATE_EPOCH": "the time that a bill of materials has, in seconds since 1970",
    "NO_COLOR": "no colours, if set",
    "PIP_*, pip.conf": "pip's own configuration: where `pypi:` sources are fetched from",
    "HTTPS_PROXY, NO_PROXY, REQUESTS_CA_BUNDLE": "how servers are reached, as requests has it",
}


@dataclass(frozen=True, slots=True)
class Sources:
    """Opens sources, and lists repositories; nothing is read or imported for it before its first use."""

    _openers: Callable[[], Openers]

    def __call__(
        self, source: Source, start: int = 0, end: int | None = None
    ) -> AbstractContextManager[Content]:
        """Open a source of which a range will be read first; `FetchError` if it cannot be had."""
        return self._openers()(source, start, end)

    def list_repository(self, repo: str, revision: str) -> Listing:
        """Return what a Hugging Face repository has at a revision; `FetchError` if it cannot."""
        return self._openers().list_repository(repo, revision)


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
            Path(home) if home else _default_home(),
            Path(index) if index else _default_index(),
            environ,
        )

    def store(self) -> Store:
        """The store."""
        return Store(self.home)

    @property
    def imported(self) -> Path:
        """The mirror that bundles are imported into."""
        return self.home / "imported"

    def index(self, note: Callable[[str], None] = lambda _: None) -> Index:
        """The default index; `note` is told what takes a while.

        Raises:
            DocumentError: the configuration is not valid.
        """
        config = None if self.environ.get("WEIGHTPKG_INDEX") else self.config().index(_DEFAULT)
        if config is not None:
            return self.open_index(config, Noting(note))
        mirrored = None if self.environ.get("WEIGHTPKG_INDEX") else self._mirrored_index()
        return Index(mirrored or self.index_dir, cache=self.home / "cache", note=note)

    def config(self) -> Config:
        """What the user's configuration says.

        Raises:
            DocumentError: it is not valid.
        """
        return load_config(self.home)

    def namespaces(self, progress: Progress | None = None) -> dict[NormalizedName, Index]:
        """The configured indexes by the namespaces that they own; nothing of them is read.

        Raises:
            DocumentError: the configuration is not valid.
            TrustError: the names of two could be taken for each other.
        """
        configs = [config for config in self.config().indexes if config.name != _DEFAULT]
        check_distinct(config.name for config in configs)
        return {each.name: self.open_index(each, progress) for each in configs}

    def open_index(self, config: IndexConfig, progress: Progress | None = None) -> Index:
        """Open an index of the configuration, or the mirror's copy of it where only that is asked.

        Nothing of it is read. Where its own place may be asked, that is what is up to date.
        """
        from weightpkg.indexes import open_index  # noqa: PLC0415  only who has configured one needs it

        mirror = self.mirror()
        if mirror is not None and mirror.is_only:
            config = replace(config, url=mirror.index(config.name))
        return open_index(config, self.home, self.connect, progress or Silence())

    def _mirrored_index(self) -> Path | None:
        """The default index of a mirror on this machine; what is elsewhere must be signed."""
        mirror = self.mirror()
        if mirror is None or not _has_index(mirror, _DEFAULT):
            return None
        directory = Path(mirror.index(_DEFAULT))
        return directory if (directory / "models").is_dir() else None

    def mirror(self) -> Replacement | None:
        """The mirror that is to stand in for canonical sources.

        Raises:
            DocumentError: the configuration is not valid, or the environment names no mirror.
        """
        is_only = bool(self.environ.get("WEIGHTPKG_MIRROR_ONLY"))
        if location := self.environ.get("WEIGHTPKG_MIRROR"):
            try:
                return Replacement(location, is_only)
            except ValueError as error:
                raise DocumentError(str(error), source="WEIGHTPKG_MIRROR") from error
        table = self.config().source_replacement
        found = read_replacement(table) if table else None
        return replace(found, is_only=found.is_only or is_only) if found else None

    def with_mirror(self, location: str | None, *, is_only: bool) -> Settings:
        """Return the same with another mirror, if one is given, or with nothing beside the mirror."""
        given = {"WEIGHTPKG_MIRROR": location} if location else {}
        only = {"WEIGHTPKG_MIRROR_ONLY": "1"} if is_only else {}
        return replace(self, environ={**self.environ, **given, **only})

    def replacements(self) -> tuple[Replacement, ...]:
        """What is asked before canonical sources: what bundles brought here, and the mirror.

        Raises:
            DocumentError: the configuration is not valid.
        """
        brought = [Replacement(str(self.imported.absolute()))] if self.imported.is_dir() else []
        mirror = self.mirror()
        return (*brought, mirror) if mirror else tuple(brought)

    def connect(self) -> Transport:
        """Make what reaches servers that are not told who asks; the caller closes it."""
        from weightpkg.sources.transport import Transport  # noqa: PLC0415  slow to import

        config = self._pip_config().transport
        return Transport(replace(config, credentials={}, tokens={}, is_anonymous=True))

    def _pip_config(self) -> PipConfig:
        from weightpkg.sources.pip_config import read_pip_config  # noqa: PLC0415  only downloads need it

        return read_pip_config(
            self.environ, home=Path.home(), prefix=Path(sys.prefix), platform=sys.platform
        )

    def index_of(self, namespace: NormalizedName | None) -> Index:
        """The index that owns a namespace; the default one for none.

        Raises:
            NamespaceNotFoundError: no index owns it.
        """
        if namespace is None:
            return self.index()
        known = self.namespaces()
        if namespace not in known:
            raise NamespaceNotFoundError(namespace, "NAME", sorted(known))
        return known[namespace]

    def rules(self) -> Rules:
        """What may be chosen here: what this machine has memory for."""
        from weightpkg.resolve import Rules  # noqa: PLC0415  only who chooses needs them
        from weightpkg.survey import this_machine  # noqa: PLC0415

        return Rules(machine=this_machine())

    @contextmanager
    def sources(self, store: Store) -> Iterator[Sources]:
        """Enter what opens sources, made when it is first used; connections are closed at the end."""
        with ExitStack() as stack:
            yield Sources(cache(lambda: stack.enter_context(self._openers(store))))

    def _openers(self, store: Store) -> Openers:
        from weightpkg.sources.openers import Openers  # noqa: PLC0415  slow to import

        return Openers(
            self._pip_config(), self.environ, index_dir=self.index_dir, temp_dir=store.root / "tmp"
        )

    def fetcher(
        self,
        sources: Sources,
        store: Store,
        progress: Progress,
        *,
        jobs: int | None = None,
        timeout_s: float | None = None,
        find_links: Sequence[Path] = (),
    ) -> Fetcher:
        """Make what fetches files.

        Args:
            sources: opens sources.
            store: where blobs go.
            progress: told of every step.
            jobs: how many connections a file may take; see `Fetcher`.
            timeout_s: how long a file may take; see `Fetcher`.
            find_links: directories to look in before anything is downloaded.
        """
        from weightpkg.fetch import DEFAULT_JOBS, Fetcher  # noqa: PLC0415  only downloads need it

        return Fetcher(
            sources,
            store,
            progress,
            jobs=jobs or DEFAULT_JOBS,
            timeout_s=timeout_s,
            places=self.places(find_links),
            replacements=self.replacements(),
        )

    def places(self, find_links: Sequence[Path] = ()) -> Places:
        """Where files of this machine are looked for."""
        from weightpkg.adopt import Places  # noqa: PLC0415  only downloads need it

        more = (
            Path(text) for text in self.environ.get("WEIGHTPKG_FIND_LINKS", "").split(os.pathsep)
        )
        named = (*find_links, *(path for path in more if path.parts))
        if self.environ.get("WEIGHTPKG_NO_ADOPT"):
            return Places(directories=named)
        found = Places.of_machine(self.environ, Path.home())
        return replace(found, directories=(*named, *found.directories))


def set_variables(values: Mapping[str, str | None]) -> None:
    """Set variables of this process, for a library that nothing else tells; None takes one away."""
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _default_home() -> Path:
    import platformdirs  # noqa: PLC0415  slow, and not needed where the environment says it

    return platformdirs.user_data_path("weightpkg", appauthor=False)


def _has_index(mirror: Replacement, namespace: str) -> bool:
    return mirror.directory is not None and Path(mirror.index(namespace)).is_dir()


def _default_index() -> Path:
    """The index in the wheel, or, in a checkout, the one that goes into it."""
    package = Path(__file__).parent
    shipped = package / "default_index"
    return shipped if shipped.is_dir() else package.parent / "index"
