"""An index: a directory of TOML pages, one a model, that says what exists and where its bytes are.

A name is looked up by opening its page and no other. `docs/index.md` is the specification; what it
says of one page is checked by `page`, and `lint` adds what only the whole index can tell.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from weightpkg.digest import Digest
from weightpkg.document import MAX_DOCUMENT_SIZE, Table, nearest, parse_document
from weightpkg.errors import DocumentError, ModelNotFoundError
from weightpkg.package import File, Model, Resolved
from weightpkg.page import read_alias, read_model
from weightpkg.requirement import NormalizedName, normalize_name

if TYPE_CHECKING:
    from weightpkg.catalog import Catalog

_NEAREST = 3
_MAX_ALIASES = 8  # one after the other
_MANY = 10_000  # to compare so many names takes 0.1 s


@dataclass(frozen=True, slots=True)
class Hit:
    """A model that a search found; higher scores are better."""

    model: Model
    score: int


class Index:
    """An index in a directory."""

    def __init__(
        self,
        directory: Path,
        *,
        cache: Path | None = None,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Open the index of a directory; nothing is read before it is asked for.

        Args:
            directory: the index.
            cache: where to keep what searches need; without it, each search reads every page.
            note: told what takes a while.
        """
        self.directory = directory
        self._cache = cache
        self._note = note
        self._models: dict[str, Model] = {}

    def names(self) -> list[str]:
        """The normalised names of all models, in order.

        Raises:
            DocumentError: the directory is no index.
        """
        return _names(self._pages())

    def _pages(self) -> Path:
        pages = self.directory / "models"
        if not pages.is_dir():
            raise DocumentError(
                "is not a directory",
                source=str(pages),
                hint="an index is a directory that holds `models/NAME.toml`",
            )
        return pages

    def aliases(self) -> list[str]:
        """The normalised names of all aliases, in order."""
        directory = self.directory / "aliases"
        return _names(directory) if directory.is_dir() else []

    def __contains__(self, name: NormalizedName) -> bool:
        return self._page(name).is_file() or self._alias_page(name).is_file()

    def model(self, name: NormalizedName) -> Model:
        """Return a model by its name, or by an alias.

        Raises:
            ModelNotFoundError: there is none of that name.
            DocumentError: its page is not valid, or the alias leads nowhere.
        """
        if name not in self._models:
            self._models[name] = self._read(self._page(self.target(name)))
        return self._models[name]

    def target(self, name: NormalizedName) -> NormalizedName:
        """Follow aliases to the name of a model; a model's own name is returned as it is.

        Raises:
            ModelNotFoundError: there is neither a model nor an alias of that name.
            DocumentError: an alias leads nowhere, or back to itself, or is a model, too.
        """
        way = [name]
        while (page := self._alias_page(way[-1])).is_file():
            if self._page(way[-1]).is_file():
                raise DocumentError(f"`{way[-1]}` is a model, too", source=_source(page))
            way.append(read_alias(self._parse(page)))
            if way[-1] in way[:-1] or len(way) > _MAX_ALIASES + 1:
                what = (
                    "goes in a circle" if way[-1] in way[:-1] else "leads through too many aliases"
                )
                reason = f"{what}: {' -> '.join(way)}"
                raise DocumentError(reason, where="model", source=_source(page))
        if self._page(way[-1]).is_file():
            return way[-1]
        if len(way) == 1:
            raise ModelNotFoundError(name, self.nearest(name))
        reason = f"no model is called `{way[-1]}`"
        raise DocumentError(reason, where="model", source=_source(self._alias_page(way[-2])))

    def nearest(self, name: str) -> list[str]:
        """The names most like one that is not there."""
        known = self.names() + self.aliases()
        if len(known) > _MANY:
            known = [other for other in known if other[:2] == name[:2]]
        near = nearest(name, known, n=_NEAREST)
        return near or [other for other in known if other in name or name in other][:_NEAREST]

    def search(self, words: Sequence[str], *, limit: int | None = None) -> list[Hit]:
        """Return the models that match all of the words, best first.

        Pages that are not valid are left out: `faulty` names them.

        Args:
            words: parts of names, tags, summaries and the like; capitals do not count.
            limit: how many to return at most.

        Raises:
            DocumentError: the directory is no index.
        """
        found = self._catalog().search(words, limit)
        return [Hit(self.model(NormalizedName(name)), score) for name, score in found]

    def faulty(self) -> list[NormalizedName]:
        """Return the names of the pages that a search leaves out because they are not valid.

        Raises:
            DocumentError: the directory is no index.
        """
        return [NormalizedName(name) for name in self._catalog().faulty()]

    def _catalog(self) -> Catalog:
        from weightpkg.catalog import Catalog  # noqa: PLC0415  SQLite, which only searches need

        return Catalog(self._pages(), self._cache, self._read, self._note)

    def find(self, digest: Digest) -> Iterator[tuple[Resolved, File]]:
        """Yield each variant that has a file of a SHA-256, with that file.

        Raises:
            DocumentError: the directory is no index.
        """
        for name in self._catalog().holders(digest):
            model = self.model(NormalizedName(name))
            for release in model.releases:
                for variant in release.variants:
                    for file in variant.files:
                        if file.sha256 == digest:
                            yield Resolved(model=model, release=release, variant=variant), file

    def lint(self) -> list[DocumentError]:
        """Return every fault of the index, by page."""
        faults: list[DocumentError] = []
        models: list[Model] = []
        for path in sorted((self.directory / "models").iterdir()):
            try:
                models.append(self._read(path))
            except DocumentError as error:
                faults.append(error)
        faults += self._faults_of_aliases()
        return faults + list(_ambiguities(models, self.aliases()))

    def _faults_of_aliases(self) -> Iterator[DocumentError]:
        directory = self.directory / "aliases"
        for path in sorted(directory.iterdir()) if directory.is_dir() else ():
            try:
                _check_page_name(path)
                self.target(normalize_name(path.stem))
            except DocumentError as error:
                yield error

    def warnings(self) -> list[str]:
        """Return what is allowed in a valid index, and not good."""
        found: list[str] = []
        sizeless: list[str] = []
        for name in self.names():
            model = self.model(NormalizedName(name))
            found += model.notes
            variants = [variant for release in model.releases for variant in release.variants]
            if any(variant.size is None for variant in variants):
                sizeless.append(f"models/{name}.toml")
        if sizeless:
            more = f" and {len(sizeless) - 3} more" if len(sizeless) > 3 else ""
            found.append(
                f"{', '.join(sizeless[:3])}{more}: files have no size, so only their digests and "
                "the free disk bound the download"
            )
        return found

    def _page(self, name: str) -> Path:
        return self.directory / "models" / f"{name}.toml"

    def _alias_page(self, name: str) -> Path:
        return self.directory / "aliases" / f"{name}.toml"

    def _parse(self, path: Path) -> Table:
        source = _source(path)
        try:
            if path.is_symlink() or not path.is_file() or path.suffix != ".toml":
                raise DocumentError("is not a regular file NAME.toml", source=source)
            if path.stat().st_size > MAX_DOCUMENT_SIZE:
                raise DocumentError(f"larger than {MAX_DOCUMENT_SIZE:,} bytes", source=source)
            content = path.read_bytes()
        except OSError as error:
            reason = error.strerror or str(error)
            raise DocumentError(f"cannot be read: {reason}", source=source) from error
        return parse_document(content, source=source)

    def _read(self, path: Path) -> Model:
        model = read_model(self._parse(path))
        if model.normalized_name != path.stem:
            reason = f"`{model.name}` belongs on the page {model.normalized_name}.toml"
            raise DocumentError(reason, where="name", source=_source(path))
        return model


