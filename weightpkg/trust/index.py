"""A signed index: an `Index` whose pages are verified, with what only such a one can do.

`docs/trust.md` says what is promised. What is held of an index is no cache: nothing but `weightpkg
index remove` takes it away.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightpkg import files
from weightpkg.config import IndexConfig
from weightpkg.digest import Digest
from weightpkg.errors import FetchError
from weightpkg.index import Index
from weightpkg.license_policy import identifiers
from weightpkg.package import Model
from weightpkg.page import read_alias
from weightpkg.requirement import NormalizedName
from weightpkg.trust.origin import AbsentError, Origin
from weightpkg.trust.pages import MAX_ROOT, SUFFIXES, SignedPages, Surroundings

if TYPE_CHECKING:
    from tuf.api.metadata import TargetFile


@dataclass(frozen=True, slots=True)
class Updated:
    """What an update brought: versions of the top roles before and after, and pages that changed."""

    before: Mapping[str, int]
    after: Mapping[str, int]
    pages: tuple[str, ...]


class SignedIndex(Index):
    """An index whose pages are signed, and what only such a one can do."""

    pages: SignedPages

    def __init__(self, config: IndexConfig, origin: Origin, given: Surroundings) -> None:
        """Prepare; nothing is read before it is asked for; as `SignedPages`."""
        pages = SignedPages(config, origin, given)
        super().__init__(pages, cache=given.cache, note=given.progress.note)

    def model(self, name: NormalizedName) -> Model:
        """As `Index.model`; the texts of its licenses are held with its page."""
        is_new = name not in self._models
        model = super().model(name)
        for leaf in identifiers(model.license) if is_new else ():
            with suppress(FetchError):  # offline, where it is not held, its URL is what is shown
                self._license(leaf)
        return model

    def _holders(self, digest: Digest) -> Iterable[str]:  # noqa: ARG002  as `Index` has it
        """The models whose pages are held: what is signed beside them says nothing of files."""
        return self.pages.held("models")

    def _license(self, leaf: str) -> bytes | None:
        if not re.fullmatch(r"[A-Za-z0-9.+-]+", leaf) or not self.pages.has("licenses", leaf):
            return None
        return self.pages.read("licenses", leaf)

    def update(self) -> Updated:
        """Bring up to date what is held: metadata, roles, pages.

        Raises:
            TrustError: what is new is refused; what was held stays.
            FetchError: it cannot be had.
        """
        before = dict(self.pages.client.memory().held)
        self.pages.refresh()
        self._models.clear()
        changed = tuple(self._renew())
        return Updated(before, dict(self.pages.client.memory().held), changed)

    def _renew(self) -> Iterator[str]:
        for kind, suffix in SUFFIXES.items():
            directory = self.directory / kind
            for path in sorted(directory.glob(f"*{suffix}")) if directory.is_dir() else ():
                name = path.name.removesuffix(suffix)
                with files.mapped(path):
                    old = path.read_bytes()
                if not self.pages.has(kind, name):
                    files.discard(path)
                    yield f"{kind}/{name}"
                elif self.pages.read(kind, name) != old:
                    yield f"{kind}/{name}"

    def published(self, names: Iterable[NormalizedName]) -> Iterator[tuple[str, bytes]]:
        """Yield what a mirror must have for some models: relative path and bytes.

        That is every root, the timestamp, the snapshot, each role that is asked when one of the names
        or of their variants is looked up, and their pages and licenses' texts.

        Args:
            names: of models, or aliases.

        Raises:
            ModelNotFoundError: the index has no such model.
            TrustError: something of it is refused.
            FetchError: something of it cannot be had.
        """
        names = list(names)
        models = [self.model(name) for name in names]
        targets = [*self._aliases_of(names), *self._targets_of(models)]
        infos = [self.pages.info(kind, name) for kind, name in dict.fromkeys(targets)]
        yield from self._metadata({self.pages.role_of(*target) for target in targets})
        index_page = self.pages.session().targets.targets["index.toml"]
        for info in [index_page, *filter(None, infos)]:
            kind, _, name = info.path.removeprefix(self.pages.prefix).rpartition("/")
            path = self.directory / kind / name
            yield _published_path(info), self.pages.file(self.pages.session(), info, path)

    def _aliases_of(self, names: Iterable[NormalizedName]) -> Iterator[tuple[str, str]]:
        for name in names:
            target = name
            while self.pages.has("aliases", target):
                yield "aliases", target
                target = read_alias(self._parse("aliases", target))

    def _targets_of(self, models: Iterable[Model]) -> Iterator[tuple[str, str]]:
        """Yield what a client asks for on its way to a model: shorter and longer names, too."""
        for model in models:
            name = model.normalized_name
            variants = {v.name for release in model.releases for v in release.variants}
            asked = {name, *(f"{name}-{variant}" for variant in variants)}
            for text in sorted(asked):
                words = text.split("-")
                for i in range(len(words), 0, -1):
                    short = "-".join(words[:i])
                    if len(short) < len(name):
                        break
                    yield "aliases", short
                    yield "models", short
            for leaf in identifiers(model.license):
                if re.fullmatch(r"[A-Za-z0-9.+-]+", leaf):
                    yield "licenses", leaf

    def _metadata(self, asked: set[str]) -> Iterator[tuple[str, bytes]]:
        session, state = self.pages.session(), self.pages.client.directory
        for n in range(1, session.root.version + 1):
            name = f"{n}.root.json"
            path = state / "held" / name
            if path.is_file():
                yield f"metadata/{name}", path.read_bytes()
            else:  # older than the first that is trusted here; others may begin with it
                with suppress(AbsentError):
                    yield f"metadata/{name}", self.pages.origin.read(f"metadata/{name}", MAX_ROOT)
        held = self.pages.client.memory().held
        for role, version in sorted(held.items()):
            name = f"{role}.json" if role == "timestamp" else f"{version}.{role}.json"
            yield f"metadata/{name}", (state / "held" / f"{version}.{role}.json").read_bytes()
        for role, version in sorted(session.loaded().items()):
            if role not in asked | {self.pages.namespace}:
                continue
            yield f"metadata/{version}.{role}.json", (state / "roles" / f"{role}.json").read_bytes()


def _published_path(info: TargetFile) -> str:
    directory, _, name = info.path.rpartition("/")
    return "/".join(filter(None, ("targets", directory, f"{info.hashes['sha256']}.{name}")))