def _names(directory: Path) -> list[str]:
    with os.scandir(directory) as entries:  # for a hundred thousand, paths would be slow
        pages = [entry.name for entry in entries]
    return sorted(page.removesuffix(".toml") for page in pages if page.endswith(".toml"))


def _source(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _check_page_name(path: Path) -> None:
    """Refuse a page that no name leads to."""
    try:
        is_right = path.suffix == ".toml" and normalize_name(path.stem) == path.stem
    except ValueError:
        is_right = False
    if not is_right:
        raise DocumentError("is not called by a normalised name", source=_source(path))


def _ambiguities(models: Sequence[Model], aliases: Sequence[str]) -> Iterator[DocumentError]:
    """Yield each name that two things have: a variant's full name, a model's, or an alias."""
    owners: dict[str, list[str]] = defaultdict(list)
    for alias in aliases:
        owners[alias].append(f"alias `{alias}`")
    for model in models:
        if model.normalized_name not in aliases:  # else it is said of the alias
            owners[model.normalized_name].append(f"model `{model.name}`")
        variants = {variant.name for release in model.releases for variant in release.variants}
        for variant in sorted(variants):
            owner = f"variant `{variant}` of `{model.name}`"
            owners[normalize_name(f"{model.name}-{variant}")].append(owner)
    for name, owned in sorted(owners.items()):
        if len(owned) > 1:
            yield DocumentError(f"is ambiguous: {' and '.join(owned)}", source=name)
